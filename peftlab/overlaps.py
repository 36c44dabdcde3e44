"""What layers that share a ProPETL prototype take of it: how far their masks overlap."""

import torch

from . import masks
from .backbones import layer_of
from .errors import PeftlabError
from .methods.unified import Masked


def overlap(model, attached, seed=0):
    """{"places": [(layer, site)], "overlap": [[J]], "chance": [[J]]}, J = |both| / |either| of two places' masks.

    None for places that have no prototype in common. chance: the same of masks that are as dense and random, drawn with
    the seed; two of density p have p / (2 - p) on average. The masks of tasks, which are the same in all layers, are
    left out. PeftlabError where nothing of `attached` has such masks.
    """
    found = [(d, m) for d, m in attached.placed if isinstance(d, Masked)]
    if not found:
        raise PeftlabError("none of these deltas has masks of a prototype; attach propetl-adapter, -prefix or -lora")
    taken = [d.masks() for d, _ in found]
    draw = torch.Generator().manual_seed(seed)
    random = [[torch.randperm(M.numel(), generator=draw) < M.sum().cpu() for M in one] for one in taken]
    whose = [d.group[d.first] for d, _ in found]
    return dict(
        places=[(layer_of(m), m.site) for _, m in found], overlap=shared(taken, whose), chance=shared(random, whose)
    )


def shared(taken, whose):
    flat = [torch.cat([M.flatten().cpu() for M in one]) for one in taken]
    return [
        [masks.share(a, b) if one is other else None for b, other in zip(flat, whose, strict=True)]
        for a, one in zip(flat, whose, strict=True)
    ]
