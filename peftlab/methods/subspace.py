"""Reparameterized deltas in a random subspace: the whole change of the model is a few shared numbers."""

import torch
from torch import nn
from torch.nn import functional as F

from ..delta import WeightDelta
from . import Knob, method
from .tensors import zeros


@method(
    "said",
    title="intrinsic SAID",
    aliases=("intrinsic", "fastfood"),
    review="reparameterized/low-rank",
    delta_tuning="reparameterization/dimension",
    sparse_view="–",
    paper="2012.13255 eq. 4",
    where="q k v o up down",
    lr=5e-3,
    knobs=dict(d=Knob(256, 1, 8192, "dimension d", log=True)),
)
class SAID(WeightDelta):
    """W' = W + λ·H G Π H S θ

    θ has d numbers for the whole model, λ is one for each weight. H is the Walsh-Hadamard transform; the signs S, the
    order Π and the Gaussians G follow from a seed, so that no projection is ever stored.
    """

    def __init__(self, m, d):
        super().__init__()
        self.theta, self.l = zeros(m, d), nn.Parameter(torch.ones(()).to(m.weight))
        self.register_buffer("seed", torch.randint(2**31, ()))
        size = 1 << (max(d, m.weight.numel()) - 1).bit_length()
        for name in ("S", "G", "order"):
            start = m.weight.detach().new_zeros(size)
            self.register_buffer(name, start.long() if name == "order" else start, persistent=False)
        self.draw()
        self.register_load_state_dict_post_hook(SAID.draw)

    def draw(self, _=None):
        """The projection of this seed."""
        drawn, size = torch.Generator().manual_seed(int(self.seed)), len(self.S)
        self.S.copy_(torch.randint(2, (size,), generator=drawn) * 2 - 1)
        self.order.copy_(torch.randperm(size, generator=drawn))
        self.G.copy_(torch.randn(size, generator=drawn))

    def joined(self):
        if self is not self.group[0]:
            self.theta = None  # the first one's is everybody's

    def forward(self, W):
        v = F.pad(self.group[0].theta, (0, len(self.S) - len(self.group[0].theta)))
        v = hadamard(self.G * hadamard(self.S * v)[self.order])
        return W + self.l * v[: W.numel()].view_as(W)


def hadamard(v):
    """The orthogonal Walsh-Hadamard transform of a vector of 2^k numbers, in k·2^k additions."""
    n, h = len(v), 1
    while h < n:
        a, b = v.view(-1, 2, h).unbind(1)
        v, h = torch.stack((a + b, a - b), 1).view(n), 2 * h
    return v / n**0.5
