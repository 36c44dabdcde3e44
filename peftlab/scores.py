"""Scores of the entries of weights, from which a mask takes the best: from the weights, the loss, or a training.

A score is a function of a `Look`, which knows the weights and, where the score needs data, a view of it.
"""

from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .training import measure, stored
from .view import View, add, learning

SCORES = {}


class Score(NamedTuple):
    """make(look) -> a tensor for each weight. data: whether it needs any; batches: how many it sees on its own."""

    make: object
    batches: int

    @property
    def data(self):
        return self.batches > 0


class Look(NamedTuple):
    """weights, a `View` of model and data, how many batches to see, and moved(): ΔW of a training so far."""

    weights: list
    view: View = None
    batches: int = 0
    moved: object = None

    def gradients(self, **how):
        return self.view.gradients(self.weights, self.batches, **how)


def score(batches=0):
    """Register a score: how many batches it sees (0: it needs no data)."""

    def keep(make):
        SCORES[make.__name__.strip("_").replace("_", "-")] = Score(make, batches)
        return make

    return keep


def total(lists):
    sums = None
    for one in lists:
        sums = add(sums, one)
    return sums


@score()
def random(look):
    """Neither rule nor data."""
    return [torch.rand(W.shape).to(W.device) for W in look.weights]


@score()
def magnitude(look):
    """|θ|"""
    return [W.abs() for W in look.weights]


@score(16)
def gradient(look, **how):
    """|Σ g| over batches: where the loss falls fastest; it ranks the entries as (Σ g)² does."""
    return [g.abs() for g in total(look.gradients(**how))]


@score(16)
def absolute(look):
    """Σ |g| over batches"""
    return total([g.abs() for g in one] for one in look.gradients())


@score(16)
def squares(look):
    """Σ g² over batches: cheap, and not the Fisher information, as the rows of a batch are averaged before."""
    return total([g * g for g in one] for one in look.gradients())


@score(4)
def fisher(look):
    """Σ g² over single rows, the diagonal of the empirical Fisher information."""
    return total([g * g for g in one] for one in look.gradients(single=True))


@score(4)
def curvature(look):
    """g²/h, h the diagonal of the Hessian: what the loss can fall by, by the quadratic model, with this entry alone.

    Where h is not positive that model has no least, and a few probes cannot tell a small h from 0: any h below the
    mean |h| (of the tensor where that is largest) counts as this mean.
    """
    see = again(look)
    g = total(see().gradients(look.weights, look.batches))
    h = see().curvature(look.weights, look.batches)
    least = max(float(t.abs().mean()) for t in h)
    return [(a / look.batches) ** 2 / b.clamp_min(least) for a, b in zip(g, h, strict=True)]


def again(look):
    """A function that gives views of the same batches, as often as it is called."""
    seen = [next(look.view.batches) for _ in range(look.batches)]
    return lambda: View(look.view.model, iter(seen), report=look.view.report)


@score(16)
def snip(look):
    """|θ·Σ g|: how much the loss would change without this entry, to first order."""
    return [(W * g).abs() for W, g in zip(look.weights, total(look.gradients()), strict=True)]


@score(4)
def grasp(look):
    """θ·H g, g = Σ ∂L/∂θ and H its derivative: how much of |g|²/2 would go without this entry, to first order.

    Below 0 the gradient would grow: such entries are the first to go.
    """
    see = again(look)
    g = total(see().gradients(look.weights, look.batches))
    return [W.detach() * h for W, h in zip(look.weights, steered(see(), look.weights, g, look.batches), strict=True)]


def steered(view, tensors, direction, n):
    """H v, the change of the summed gradient of the next n batches along this direction."""
    view.model.eval()
    with learning(tensors), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        changes = total(along(next(view.batches), view, tensors, direction) for _ in range(n))
    view.holds(4 * stored(changes))
    return changes


def along(batch, view, tensors, direction):
    with measure(view.model, graph := {}):  # the gradient's own graph is kept as well
        first = torch.autograd.grad(view.model(**batch).loss, tensors, create_graph=True)
    view.report["saved_bytes"] = max(graph["saved_bytes"], view.report.get("saved_bytes", 0))
    return torch.autograd.grad(first, tensors, direction)


@score(1)
def moved(look):
    """|Δθ| after a training of all entries."""
    return [D.abs() for D in look.moved()]


class Importance:
    """Adds up |Δθ·∂L/∂θ| of tensors in training, the first-order effect of taking each change back."""

    def __init__(self, tensors):
        self.tensors, self.before = tensors, [t.detach().clone() for t in tensors]
        self.total = [torch.zeros_like(t) for t in self.before]

    @torch.no_grad()
    def after_step(self, step, steps):
        for total, t, b in zip(self.total, self.tensors, self.before, strict=True):
            total += ((t - b) * t.grad).abs()
