"""Low-rank deltas beside a weight of few bits."""

import torch

from ..errors import PeftlabError
from ..quantized import Aside, Grouped, NormalFloat, put, take
from . import Knob, method
from .reparameterized import RANK, SCALE, LoRA
from .tensors import normal

BITS = dict(bits=Knob(4, 2, 8, "bits", log=True))


@method(
    "qlora",
    title="QLoRA",
    review="reparameterized/quantization",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2305.14314 eq. 5",
    where="q k v o up down",
    lr=5e-3,
    knobs=RANK | SCALE | BITS,
)
class QLoRA(LoRA):
    """y' = Ŵ x + (α/r)·B A x, Ŵ is W in NF4 with double quantisation

    The frozen weight is kept in 4 bits and unpacked for each product. Merged, it is as wide again as it was.
    """

    by_row = False  # the packed weight is every row's

    def __init__(self, m, r, alpha, bits):
        super().__init__(m, r, alpha)
        self.packed = (self.pack(m.weight, bits),)  # in a tuple: it belongs to the layer, not to what is stored

    def pack(self, W, bits):
        return NormalFloat(W, bits)

    def attach(self, m, model):
        undo, self.layer, self.kept = super().attach(m, model), (m,), Aside(m.weight)
        try:
            put(m, *self.packed)
        except PeftlabError:
            undo()
            raise
        return lambda: (setattr(self, "on", False), undo())

    @property
    def on(self):
        """Switched off, the layer has its own weight again."""
        return hasattr(self, "layer") and hasattr(self.layer[0], "packed")

    @on.setter
    def on(self, on):
        if on != self.on:
            put(*self.layer, *self.packed) if on else take(*self.layer, self.kept.back())


@method(
    "loftq",
    title="LoftQ",
    review="reparameterized/quantization",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2310.08659 alg. 1",
    where="q k v o up down",
    lr=5e-3,
    knobs=RANK | BITS | dict(T=Knob(5, 1, 10, "iterations")),
)
class LoftQ(QLoRA):
    """y' = Ŵ x + B A x, Ŵ + B A ≈ W from the start

    In turn, T times: Ŵ is what remains of W beside B A, quantised; B A is the best rank r of what Ŵ misses.
    """

    def __init__(self, m, r, bits, T):
        self.T = T
        super().__init__(m, r, alpha=r, bits=bits)

    @torch.no_grad()
    def pack(self, W, bits):
        r, rest = len(self.A), W.float()
        for _ in range(self.T):
            packed = NormalFloat(rest.to(W), bits)
            U, S, V = torch.linalg.svd(W.float() - packed().float(), full_matrices=False)
            self.A.copy_(S[:r, None].sqrt() * V[:r]), self.B.copy_(U[:, :r] * S[:r].sqrt())
            rest = W.float() - (self.B @ self.A).float()
        return packed


@method(
    "qa-lora",
    title="QA-LoRA",
    aliases=("qalora",),
    review="reparameterized/quantization",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2309.14717 alg. 1",
    where="q k v o up down",
    lr=2e-2,
    knobs=RANK | SCALE | BITS | dict(g=Knob(16, 4, 128, "group size", log=True)),
)
class QALoRA(QLoRA):
    """y' = Ŵ x + (α/r)·B A x̄, x̄ the mean of every g neighbours of x

    Ŵ = s·(codes - z) has a zero point z for the same g weights, so that the change of W fits into z alone: what is
    merged can be packed in as few bits again, without any loss.
    """

    def __init__(self, m, r, alpha, bits, g):
        if m.in_features % g:
            raise PeftlabError(f"groups of {g} do not divide the {m.in_features} inputs of the layer")
        self.g = g
        super().__init__(m, r, alpha, bits)
        self.A = normal(m, r, m.in_features // g, std=m.in_features**-0.5)  # (r in/g)

    def pack(self, W, bits):
        return Grouped(W, bits, self.g)

    def forward(self, x, y):
        return super().forward(x.unflatten(-1, (-1, self.g)).mean(-1), y)
