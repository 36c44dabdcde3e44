"""Sparse deltas: only chosen entries of the weights change; their positions and changes are all that is stored."""

import torch

from .. import masks
from ..delta import WeightDelta
from ..scores import SCORES, Look
from . import Choice, Knob, method
from .tensors import zeros

P = dict(p=Knob(0.005, 0.0001, 1.0, "density", log=True))
SELECT = dict(select=Choice("global", tuple(masks.SELECTIONS), "chosen among"))
WHERE = "q k v o up down"


class Mask(WeightDelta):
    """W' = W + scatter(v, I)

    I holds the positions of the entries with the best scores in all layers, v their changes: they alone are stored and
    trained, so that weight decay and optimizer moments never touch a frozen entry. A score that needs data is computed
    before training, and the mask then stays as it is. n: how many batches such a score sees.
    """

    score = "random"

    def __init__(self, m, p, select, n=0, **more):
        super().__init__()
        self.at, self.p, self.select, self.n, self.ready = (m,), p, select, n, False  # in a tuple: no part of the delta
        self.settings = (p, select, n, *more.values())

    def joined(self):
        """One list of positions for all deltas with these settings; the first of them has it."""
        self.peers = tuple(d for d in self.group if d.settings == self.settings)
        if self is self.peers[0]:
            score = SCORES["random" if SCORES[self.score].data else self.score]
            I = self.chosen(score.make(Look(self.weights())))
            self.register_buffer("I", I.int())  # (k)
            self.v = zeros(self.at[0], len(I))  # (k)
            self.register_load_state_dict_post_hook(lambda delta, _: delta.restored())
            self.cut()

    @property
    def blind(self):
        """Whether its entries are still random, as the data has not been seen."""
        return SCORES[self.score].data and not self.ready

    def places(self):
        return [d.at[0] for d in self.peers]

    def weights(self):
        """The frozen tensors, without what any delta makes of them."""
        return [m.parametrizations[self.tensor].original for m in self.places()]

    def chosen(self, scores, p=None):
        return masks.select(scores, p or self.p, self.select, self.places())

    def cut(self):
        """Where in the list the entries of each layer begin, and where its positions do."""
        sizes = torch.tensor([0, *(W.numel() for W in self.weights())]).cumsum(0)
        bounds = torch.searchsorted(self.I, sizes.to(self.I)).tolist()
        for d, a, b, start in zip(self.peers, bounds, bounds[1:], sizes.tolist(), strict=False):
            d.part = a, b, start

    def restored(self):
        """The mask came from a file: it is not looked for again."""
        self.cut()
        self.found(True)

    def found(self, ready):
        for d in self.peers:
            d.ready = ready

    def forward(self, W):
        (a, b, start), first = self.part, self.peers[0]
        return W.flatten().index_add(0, first.I[a:b] - start, first.v[a:b]).view_as(W)

    def begin(self, view):
        """Look for the mask, once, with the data."""
        if self is self.peers[0] and self.blind:
            self.found(True)  # before it looks: it may train these deltas themselves
            try:
                self.look(view)
            except BaseException:  # interrupted or diverged: the next training looks again
                self.found(False)
                raise

    def look(self, view):
        self.settle(self.chosen(SCORES[self.score].make(Look(self.weights(), view, self.n))))

    @torch.no_grad()
    def settle(self, I, values=None):
        """These entries change; they begin at 0, or at these values."""
        self.I.copy_(I)
        self.cut()
        if values is not None:
            self.v.copy_(torch.cat([t.flatten() for t in values])[I])


def sparse(name, title, paper, view, **facts):
    """The decorator of a mask, with what all masks share."""
    shared = dict(review="partial/delta mask", delta_tuning="specification/learned", where=WHERE, lr=3e-2)
    return method(name, title=title, paper=paper, sparse_view=view, **shared | dict(knobs=P | SELECT) | facts)


@sparse(
    "random-mask", "random mask", "2211.15583", "random", aliases=("random",), delta_tuning="specification/heuristic"
)
class RandomMask(Mask):
    """W' = W + scatter(v, I), I random"""


@sparse(
    "magnitude-mask",
    "MagPruning",
    "2211.15583",
    "rule-based",
    aliases=("magnitude", "magpruning"),
    delta_tuning="specification/heuristic",
)
class MagnitudeMask(Mask):
    """W' = W + scatter(v, I), I = the entries largest in |W|"""

    score = "magnitude"


def seen(score):
    """The knobs of a mask whose score needs data."""
    return P | SELECT | dict(n=Knob(SCORES[score].batches, 1, 600, "batches seen", log=True))


@sparse(
    "sam",
    "SAM (second-order approximation)",
    "2211.15583 eq. 6",
    "projection-based",
    aliases=("gradient-mask",),
    knobs=seen("gradient"),
)
class SAM(Mask):
    """W' = W + scatter(v, I), I = the entries with the largest (Σ ∂L/∂W)²

    The second-order approximation method of Fu et al.: the best entries of a quadratic model of the loss are those with
    the largest g²/h, and a bound on the curvature h cancels it. It has no relation to sharpness-aware minimisation.
    """

    score = "gradient"


@sparse(
    "fish",
    "FISH Mask",
    "2111.09839 eq. 3",
    "–",
    aliases=("fish-mask",),
    review="partial/weight mask",
    knobs=seen("fisher"),
)
class Fish(Mask):
    """W' = W + scatter(v, I), I = the entries with the largest Σ (∂L/∂W)² over single rows"""

    score = "fisher"


@sparse("child-tuning-d", "Child-Tuning-D", "2109.05687", "–", aliases=("child-tuning",), knobs=seen("squares"))
class ChildTuningD(Mask):
    """W' = W + scatter(v, I), I = the entries with the largest Σ (∂L/∂W)² over batches

    The gradient of all other entries is masked: the child network of the task learns, the rest stays.
    """

    score = "squares"
