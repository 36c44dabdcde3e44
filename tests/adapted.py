"""What the tests of adapters share: families, attached deltas that have moved, and what a module takes and gives."""

import pytest
import tiny
import torch

import peftlab as pl

EACH = pytest.mark.parametrize("family", tiny.CONFIGS)


def shaken(m, name, where=None, layers=None, **settings):
    """Attach with every parameter moved away from its start."""
    undo = pl.attach(m, pl.recipe(name, where=where, layers=layers, **settings))
    torch.manual_seed(0)
    for d in undo.deltas:
        for p in d.parameters():
            p.data += 0.2 * torch.randn_like(p)
    return undo


def watched(m, modules, **batch):
    """{module: (what enters, what leaves)} in one pass."""
    seen = {}
    keep = lambda module, args, y: seen.update({module: (args[0], y[0] if isinstance(y, tuple) else y)})
    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        m(**(batch or tiny.batch(m)))
    for h in handles:
        h.remove()
    return seen


def inside(block, site):
    return [c for c in block.modules() if getattr(c, "site", None) == site]


def blocks(m):
    return [b for b in m.modules() if getattr(b, "site", None) == "block"]
