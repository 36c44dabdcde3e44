"""The exercises on what is added to a backbone (lab 01): oracles, cases, slips and how an answer is tried."""

import copy

import torch
import transformers as T
from torch import nn
from torch.nn import functional as F

from .attachment import attach
from .attention import attention
from .backbones import prepare, sites
from .methods import get

# An adapter, in series and parallel ---------------------------------------------------------------


def by_adapter(x, y, D, c, U, e, parallel):
    """The package's adapters; the parallel one keeps x when it enters the sub-layer."""
    delta = get("parallel-adapter" if parallel else "adapter").cls(nn.Linear(y.shape[-1], y.shape[-1]), len(D))
    delta.load_state_dict(dict(D=D, c=c, U=U, e=e))
    delta.x = x
    return delta(None, y)


def adapter_cases():
    drawn = {}
    for told, parallel, b, t, d, r in (("series", False, 3, 4, 8, 3), ("parallel", True, 2, 5, 6, 4)):
        x, y = torch.randn(2, b, t, d)
        drawn[f"an adapter in {told}"] = x, y, *map(torch.randn, [(r, d), r, (d, r), d]), parallel
    return drawn


def squeezing(read=lambda x, y, parallel: x if parallel else y, onto=None, inner=torch.relu, outer=None, c=1, e=1):
    """An adapter that reads, adds and bends as told; `c`, `e`: how much of its biases it has."""
    plain = lambda t: t

    def answer(x, y, D, bias_c, U, bias_e, parallel):
        z = read(x, y, parallel)
        added = (outer or plain)(F.linear((inner or plain)(F.linear(z, D, c * bias_c)), U, e * bias_e))
        return added + (y if onto is None else onto(x, y, parallel))

    return answer


def late_bias(x, y, D, c, U, e, parallel):
    return y + F.linear(torch.relu(F.linear(x if parallel else y, D)) + c, U, e)


# A prefix under masks -----------------------------------------------------------------------------


def by_prefix(q, k, v, P_k, P_v, real, causal):
    """The package's prefix in the package's attention, with one head and the mask that transformers would hand over."""
    m, t = nn.Linear(q.shape[-1], q.shape[-1]), q.shape[1]
    m.site = "k"
    prefix = get("prefix").cls(m, len(P_k))
    prefix.load_state_dict(dict(P_k=P_k, P_v=P_v))
    m.keyvals = [prefix]
    seen = real[:, None, None].expand(-1, 1, t, -1) & (torch.ones(t, t).tril().bool() if causal else True)
    mask = None if real.all() else seen  # without padding there is none, and `attention` makes the causal one itself
    return attention(m, *(h[:, None] for h in (q, k, v)), mask, is_causal=causal)[0][:, :, 0]


def lengths_told(mine, q, k, v, P_k, P_v, *masks):
    """Torch says that two lengths differ, but not which of them is the length of what."""
    try:
        return mine(q, k, v, P_k, P_v, *masks)
    except RuntimeError as e:
        t, n = q.shape[1], len(P_k)
        if not {f"({t})", f"({n + t})"} <= {*str(e).split()}:
            raise
        raise RuntimeError(f"{e}. Are keys, values and both masks as long as prefix and text together?") from e


def prefix_cases():
    drawn = {}
    for causal, lengths, n in ((False, (5, 5), 2), (False, (4, 2, 5), 3), (True, (5, 5), 2), (True, (3, 5, 2), 3)):
        t, d = max(lengths), 4
        real = torch.arange(t) < torch.tensor(lengths)[:, None]
        told = f"{'a causal' if causal else 'no causal'} mask and {'no padding' if real.all() else 'padding'}"
        qkv = torch.randn(3, len(lengths), t, d)
        drawn[told] = *qkv, *torch.randn(2, n, d), real, causal
    return drawn


def in_front(real, n, value=True):
    return F.pad(real, (n, 0), value=value)


def at_the_end(real, n):
    return F.pad(real, (0, n), value=True)


def minus_infinity(scores, seen):
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def prefixed(padding=in_front, tril=lambda n: n, behind=False, weigh=minus_infinity, root=True, value=lambda k, v: v):
    """Attention with a prefix by hand, right unless told otherwise.

    padding(real, n): the padding mask (b n+t); tril(n): the diagonal of the causal mask; `behind`: the prefix is put
    behind the text; weigh(scores, seen): the weights (b t n+t); value(P_k, P_v): the values of the prefix.
    """
    order = -1 if behind else 1

    def answer(q, k, v, P_k, P_v, real, causal):
        (b, t, d), n = q.shape, len(P_k)
        joined = lambda P, text: torch.cat([P.expand(b, -1, -1), text][::order], 1)
        seen = padding(real, n)[:, None].expand(-1, t, -1)
        seen = seen & torch.ones(t, n + t).tril(tril(n)).bool() if causal else seen
        weights = weigh(q @ joined(P_k, k).mT / (d**0.5 if root else 1), seen)
        return weights @ joined(value(P_k, P_v), v)

    return answer


def apart(q, k, v, P_k, P_v, real, causal):
    """One softmax over the prefix and one over the text."""
    text = prefixed()(q, k, v, P_k[:0], P_v[:0], real, causal)
    return text + (q @ P_k.T / q.shape[-1] ** 0.5).softmax(-1) @ P_v


# (IA)³ folded into the weights --------------------------------------------------------------------


def fold_cases():
    """A backbone that is as wide inside as outside, so that a wrong axis is not given away by its length."""
    one = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    drawn = {}
    for told, model in (
        ("a RoBERTa", T.RobertaForSequenceClassification(T.RobertaConfig(**one))),
        ("a Llama, which has no biases", T.LlamaForSequenceClassification(T.LlamaConfig(**one, pad_token_id=1))),
    ):
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
        prepare(model)
        gains = {n: 1 + 0.5 * torch.randn(16) for n, m in model.named_modules() if m in sites(model, "k v down")}
        drawn[told] = model, gains, torch.randint(3, 20, (3, 6))
    return drawn


def unmerged(model, gains, ids):
    """The logits with (IA)³ attached."""
    model = copy.deepcopy(model)
    names = {m: n for n, m in model.named_modules()}
    for delta, m in attach(model, "ia3").placed:
        delta.l.copy_(gains[names[m]])
    return model(input_ids=ids).logits


def folded(fold, model, gains, ids):
    """The logits of the plain model, after fold(layer, l) of each layer that has gains."""
    for name, l in gains.items():
        fold(model.get_submodule(name), l)
    return model(input_ids=ids).logits


def as_it_was(t, l):
    return t


def columns(W, l):
    return W * l


def rows(W, l):
    return W * l[:, None]


def folding(inner=columns, outer=rows, bias=columns, inner_bias=as_it_was):
    """inner, inner_bias: what becomes of weight and bias at `down`; outer, bias: at `k` and `v`."""

    def fold(layer, l):
        w, b = (inner, inner_bias) if layer.site == "down" else (outer, bias)
        layer.weight.copy_(w(layer.weight, l))
        if layer.bias is not None:
            layer.bias.copy_(b(layer.bias, l))

    return fold


# Attention over adapters --------------------------------------------------------------------------


def by_fusion(y, z, Q, K, V):
    """The package's AdapterFusion of n adapters whose answers are constants, one token at a time."""
    (n, d), fused = z.shape[-2:], []
    for token, answers in zip(y.reshape(-1, d), z.reshape(-1, n, d), strict=True):
        delta = get("adapter-fusion").cls(nn.Linear(d, d), r=1, adapters=n, sources="", pull=0)
        delta.load_state_dict(delta.state_dict() | dict(Q=Q, K=K, V=V, e=answers))  # U is 0: an adapter says its e
        fused.append(delta(token, token))
    return torch.stack(fused).view_as(y)


def fusion_cases():
    drawn = {}
    for b, t, n, d in ((2, 4, 3, 5), (3, 2, 1, 4), (2, 3, 3, 6)):
        told = f"{n} adapters and d = {d}" if n > 1 else "one adapter"
        drawn[told] = torch.randn(b, t, d), torch.randn(b, t, n, d), *torch.randn(3, d, d) / d**0.5
    return drawn


def mixing(ask=lambda y, z: y[:, :, None], weigh=lambda s: s.softmax(2), left=lambda y, read, V: y + read @ V.T):
    """Fusion whose queries are made of what `ask` says, with weights from scores (b t n); `left`: what comes out."""

    def answer(y, z, Q, K, V):
        s = weigh(((ask(y, z) @ Q.T) * (z @ K.T)).sum(-1))
        return left(y, (s[..., None] * z).sum(2), V)

    return answer


def by_channel(y, z, Q, K, V):
    """The product of query and key is not summed: each channel has weights of its own."""
    return y + (((y @ Q.T)[:, :, None] * (z @ K.T)).softmax(2) * z).sum(2) @ V.T


fuse = mixing()
ADDITIVE = dict(
    adapter_output=dict(
        oracle=by_adapter,
        cases=adapter_cases,
        slips={
            "that is what the adapter adds. What is it added to?": squeezing(onto=lambda x, y, parallel: 0),
            "parallel, it reads x. But is x also what it is added to?": (
                squeezing(onto=lambda x, y, parallel: x if parallel else y)
            ),
            "what the layer gives is lost: all is added to x.": squeezing(onto=lambda x, y, parallel: x),
            "it reads y both times. What does a parallel adapter read?": squeezing(lambda x, y, parallel: y),
            "it reads x both times. What does an adapter in series read?": squeezing(lambda x, y, parallel: x),
            "which of the two reads what the layer gives?": squeezing(lambda x, y, parallel: y if parallel else x),
            "relu comes after U. Then the adapter can only add, never take away.": (
                squeezing(inner=None, outer=torch.relu)
            ),
            "where is relu? Without it D and U are one matrix of rank r.": squeezing(inner=None),
            "there is a second relu, after U.": squeezing(outer=torch.relu),
            "where is c?": squeezing(c=0),
            "where is e?": squeezing(e=0),
            "both biases are missing.": squeezing(c=0, e=0),
            "c comes after relu. Can it then decide which neurons are silent?": late_bias,
        },
    ),
    prefix_attention=dict(
        oracle=by_prefix,
        cases=prefix_cases,
        use=lengths_told,
        slips={
            "nobody hears the prefix. With what was the padding mask widened?": (
                prefixed(lambda real, n: in_front(real, n, False))
            ),
            "that is attention without the padding mask.": prefixed(lambda real, n: in_front(real | True, n)),
            "the padding mask was widened at the other end than the keys.": prefixed(at_the_end),
            "the first query hears only the first key of the prefix. By how much must the causal mask be shifted?": (
                prefixed(tril=lambda n: 0)
            ),
            "a query does not hear its own token.": prefixed(tril=lambda n: n - 1),
            "a query hears the token after it.": prefixed(tril=lambda n: n + 1),
            "that is attention without the causal mask.": prefixed(tril=lambda n: 2**20),
            "the prefix stands behind the text, but both masks have it in front.": prefixed(behind=True),
            "the prefix stands behind the text, and there the causal mask hides it from everybody.": (
                prefixed(at_the_end, lambda n: 0, behind=True)
            ),
            "the prefix stands behind the text, so the shifted causal mask lets queries hear later tokens.": (
                prefixed(at_the_end, behind=True)
            ),
            "a softmax over the prefix and one over the text: do all weights of a query sum to one?": apart,
            "masked after the softmax: do the weights of a query still sum to one?": (
                prefixed(weigh=lambda scores, seen: scores.softmax(-1) * seen)
            ),
            "a score of 0 is not a weight of 0. Which score is?": (
                prefixed(weigh=lambda scores, seen: (scores * seen).softmax(-1))
            ),
            "the scores are not divided by √d.": prefixed(root=False),
            "the values of the prefix are its keys.": prefixed(value=lambda P_k, P_v: P_k),
        },
    ),
    fold_ia3=dict(
        oracle=unmerged,
        cases=fold_cases,
        use=folded,
        slips={
            "the layers are as they were. Write into layer.weight and layer.bias.": lambda layer, l: None,
            "k and v are right. At down l scales what comes in: is that a row or a column of W?": folding(inner=rows),
            "down is treated like k and v. What does l scale there?": folding(inner=rows, inner_bias=columns),
            "down is right. At k and v l scales what goes out, and W * l scales columns.": folding(outer=columns),
            "down is right. At k and v W * l scales columns, and the bias goes out too.": (
                folding(outer=columns, bias=as_it_was)
            ),
            "rows and columns are the other way round.": folding(rows, columns),
            "the weights are right. At k and v l scales W x + b: what of the bias?": folding(bias=as_it_was),
            "the weights are right. At down, is the bias scaled too?": folding(inner_bias=columns),
            "the weights are right. Which of the biases are scaled, and which not?": (
                folding(bias=as_it_was, inner_bias=columns)
            ),
            "k and v are right, but down is as it was.": folding(inner=as_it_was),
            "down is right, but k and v are as they were.": folding(outer=as_it_was, bias=as_it_was),
            "divided: that would undo the gains.": (
                folding(lambda W, l: W / l, lambda W, l: W / l[:, None], lambda b, l: b / l)
            ),
        },
    ),
    fuse=dict(
        oracle=by_fusion,
        cases=fusion_cases,
        slips={
            "the weights sum to one over the tokens. Over what should they?": mixing(weigh=lambda s: s.softmax(1)),
            "the weights sum to one over the batch. Over what should they?": mixing(weigh=lambda s: s.softmax(0)),
            "every adapter asks itself. Who should ask?": mixing(lambda y, z: z),
            "all adapters weigh the same. What should the keys be made of?": mixing(weigh=lambda s: (0 * s).softmax(2)),
            "each channel has weights of its own. Is something missing from the product?": by_channel,
            "where is the softmax?": mixing(weigh=lambda s: s),
            "a sigmoid: do the weights of a token sum to one?": mixing(weigh=torch.sigmoid),
            "the scores are divided by √d. Does this equation do that?": (
                lambda y, z, Q, K, V: fuse(y, z, Q / y.shape[-1] ** 0.5, K, V)
            ),
            "that is what is added. To what?": mixing(left=lambda y, read, V: read @ V.T),
            "does V stand before y too?": mixing(left=lambda y, read, V: (y + read) @ V.T),
            "where is V?": mixing(left=lambda y, read, V: y + read),
            "for a row y, the equation's Q y is y @ Q.T; so with K and V.": (
                lambda y, z, Q, K, V: fuse(y, z, Q.T, K.T, V.T)
            ),
            "look at Q and K: for a row y, the equation's Q y is y @ Q.T.": (
                lambda y, z, Q, K, V: fuse(y, z, Q.T, K.T, V)
            ),
            "look at V: for a row z, the equation's V z is z @ V.T.": lambda y, z, Q, K, V: fuse(y, z, Q, K, V.T),
        },
    ),
)
