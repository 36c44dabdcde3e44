"""The exercises on adapters and gains (lab 01): oracles, cases, slips and how an answer is tried."""

import copy

import torch
import transformers as T
from torch import nn
from torch.nn import functional as F

from .attachment import attach
from .backbones import prepare, sites
from .methods import get

# An adapter, in series and parallel ---------------------------------------------------------------


def by_adapter(x, y, D, c, U, e, parallel):
    """The package's adapters, in series and in parallel."""
    delta = get("parallel-adapter" if parallel else "adapter").cls(nn.Linear(y.shape[-1], y.shape[-1]), len(D))
    delta.load_state_dict(dict(D=D, c=c, U=U, e=e))
    return delta(x, y)


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
)
