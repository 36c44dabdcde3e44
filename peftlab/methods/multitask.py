"""Low-rank deltas made for several tasks: experts behind a gate, and deltas that can be added."""

import torch

from ..errors import PeftlabError
from . import Knob, method
from .reparameterized import RANK, SCALE, LoRA
from .tensors import normal


@method(
    "moelora",
    title="MOELoRA",
    review="reparameterized/multi-task",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2310.18339",
    where="q v",
    lr=1e-2,
    knobs=RANK | SCALE | dict(n=Knob(4, 1, 16, "experts", log=True), tasks=Knob(2, 1, 64, "tasks", log=True)),
)
class MOELoRA(LoRA):
    """y' = y + (α/r)·Σᵢ ωᵢ Bᵢ Aᵢ x, ω = softmax(G eₜ) for task t

    The rank is divided among n experts, and what the task is decides how much of each is heard: `delta.task = 1`.
    """

    def __init__(self, m, r, alpha, n, tasks):
        if r % n:
            raise PeftlabError(f"rank {r} cannot be divided among {n} experts; take a multiple of {n}")
        super().__init__(m, r, alpha)
        self.E, self.G = normal(m, tasks, 8, std=1.0), normal(m, n, 8, std=8**-0.5)  # (tasks 8) (n 8)
        self.task = 0

    def forward(self, x, y):
        heard = torch.softmax(self.G @ self.E[self.task], 0).repeat_interleave(len(self.A) // len(self.G))  # (r)
        return y + self.s * (heard * (x @ self.A.T)) @ self.B.T


def alternate(deltas, *tasks):
    """Batches of several tasks in turn; before each one the deltas are told which task it is of."""
    while True:
        for t, batches in enumerate(tasks):
            for d in deltas:
                d.task = t
            yield next(batches)


@method(
    "l-lora",
    title="L-LoRA",
    aliases=("linearized-lora",),
    review="reparameterized/multi-task",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2310.04742",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE,
)
class LLoRA(LoRA):
    """y' = y + f(δ₀) + ∇f(δ₀)·(δ - δ₀), f(δ) = (α/r)·B A x, δ = (A, B)

    LoRA made linear in its parameters, so that the sum of two deltas does what both do. B₀ = 0, hence it is
    (α/r)·B A₀ x: the function of LoRA-FA.
    """

    def __init__(self, m, r, alpha):
        super().__init__(m, r, alpha)
        self.register_buffer("A0", self.A.detach().clone()), self.register_buffer("B0", self.B.detach().clone())

    def forward(self, x, y):
        f = lambda A, B: self.s * (x @ A.T) @ B.T
        start, moved = torch.func.jvp(f, (self.A0, self.B0), (self.A - self.A0, self.B - self.B0))
        return y + start + moved
