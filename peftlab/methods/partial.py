"""Partial deltas: a chosen part of the existing parameters changes, nothing is added to the model."""

import torch

from ..delta import WeightDelta
from ..errors import PeftlabError
from ..families import SITES
from . import Knob, method
from .tensors import zeros

DENSITY = dict(p=Knob(0.005, 0.0001, 1.0, "density", log=True))


@method(
    "bitfit",
    title="BitFit",
    aliases=("bias",),
    review="partial/bias",
    delta_tuning="specification/heuristic",
    sparse_view="rule-based",
    paper="2106.10199",
    where="q k v o up down norm1 norm2 embed",
    lr=1e-2,
)
class BitFit(WeightDelta):
    """b' = b + Δb for every bias b"""

    tensor = "bias"
    sites = tuple(s for s in SITES if s != "attn")
    needs = "trains biases,"

    def __init__(self, m):
        super().__init__()
        self.d = zeros(m, *m.bias.shape)

    @classmethod
    def fits(cls, m):
        return getattr(m, "bias", None) is not None

    def forward(self, b):
        return b + self.d


class Mask(WeightDelta):
    """W' = W + scatter(v, I)

    I holds the round(p·|W|) entries with the highest score, fixed at the start; only their changes v are stored and
    trained, so that weight decay and optimizer moments never touch a frozen entry.
    """

    def __init__(self, m, p):
        super().__init__()
        W, k = m.weight.detach(), round(p * m.weight.numel())
        if not 0 < k <= W.numel():
            raise PeftlabError(
                f"density p = {p} picks {k} of the {W.numel()} entries at site {getattr(m, 'site', '?')}; "
                f"take p between {1 / W.numel():.1g} and 1"
            )
        self.register_buffer("I", self.score(W).flatten().topk(k).indices.sort().values.int())  # (k)
        self.v = zeros(m, k)  # (k)

    def forward(self, W):
        return W.flatten().index_add(0, self.I, self.v).view_as(W)


@method(
    "random-mask",
    title="random mask",
    aliases=("random",),
    review="partial/delta mask",
    delta_tuning="specification/heuristic",
    sparse_view="random",
    paper="2211.15583",
    where="q k v o up down",
    lr=1e-2,
    knobs=DENSITY,
)
class RandomMask(Mask):
    """W' = W + scatter(v, I), I random"""

    def score(self, W):
        return torch.rand(W.shape).to(W.device)


@method(
    "magnitude-mask",
    title="magnitude mask",
    aliases=("magnitude",),
    review="partial/delta mask",
    delta_tuning="specification/heuristic",
    sparse_view="rule-based",
    paper="2211.15583",
    where="q k v o up down",
    lr=1e-2,
    knobs=DENSITY,
)
class MagnitudeMask(Mask):
    """W' = W + scatter(v, I), I = the entries largest in |W|"""

    def score(self, W):
        return W.abs()
