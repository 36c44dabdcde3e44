"""Masks as things of their own: {parameter's name: booleans}, to measure, to combine, to locate and to keep.

A change is the same with numbers, {name: sparse tensor}: what a trained delta adds to each weight. Changes add up.
"""

import functools
import pathlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrize import ParametrizationList

from .checkpoint import merge
from .delta import Delta
from .errors import PeftlabError
from .masks import places

PARTS = dict(embed="embedding", norm1="norm", norm2="norm", up="feed-forward", down="feed-forward")


def density(mask, model):
    """Share of all numbers at the model's labelled places that are in the mask."""
    tensors = raw(model)
    return sum(int(m.sum()) for m in mask.values()) / sum(tensors[n].numel() for n in places(model))


def overlap(one, other):
    """Jaccard's |both| / |either|; None where neither has an entry."""
    both = sum(int((m & other[n]).sum()) for n, m in one.items() if n in other)
    either = sum(int(m.sum()) for m in (*one.values(), *other.values())) - both
    return both / either if either else None


def united(*masks):
    """The entries that are in any of the masks."""
    return {n: torch.stack([m[n] for m in masks if n in m]).any(0) for n in dict.fromkeys(n for m in masks for n in m)}


def shared(*masks):
    """The entries that are in all of the masks."""
    names = [n for n in masks[0] if all(n in m for m in masks)]
    found = {n: torch.stack([m[n] for m in masks]).all(0) for n in names}
    return {n: m for n, m in found.items() if m.any()}


def located(mask, model):
    """Rows {layer, site, part, chosen, numbers, share} of every labelled place; layer is None for embeddings."""
    rows, tensors = {}, raw(model)
    for name, (layer, site) in places(model).items():
        row = dict(layer=layer, site=site, part=PARTS.get(site, "attention"), chosen=0, numbers=0)
        row = rows.setdefault((layer, site), row)
        row["chosen"] += int(mask[name].sum()) if name in mask else 0
        row["numbers"] += tensors[name].numel()
    return [row | dict(share=row["chosen"] / row["numbers"]) for row in rows.values()]


def raw(model):
    """{parameter's name: tensor} of the backbone and its head, without what a delta makes of them."""
    found = {}
    for name, m in model.named_modules():
        if not isinstance(m, Delta | ParametrizationList):
            under = {key: stack.original for key, stack in getattr(m, "parametrizations", {}).items()}
            held = dict(m.named_parameters(recurse=False)) | under
            found |= {f"{name}.{key}": t.detach() for key, t in held.items()}
    return found


@torch.no_grad()
def change(model, attached):
    """{parameter's name: W' - W as a sparse tensor} of the attached deltas, which are taken off.

    A tied tensor is there once. PeftlabError where a delta cannot be merged; then all stay.
    """
    unmerge = merge(model, attached)
    after = {n: t.clone() for n, t in raw(model).items()}
    unmerge()()
    first = {t.data_ptr(): n for n, t in reversed(raw(model).items())}
    moved = {n: (after[n] - t).to_sparse() for n, t in raw(model).items() if first[t.data_ptr()] == n}
    return {n: t.coalesce() for n, t in moved.items() if t._nnz()}


def total(*changes):
    """The sum of changes, as of a language and a task."""
    names = dict.fromkeys(n for one in changes for n in one)
    return {n: functools.reduce(torch.add, (one[n] for one in changes if n in one)).coalesce() for n in names}


@torch.no_grad()
def applied(model, change):
    """Add a change to the weights; returns the undo, which restores them bit for bit."""
    tensors = raw(model)
    before = {n: tensors[n].clone() for n in change}
    for n, t in change.items():
        tensors[n].add_(t.to_dense())

    def undo():
        for n, t in before.items():
            tensors[n].copy_(t)

    return undo


def mask_of(change):
    """The entries of a change that are not zero."""
    return {n: t.to_dense() != 0 for n, t in change.items()}


def keep(thing, path):
    """Write a mask or a change as safetensors: positions and, of a change, values. Returns the path."""
    flat = {}
    for n, t in thing.items():
        dense = t.to_dense() if t.is_sparse else t
        at = dense.flatten().nonzero()[:, 0]
        flat |= {f"{n}|positions": at.int(), f"{n}|shape": torch.tensor(dense.shape)}
        if dense.dtype != torch.bool:
            flat[f"{n}|values"] = dense.flatten()[at].contiguous()
    save_file(flat, path := pathlib.Path(path))
    return path


def kept(path):
    """The mask or the change of a file that `keep` wrote. PeftlabError for another file."""
    try:
        flat = load_file(path)
    except (OSError, SafetensorError):
        flat = {}
    names = [key.removesuffix("|shape") for key in flat if key.endswith("|shape")]
    if not names:
        raise PeftlabError(f"{path} holds no mask; write one there with peftlab.sparsity.keep")
    found = {}
    for n in names:
        at, shape, values = flat[f"{n}|positions"].long(), flat[f"{n}|shape"].tolist(), flat.get(f"{n}|values")
        t = torch.zeros(shape, dtype=torch.bool if values is None else values.dtype).flatten()
        t[at] = True if values is None else values
        found[n] = t.view(shape) if values is None else t.view(shape).to_sparse().coalesce()
    return found
