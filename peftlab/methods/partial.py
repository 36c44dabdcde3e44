"""Partial deltas: a chosen part of the existing parameters changes, nothing is added to the model."""

import torch
from torch import nn

from ..backbones import n_layers
from ..delta import WeightDelta
from ..families import LEAVES
from . import Knob, method
from .baselines import Full
from .tensors import zeros


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
    sites = LEAVES
    needs = "trains biases,"

    def __init__(self, m):
        super().__init__()
        self.d = zeros(m, *m.bias.shape)

    @classmethod
    def fits(cls, m):
        return getattr(m, "bias", None) is not None

    def forward(self, b):
        return b + self.d


class Moved(WeightDelta):
    """W' = W + D, every entry free; what the gradient of D sees is the method's."""

    def __init__(self, m, p):
        super().__init__()
        self.D, self.p = zeros(m, *m.weight.shape), p

    def drawn(self, p):
        """A mask that keeps each entry with probability p."""
        return (torch.rand_like(self.D) < p).to(self.D)


@method(
    "child-tuning-f",
    title="Child-Tuning-F",
    review="partial/delta mask",
    delta_tuning="specification/heuristic",
    sparse_view="–",
    paper="2109.05687",
    where="q k v o up down",
    lr=5e-4,
    knobs=dict(p=Knob(0.3, 0.01, 1.0, "share learning")),
)
class ChildTuningF(Moved):
    """W' = W + D, ∂L/∂D ← (M/p) ⊙ ∂L/∂D, M ~ Bernoulli(p) anew in each step

    A regulariser, not a sparse model: every entry has moved in the end.
    """

    def forward(self, W):
        if not self.training:
            return W + self.D
        still = self.D.detach()
        return W + still + self.drawn(self.p) / self.p * (self.D - still)


@method(
    "mixout",
    title="Mixout",
    review="partial/delta mask",
    delta_tuning="–",
    sparse_view="random",
    paper="1909.11299 eq. 1",
    where="q k v o up down",
    lr=1e-3,
    knobs=dict(p=Knob(0.7, 0.0, 0.95, "share reset")),
)
class Mixout(Moved):
    """W' = W + M ⊙ D/(1 - p), M ~ Bernoulli(1 - p) in training; W + D afterwards

    Dropout towards the pretrained weights. A regulariser, not a sparse model: every entry has moved in the end.
    """

    def forward(self, W):
        return W + (self.drawn(1 - self.p) * self.D / (1 - self.p) if self.training else self.D)


@method(
    "threshold-mask",
    title="Threshold-Mask",
    review="partial/weight mask",
    delta_tuning="specification/learned",
    sparse_view="–",
    paper="2004.12406",
    where="q k v o up down",
    lr=5e-3,
    knobs=dict(tau=Knob(0.01, 0.0, 0.1, "threshold τ")),
)
class ThresholdMask(WeightDelta):
    """W' = W ⊙ 1[S ≥ τ]

    No weight changes: those whose learnt score S falls below τ are switched off. The step passes its gradient on as if
    it were the identity.
    """

    def __init__(self, m, tau):
        super().__init__()
        self.S, self.tau = nn.Parameter(torch.full_like(m.weight.detach(), 2 * tau)), tau  # all on

    def forward(self, W):
        return W * ((self.S >= self.tau).to(W) + (self.S - self.S.detach()))  # exactly 0 or 1


@method(
    "last-layer",
    title="last-layer tuning",
    review="partial/selective",
    delta_tuning="specification/heuristic",
    sparse_view="rule-based",
    paper="2203.06904",
    where="q k v o up down norm1 norm2",
    lr=5e-4,
    knobs=dict(n=Knob(1, 1, 12, "layers")),
)
class LastLayer(Full):
    """W' = W + ΔW in the last n layers, nothing below"""

    sites = tuple(s for s in LEAVES if s != "embed")

    def __init__(self, m, n):
        super().__init__(m)

    @classmethod
    def among(cls, modules, model, n):
        return [m for m in super().among(modules, model) if m.layer >= n_layers(model) - n]


@method(
    "selective",
    title="selective-module tuning",
    aliases=("selective-module",),
    review="partial/selective",
    delta_tuning="specification/heuristic",
    sparse_view="random",
    paper="2203.06904",
    where="q k v o up down norm1 norm2",
    lr=5e-4,
    knobs=dict(p=Knob(0.1, 0.01, 1.0, "share chosen")),
)
class Selective(Full):
    """W' = W + ΔW in modules chosen at random, a share p of all of them"""

    sites = LastLayer.sites

    def __init__(self, m, p):
        super().__init__(m)

    @classmethod
    def among(cls, modules, model, p):
        found = super().among(modules, model)
        keep = torch.randperm(len(found))[: max(1, round(p * len(found)))]
        return [found[i] for i in sorted(keep.tolist())]
