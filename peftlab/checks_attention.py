"""The exercises on attention to what is added (lab 01): oracles, cases, slips and how an answer is tried."""

import torch
from torch import nn
from torch.nn import functional as F

from .attention import attention
from .methods import get

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
ATTENTION = dict(
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
