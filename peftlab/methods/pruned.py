"""Deltas of which only a part is there: pruned before they learn, by a score, or after all of them have learnt."""

import contextlib

import torch
from torch import nn

from .. import masks
from ..scores import SCORES, Importance, Look, Score
from ..training import stored
from ..view import trial
from . import Choice, Knob, get, method, prompts
from .adapters import Adapter, ScaledParallel
from .dense_first import STEPS, learnt
from .tensors import normal

SHARE = dict(p=Knob(0.5, 0.001, 1.0, "density"))


class Pruned:
    """What deltas share of whose `matrices` only some numbers are there; the others are 0, and no part of the delta.

    The matrices of all deltas that are pruned alike are one list of numbers, of which the share p stays. I holds their
    positions, v their values, which start as they were drawn; the first of the deltas has both. What `forward` reads is
    put together of them. A delta that `waits` for the data has random ones until `look(view)` has found the best.
    """

    matrices, select, waits = ("D", "U"), "global", False

    def prune(self, p, *how):
        """Called at the end of __init__: how much stays, and what else must agree for a common list."""
        self.p, self.alike = p, (p, *how)

    def attach(self, m, model):
        self.at = (m,)  # in a tuple: the layer is not a part of its delta
        return super().attach(m, model)

    def joined(self):
        self.peers = tuple(d for d in self.group if d.alike == self.alike)
        if self is not self.peers[0]:
            return
        self.drawn = [getattr(d, name).detach() for d, name in self.held()]
        self.shapes = [t.shape for t in self.drawn]
        I = self.chosen(SCORES["random"].make(Look(self.drawn)) if self.waits else self.scores(self.drawn))
        self.register_buffer("I", I.int())  # (k)
        self.v = nn.Parameter(self.values(I))  # (k)
        self.register_load_state_dict_post_hook(lambda delta, _: delta.restored())
        self.put([None] * len(self.drawn))
        self.cut()
        if not self.waits:
            self.found()

    def held(self):
        return [(d, name) for d in self.peers for name in d.matrices]

    def put(self, tensors):
        for (d, name), t in zip(self.held(), tensors, strict=True):
            setattr(d, name, t)

    def chosen(self, scores):
        """Positions of the numbers that stay."""
        return masks.select(scores, self.p, self.select, [d.at[0] for d, _ in self.held()])

    def values(self, I):
        return torch.cat([t.flatten() for t in self.drawn])[I.to(self.drawn[0].device)]

    def cut(self):
        """Where in the list the numbers of each matrix begin, and where its positions do."""
        sizes = torch.tensor([0, *(shape.numel() for shape in self.shapes)]).cumsum(0)
        bounds = torch.searchsorted(self.I, sizes.to(self.I)).tolist()
        parts = iter(zip(bounds, bounds[1:], sizes.tolist(), self.shapes, strict=False))
        for d in self.peers:
            d.take({name: next(parts) for name in d.matrices}, self.I)

    def take(self, parts, I):
        self.parts = parts

    def __getattr__(self, name):
        """A matrix is put together when it is read, unless all of it is there."""
        t = super().__getattr__(name)
        return self.matrix(name) if t is None and name in self.matrices else t

    def matrix(self, name):
        (a, b, start, shape), first = self.parts[name], self.peers[0]
        return first.v.new_zeros(shape.numel()).index_add(0, first.I[a:b] - start, first.v[a:b]).view(shape)

    @contextlib.contextmanager
    def whole(self):
        """All numbers are there for a while, as they were drawn; gives the matrices."""
        tensors = [nn.Parameter(t.to(self.v, copy=True), requires_grad=False) for t in self.drawn]
        try:
            self.put(tensors)
            yield tensors
        finally:
            self.put([None] * len(tensors))

    def begin(self, view):
        """Look, once, what the data wants to stay."""
        if self is self.peers[0] and self.waits:
            self.settle(self.look(view))
            self.found()

    @torch.no_grad()
    def settle(self, I):
        self.I.copy_(I)
        self.v.copy_(self.values(I))
        self.cut()

    def found(self):
        """Nothing has to be looked for any more, so that what was drawn and did not stay may go."""
        self.drawn = None
        for d in self.peers:
            d.waits = False

    def restored(self):
        """The list came from a file."""
        first = self.peers[0]
        first.cut()
        first.found()


def synflow(look):
    """|θ|·∂R/∂|θ|, R = 1ᵀ |U| relu(|D| 1) of each adapter: how much of what flows through it passes this entry.

    Only the sizes of the weights matter, no data.
    """
    sizes = [W.abs() for W in look.weights]  # D, U, D, U, …
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    return [s for D, U in pairs for s in (D * U.sum(0)[:, None], U * D.sum(1))]


PRUNERS = {name: SCORES[name] for name in ("random", "magnitude", "snip", "grasp")} | dict(synflow=Score(synflow, 0))


@method(
    "sparse-adapter",
    title="SparseAdapter",
    aliases=("sparseadapter",),
    review="unified",
    delta_tuning="addition/adapter",
    sparse_view="–",
    paper="2210.04284",
    where="o down",
    lr=1e-2,
    knobs=dict(r=Knob(16, 1, 64, "bottleneck", log=True))
    | SHARE
    | dict(
        score=Choice("snip", tuple(PRUNERS), "score"),
        select=Choice("global", ("global", "tensor", "row", "n-of-m", "layer"), "chosen among"),
        n=Knob(SCORES["snip"].batches, 1, 600, "batches seen", log=True),
    ),
)
class SparseAdapter(Pruned, Adapter):
    """y' = y + U relu(D y + c) + e, where only the entries of D and U with the best scores are there

    A sequential adapter, pruned before it learns; c and e stay whole. Twice as wide and half as dense it has as many
    entries. D and U are drawn alike, and small: with U = 0 most scores could not tell its entries apart. So it is not
    quite the identity at the start.
    """

    def __init__(self, m, r, p, score, select, n):
        super().__init__(m, r)
        D, U = self.D.shape, self.U.shape
        std = 0.02 * (768 / len(self.U)) ** 0.5  # its authors draw both with 0.02, for a width of 768
        self.D, self.U = normal(m, *D, std=std), normal(m, *U, std=std)
        self.score, self.select, self.n, self.waits = score, select, n, PRUNERS[score].data
        self.prune(p, score, select, n)

    def scores(self, tensors, view=None):
        return PRUNERS[self.score].make(Look(tensors, view, self.n))

    def look(self, view):
        with self.whole() as tensors:
            found = self.scores(tensors, view)
            view.holds(stored(tensors) + view.report["dense_bytes"])
        return self.chosen(found)


class Important(Pruned):
    """All learn for some steps and add up Σ |Δθ·∂L/∂θ|; what is most important begins anew, as it was drawn.

    All classes of this kind have one list, so that a prefix and an adapter share the budget. `units` says along which
    dimension of a matrix its units lie; a matrix without one is a unit. Of the last unit only what the budget leaves.
    """

    kin, waits = "mam", True

    def prune(self, p, unit, steps):
        super().prune(p, unit, steps)
        self.by_unit, self.steps, self.history = unit == "unit", steps, []

    @property
    def matrices(self):
        return tuple(self.units)

    def chosen(self, scores):
        each = iter(scores)
        parts = [([next(each) for _ in d.units], d.units.values()) for d in self.peers]
        return super().chosen([s for part in parts for s in means(*part)] if self.by_unit else scores)

    def look(self, view):
        others = learnt(view.model)
        with self.whole() as tensors, trial(view, tensors, [self.v], others):
            importance = Importance(tensors)
            self.history += view.learn(self.steps, get("mam").lr, [importance])
        return self.chosen(importance.total)


def means(scores, dims):
    """For each entry the mean score of its unit: what has the same place in the dimension of each tensor."""
    along = [(s, d) for s, d in zip(scores, dims, strict=True) if d is not None]
    mean = torch.cat([s.movedim(d, 0).reshape(s.shape[d], -1) for s, d in along], 1).mean(1)
    spread = lambda s, d: mean.expand(s.movedim(d, -1).shape).movedim(-1, d)
    return [s.mean().expand(s.shape) if d is None else spread(s, d) for s, d in zip(scores, dims, strict=True)]


KEPT = SHARE | STEPS
UNIT = dict(unit=Choice("entry", ("entry", "unit"), "pruned by"))
MAM = dict(review="hybrid/manual", sparse_view="–", paper="2305.16597")


@method(
    "pruned-prefix",
    title="pruned prefix",
    **MAM,
    delta_tuning="addition/prompt",
    where="attn",
    lr=1e-2,
    knobs=dict(n=Knob(8, 1, 64, "prefix length", log=True)) | KEPT | UNIT,
)
class PrunedPrefix(Important, prompts.Prefix):
    """k' = [P_k; k], v' = [P_v; v], only the entries with the largest Σ |Δθ·∂L/∂θ|

    A unit is one vector of the prefix, its key and its value. A vector of which nothing is left takes no attention.
    """

    units = dict(P_k=0, P_v=0)

    def __init__(self, m, n, p, unit, before):
        super().__init__(m, n)
        self.prune(p, unit, before)

    def take(self, parts, I):
        super().take(parts, I)
        self.left = sorted({row for a, b, start, (_, d) in parts.values() for row in ((I[a:b] - start) // d).tolist()})

    def matrix(self, name):
        return super().matrix(name)[self.left]  # (≤ n h·d)

    def forward(self, k, v):
        P_k, P_v = self.P_k, self.P_v
        return (prompts.before(P_k, k), prompts.before(P_v, v)) if len(P_k) else (k, v)


@method(
    "pruned-parallel",
    title="pruned parallel adapter",
    **MAM,
    delta_tuning="addition/adapter",
    where="down",
    lr=7e-3,
    knobs=get("scaled-parallel").knobs | KEPT | UNIT,
)
class PrunedParallel(Important, ScaledParallel):
    """y' = y + s·(U relu(D x + c) + e), only the entries with the largest Σ |Δθ·∂L/∂θ|

    A unit is one number of the bottleneck, with its row of D, its column of U and its entry of c; e is a unit too. As
    U = 0 at the start, a training of few steps finds little importance in D.
    """

    units = dict(D=0, U=1, c=0, e=None)

    def __init__(self, m, r, s, p, unit, before):
        super().__init__(m, r, s)
        self.prune(p, unit, before)
