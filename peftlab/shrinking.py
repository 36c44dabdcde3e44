"""Leaving behind what only the training needs: silenced heads and channels, networks that compute a prompt."""

import contextlib

import torch
from torch import nn

from .attachment import attach
from .backbones import attention_of
from .checkpoint import kept_state, merge, restore
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


@torch.no_grad()
def flatten(model, attached):
    """Put plain deltas in the place of computed ones: prefix-mlp becomes a prefix of what its MLP says, AdaMix the one
    adapter that is the mean of its copies.

    Returns the new Attachment: the same function, from fewer tensors. PeftlabError when nothing of `attached` can.
    """
    if not any(hasattr(d, "plain") for d in attached.deltas):
        raise PeftlabError("none of these deltas is computed from others; attach prefix-mlp, p-tuning or adamix first")
    rows, state = list(attached.recipe), kept_state(attached)
    for i, d in enumerate(attached.deltas):
        if hasattr(d, "plain"):
            rows[d.row], tensors = d.plain(attached.recipe[d.row])
            state = {n: t for n, t in state.items() if not n.startswith(f"{i}.")}
            state |= {f"{i}.{n}": t.clone().contiguous() for n, t in tensors.items()}
    attached()
    again = attach(model, rows, attached.seed)
    restore(again, state)
    again.head = attached.head
    return again


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
