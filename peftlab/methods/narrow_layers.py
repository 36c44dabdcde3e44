"""A backbone's layers made narrow: the same class with fewer channels, fresh or cut out of the backbone's own."""

import copy
import inspect
import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..backbones import plain, sites
from ..errors import PeftlabError
from ..families import FAMILIES
from ..scores import SCORES, Look

FFN = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff")  # what families call the width inside
BACK = ("o", "down")  # from the inner side of an attention or a feed-forward part


def narrow(config, r):
    """The config of a side layer. Heads become fewer; where their size is fixed (rotary, T5) it stays."""
    small, heads = copy.deepcopy(config), config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    small.hidden_size = config.hidden_size // r
    small.num_attention_heads = math.gcd(max(1, heads // r), small.hidden_size)
    if hasattr(config, "num_key_value_heads"):
        small.num_key_value_heads = math.gcd(max(1, config.num_key_value_heads // r), small.num_attention_heads)
        small.head_dim = size
    for name in FFN:
        if getattr(config, name, None):
            setattr(small, name, max(1, getattr(config, name) // r))
    return small


def side_layer(block, config, i):
    """A fresh layer of the same class for this config; its Conv1D, where it has them, as Linears."""
    takes = inspect.signature(type(block)).parameters
    more = dict(layer_idx=i, has_relative_attention_bias=i == 0)
    return plain(type(block)(config, **{k: v for k, v in more.items() if k in takes}))


def stacks(model):
    """(number of its first layer, its layers, its config) for each stack."""
    base, first = model.base_model, 0
    for path, _ in FAMILIES[model.config.model_type].stacks:
        blocks = base.get_submodule(path)
        yield first, blocks, getattr(above(model, path), "config", model.config)
        first += len(blocks)


def above(model, path):
    """The module that a list of layers is in."""
    return model.base_model.get_submodule(path.rpartition(".")[0])


def final_norms(model, kind):
    """For each stack the norm behind its last layer; None where the layers end in norms themselves."""
    for path, _ in FAMILIES[model.config.model_type].stacks:
        yield next((c for c in above(model, path).children() if type(c) is kind), None)


def cut_down(layers, norms, model, r, score, view=None):
    """These side layers and norms become the backbone's own at the channels with the largest sums of a score.

    One choice of channels for what runs through all layers; in each layer one of heads (also of channels in them, where
    a side head has another size) and one of the channels inside the feed-forward part.
    """
    at = sites(model, "q k v o up down")
    weights = [raw(m, "weight") for m in at]
    if SCORES[score].data and not all(isinstance(W, nn.Parameter) for W in weights):
        raise PeftlabError(f"start = {score} needs gradients of the weights, and these are packed; take magnitude")
    scores = dict(zip(at, SCORES[score].make(Look(weights, view, SCORES[score].batches)), strict=True))
    stream = top(sum(S.sum(int(m.site in BACK)) for m, S in scores.items()), model.config.hidden_size // r)
    for first, blocks, config in stacks(model):
        firsts = [attentions(b)[0] for b in blocks]
        shared = sum(by_head(*four, scores) for four in firsts) if firsts[0][0].shares_bias else None
        for block, side in zip(blocks, layers[first:], strict=False):
            copy_cut(block, side, stream, inner(block, side, narrow(config, r).num_attention_heads, scores, shared))
    for norm, side in zip(final_norms(model, type(norms[0])), norms, strict=True):
        if norm is not None:
            copy_cut(norm, side, stream, {})


def inner(block, side, h, scores, shared):
    """What stays on the inner side of each matrix of a layer, and under "heads" which heads of its first attention.

    shared: by-head scores of all layers of a T5, whose first attentions use the same biases, head by head.
    """
    wide = {m: side.get_submodule(n).out_features for n, m in block.named_modules() if m in scores}
    ffn = [m for m in wide if m.site in ("up", "down")]
    kept = dict.fromkeys(ffn, top(sum(scores[m].sum(int(m.site == "up")) for m in ffn), wide[ffn[0]]))
    for q, k, v, o in attentions(block):
        score = shared if shared is not None and "heads" not in kept else by_head(q, k, v, o, scores)
        size = wide[q] // h
        groups, heads = pick(score.sum(2), wide[k] // size, wide[q] // wide[k])
        Q, K = channels(heads, size), channels(groups, size)
        if score.shape[1] == 1:  # keys and values have heads of their own each
            Q = K = pick(score[:, 0], h, size)[1]
        kept = dict(heads=heads) | kept | {q: Q, o: Q, k: K, v: K}
    return kept


def attentions(block):
    """(q, k, v, o) of each attention in a layer."""
    return list(zip(*([m for m in block.modules() if getattr(m, "site", None) == s] for s in "qkvo"), strict=True))


def by_head(q, k, v, o, scores):
    """The scores of an attention's inner channels (g m s): g heads of keys, m of queries for each, s channels."""
    queries, keys = scores[q].sum(1) + scores[o].sum(0), scores[k].sum(1) + scores[v].sum(1)
    return queries.view(k.heads, q.heads // k.heads, -1) + keys.view(k.heads, 1, -1) * k.heads / q.heads


def pick(score, n, each):
    """The best n rows of a score, and in each the best entries, numbered row by row.

    Where a row has fewer than asked for, the best of the other rows fill it up.
    """
    wide, rows = score.shape[1], top(score.sum(1), n)
    own = torch.stack([i * wide + top(score[i], min(each, wide)) for i in rows.tolist()])
    rest = score.index_fill(0, rows, -torch.inf).flatten()
    more = top(rest, n * (each - own.shape[1])).view(n, -1)
    return rows, torch.cat([own, more], 1).flatten()


def channels(heads, size):
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


def top(score, n):
    """Where the n largest are, in order; the earlier of equals."""
    return score.argsort(descending=True, stable=True)[:n].sort().values


@torch.no_grad()
def copy_cut(block, side, stream, kept):
    """Each parameter of `side` becomes the one of that name in `block`, at the channels that are kept."""
    for name, p in side.named_parameters():
        path, _, leaf = name.rpartition(".")
        m = block.get_submodule(path)
        t = raw(m, leaf)
        if m in kept:
            ends = (stream, kept[m]) if m.site in BACK else (kept[m], stream)
        elif t.ndim == 2:  # position biases
            ends = (None, kept["heads"])
        else:  # norms of what runs through the layers, or within a head
            ends = (stream if p.shape != t.shape else None,)
        for dim, at in enumerate(ends[: t.ndim]):
            t = t if at is None else t.index_select(dim, at)
        p.copy_(t)


def raw(m, name):
    """A tensor of the backbone, without what any delta makes of it."""
    return m.parametrizations[name].original if parametrize.is_parametrized(m, name) else getattr(m, name)
