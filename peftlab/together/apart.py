"""One module, K runs: each has numbers of its own in it, and torch.func.vmap works on all at once."""

import contextlib

from torch import nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from ..rows import EVERY, Every


class Apart(Every):
    """The rows of K runs, one run's behind the other's.

    lent: owner -> {name: its tensor for each run (K …)}, settings: owner -> {(module, attribute): (K)}. An owner is a
    delta, or a module whose weights the runs have for themselves.
    """

    def __init__(self, k):
        self.k, self.lent, self.settings = k, {}, {}

    def call(self, f, *tensors):
        owner = getattr(f, "__self__", f)
        if owner not in self.lent:
            return f(*tensors)
        called = Called(owner, f.forward if f is owner else f)
        mine = {f"owner.{n}": t for n, t in self.lent[owner].items()}
        keys, values = [*self.settings[owner]], [*self.settings[owner].values()]

        def one(mine, values, *tensors):
            return functional_call(called, mine, (dict(zip(keys, values, strict=True)), *tensors))

        found = vmap(one, randomness="different")(mine, values, *map(self.apart, tensors))
        return tree_map(lambda t: t.flatten(0, 1), found)

    def apart(self, t):
        """(K·b …) as (K b …)"""
        return t.unflatten(0, (self.k, -1))

    def splice(self, t, f):
        return self.call(f, t) if hasattr(f, "__self__") else f(t)

    @contextlib.contextmanager
    def over(self, deltas, modules):
        """These deltas and modules take the rows of all runs meanwhile."""
        for d in deltas:
            d.rows = self
        for m in modules:
            m.forward = Within(self, m)
        try:
            yield
        finally:
            for d in deltas:
                d.rows = EVERY
            for m in modules:
                del m.forward


class Within:
    """The forward of a module in which each run has its own weights."""

    def __init__(self, rows, m):
        self.rows, self.forward = rows, m.forward

    def __call__(self, x):
        return self.rows.call(self.forward, x)


class Called(nn.Module):
    """A method as a module, so that its owner can be lent other tensors and settings for one call."""

    def __init__(self, owner, method):
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, settings, *tensors):
        before = {(m, name): getattr(m, name) for m, name in settings}
        try:
            for (m, name), value in settings.items():
                setattr(m, name, value)
            return self.method(*tensors)
        finally:
            for (m, name), value in before.items():
                setattr(m, name, value)


def stacked(tensors):
    """Tensors (…) of K runs as one (K …); the smaller are filled up with zeros."""
    wide = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    every = tensors[0].new_zeros(len(tensors), *wide)
    for i, t in enumerate(tensors):
        every[(i, *map(slice, t.shape))] = t
    return every
