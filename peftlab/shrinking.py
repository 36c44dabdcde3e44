"""Cutting away for good what a pruning delta has silenced."""

import contextlib

import torch
from torch import nn

from .backbones import attention_of
from .checkpoint import merge
from .errors import PeftlabError


@torch.no_grad()
def shrink(model, attached):
    """Merge, and cut the silenced heads and channels away; returns an undo that brings model and delta back.

    The function stays the same, with fewer parameters and products. PeftlabError when nothing of `attached` prunes.
    """
    units = {d.unit[-1]: d.unit for d in attached.deltas if hasattr(d, "unit")}
    if not units:
        raise PeftlabError("none of these deltas finds out what can be cut; attach loraprune and train first")
    plans = [[(d.at[0], d.M.nonzero().flatten()) for d in unit] for unit in units.values()]
    done, unmerge = contextlib.ExitStack(), merge(model, attached)
    for *sources, (last, _) in plans:
        first, reads = next((m, kept) for m, kept in sources if m.site in ("q", "up"))
        for m, kept in sources:
            cut(done, m, kept, 0)
        cut(done, last, reads, 1)
        if last.site == "o":
            recount(done, attention_of(model, first), first.out_features)
    return lambda: (done.close(), unmerge())[1]


def cut(done, m, kept, dim):
    """Keep these rows (dim 0) or columns of a Linear."""
    before = m.weight, m.bias, m.out_features, m.in_features

    def put(weight, bias, high, wide):
        m.weight, m.bias, m.out_features, m.in_features = weight, bias, high, wide

    done.callback(put, *before)
    if heads := getattr(m, "heads", 0):  # at q, k, v and o
        done.callback(setattr, m, "heads", heads)
        m.heads = heads * len(kept) // m.weight.shape[dim]
    part = lambda t, dim: t if t is None else nn.Parameter(t.index_select(dim, kept), requires_grad=False)
    weight = part(m.weight, dim)
    put(weight, part(m.bias, 0) if dim == 0 else m.bias, *weight.shape)


def recount(done, module, width):
    """Some families' attention remembers how wide it is, and how many heads that makes."""
    own = vars(module)
    now = dict(split_size=width, num_heads=width // own.get("head_dim", width))
    for name in now.keys() & own.keys():
        done.callback(setattr, module, name, own[name])
        setattr(module, name, now[name])
