"""Which entries of a backbone a recipe changes: a mask of booleans for every tensor, and what two masks share."""

import torch

from .attachment import attach
from .checkpoint import merge
from .methods import get
from .recipes import recipe


@torch.no_grad()
def changes(model, what, seed=0):
    """{parameter's name: booleans of its shape} of every tensor that the recipe can change, W' ≠ W.

    Found by trying: the deltas get random numbers and are merged, and all is undone. Rows of methods that do not merge
    (an adapter, a prompt) leave every weight as it is, so they are not in it.
    """
    rows = [row for row in recipe(what) if get(row["method"]).merges]
    if not rows:
        return {}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        undo = attach(model, rows, seed=seed)
        torch.manual_seed(seed)
        for delta in undo.deltas:
            for p in delta.own().values():
                if isinstance(p, torch.nn.Parameter) and p.requires_grad:
                    p.add_(torch.randn_like(p))
        unmerge = merge(model, undo)
    after = {name: p.detach() != before[name] for name, p in model.named_parameters()}
    unmerge()()
    return {name: mask for name, mask in after.items() if mask.any()}


def places(model):
    """{parameter's name: (layer or None, site)} of the tensors at labelled places, a bias beside its weight."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "site", None), str):
            layer = None if module.site == "embed" else module.layer
            found |= {f"{name}.{n}": (layer, module.site) for n, _ in module.named_parameters(recurse=False)}
    return found


def share(mask, other=None):
    """Share of the entries that change; with `other`, Jaccard's |both| / |either| (None where neither changes any)."""
    if other is None:
        return float(mask.float().mean())
    either = (mask | other).sum()
    return float((mask & other).sum() / either) if either else None


def blocks(mask, most=48):
    """A mask (out in) as at most `most` × `most` blocks, each the share of its entries that change."""
    flat = mask.float().reshape(len(mask), -1) if mask.ndim > 1 else mask.float()[None]
    cut = [t.unbind(0) for t in flat.tensor_split(min(most, len(flat)))]
    rows = [torch.stack(t).mean(0) for t in cut]
    return [[float(c.mean()) for c in row.tensor_split(min(most, len(row)))] for row in rows]
