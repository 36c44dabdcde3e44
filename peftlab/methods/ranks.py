"""Reparameterized deltas whose rank, or whose weight, moves while they learn."""

import torch
from torch.nn import functional as F

from ..delta import OutputDelta, WeightDelta
from . import Knob, fit_width, method
from .reparameterized import RANK, SCALE, LoRA
from .tensors import normal, zeros


@method(
    "dylora",
    title="DyLoRA",
    review="reparameterized/rank adjustment",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2210.07558",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE,
)
class DyLoRA(LoRA):
    """y' = y + (α/b)·B[:, :b] A[:b] x, b drawn anew for every step

    All ranks up to r are trained at once. Afterwards `b` may be set to any of them: a truncation needs no training.
    """

    uncompiled = "each b that is drawn is another graph"

    def __init__(self, m, r, alpha):
        super().__init__(m, r, alpha)
        self.alpha, self.b, self.drawn = alpha, r, r

    def after_step(self, step, steps):
        self.drawn = int(torch.randint(1, len(self.A) + 1, (), generator=torch.Generator().manual_seed(step)))

    def forward(self, x, y):
        b = self.drawn if self.training else self.b
        return y + self.alpha / b * (x @ self.A[:b].T) @ self.B[:, :b].T


@method(
    "adalora",
    title="AdaLoRA",
    review="reparameterized/rank adjustment",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2303.10512 eq. 3",
    where="q k v o up down",
    lr=4e-2,
    knobs=dict(r=Knob(4, 1, 32, "mean rank", log=True), r0=Knob(6, 1, 48, "first rank", log=True)),
)
class AdaLoRA(OutputDelta):
    """y' = y + P diag(λ) Q x

    λ = 0 at the start. While it learns, the λ that matter least in all layers together are set to 0, until r a layer
    are left on average: a layer that needs more keeps more. The penalty holds P and Q near orthogonal.
    """

    def __init__(self, m, r, r0):
        super().__init__()
        self.r, r0 = r, max(r, r0)
        fit_width(r0, min(m.in_features, m.out_features), "rank r0 =", m)
        self.P, self.Q = normal(m, m.out_features, r0, std=0.1), normal(m, r0, m.in_features, std=0.1)  # (out r) (r in)
        self.l = zeros(m, r0)  # (r)
        self.register_buffer("keep", torch.ones_like(self.l.detach(), dtype=torch.bool))
        watch(self, l=self.l, P=self.P, Q=self.Q)

    @property
    def n(self):
        """The rank now."""
        return int(self.keep.sum())

    def forward(self, x, y):
        Q = self.l[:, None] * self.Q * self.keep[:, None]  # scaled here, Q x is not kept beside λ ⊙ Q x
        return y + F.linear(F.linear(x, Q), self.P)

    def penalty(self):
        """0.1·mean over layers of ‖PᵀP - I‖² + ‖Q Qᵀ - I‖² (eq. 4)."""
        I = torch.eye(len(self.l), device=self.l.device)
        apart = (self.P.T @ self.P - I).square().sum() + (self.Q @ self.Q.T - I).square().sum()
        return 0.1 * apart / len(self.group)

    @torch.no_grad()
    def after_step(self, step, steps):
        """Watch what matters; the last of the group then lets the least of all go, as many as the budget asks."""
        l, P, Q = (smooth(self, n, p * p.grad) for n, p in dict(l=self.l, P=self.P, Q=self.Q).items())
        self.score = l + P.mean(0) + Q.mean(1)  # eq. 7
        if self is not self.group[-1]:
            return
        scores = torch.cat([d.score for d in self.group])
        kept = budget(step, steps, len(scores), sum(d.r for d in self.group))
        least = scores.sort(descending=True).values[kept - 1]
        for d in self.group:
            d.keep.copy_(d.score >= least)


@method(
    "increlora",
    title="IncreLoRA",
    review="reparameterized/rank adjustment",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2308.12043",
    where="q k v o up down",
    lr=2e-2,
    knobs=dict(r=Knob(4, 1, 32, "mean rank", log=True), most=Knob(8, 1, 64, "rank at most", log=True)),
)
class IncreLoRA(WeightDelta):
    """W' = W + B diag(λ) A, of rank 1 at first

    While it learns, the layers whose change matters most get one rank more, until r a layer are spent on average. The
    next rank of each layer is already learning in reserve, with a λ too small to be seen.
    """

    def __init__(self, m, r, most):
        super().__init__()
        self.r, most = r, max(r, most)
        fit_width(most, min(m.in_features, m.out_features), "rank at most =", m)
        self.A, self.B = normal(m, most, m.in_features, std=0.02), normal(m, m.out_features, most, std=0.02)
        self.l = zeros(m, most)  # (most), A (most in), B (out most)
        self.register_buffer("open", (torch.arange(most) < 1).to(self.l))
        self.register_buffer("reserve", torch.zeros_like(self.open))
        self.register_buffer("moved", torch.zeros_like(m.weight.detach()), persistent=False)  # (out in)
        watch(self, D=m.weight)

    @property
    def n(self):
        """The rank now."""
        return int(self.open.sum())

    def forward(self, W):
        D = (self.B * (self.l * self.open + self.reserve)) @ self.A
        return W + Watched.apply(D, self.moved)

    @torch.no_grad()
    def after_step(self, step, steps):
        """Score what matters; the last of the group then gives out the ranks that are due."""
        self.score = smooth(self, "D", self.moved).sum() / self.moved.numel() ** 0.5
        self.moved.zero_()
        if self is not self.group[-1]:
            return
        due = budget(step, steps, len(self.group), sum(d.r for d in self.group)) - sum(d.n for d in self.group)
        for d in sorted(self.group, key=lambda d: -float(d.score)):
            grows = due > 0 and d.n < len(d.l)
            due -= grows
            d.prepare(d.n + grows)

    def prepare(self, n, small=1e-5):
        """Open n ranks, a new one with what it has learnt in reserve, and let the next one learn there."""
        self.l[self.n : n], self.open[:n] = small, 1
        self.reserve.zero_()[n : n + 1] = small


class Watched(torch.autograd.Function):
    """D itself; on the way back moved += D ⊙ ∂L/∂D, over all parts of a batch. A hook on D would break a graph."""

    @staticmethod
    def forward(ctx, D, moved):
        ctx.D, ctx.moved = D, moved
        return D.view_as(D)

    @staticmethod
    def backward(ctx, grad):
        ctx.moved.addcmul_(ctx.D, grad)
        return grad, None


def watch(delta, **tensors):
    """Room in a delta for what `smooth` remembers of these tensors; it is not stored, and it counts as memory."""
    for name, t in tensors.items():
        for what in ("mean", "doubt"):
            delta.register_buffer(f"{what}_{name}", torch.zeros_like(t.detach()), persistent=False)


def smooth(delta, name, now, beta=0.85):
    """Sensitivity |now| × its own uncertainty, both as moving averages in the delta (2303.10512 eq. 8 to 11)."""
    now, mean, doubt = now.abs(), getattr(delta, f"mean_{name}"), getattr(delta, f"doubt_{name}")
    mean.copy_(beta * mean + (1 - beta) * now)
    doubt.copy_(beta * doubt + (1 - beta) * (now - mean).abs())
    return mean * doubt


def budget(step, steps, first, last):
    """Ranks in all layers together: `first` for a tenth of the steps, then along a cube to `last` from 7/10 on."""
    done = min(1.0, max(0.0, (step / steps - 0.1) / 0.6))
    return round(last + (first - last) * (1 - done) ** 3)


@method(
    "delta-lora",
    title="Delta-LoRA",
    review="reparameterized/LoRA-guided update",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2309.02411",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE | dict(c=Knob(0.5, 0.0, 4.0, "scale λ")),
)
class DeltaLoRA(LoRA):
    """y' = y + (α/r)·(B A + D) x,  D ← D + λ·(B A - B' A') with each step

    D is what the frozen weight itself takes over of the last change, from the second step on. With a constant λ the
    steps add up to λ·(B A - B₁ A₁), of rank 2r at most: LoRA with a larger scale, not a change of high rank.
    """

    def __init__(self, m, r, alpha, c):
        super().__init__(m, r, alpha)
        self.c = c
        self.register_buffer("D", torch.zeros_like(m.weight.detach()))  # (out in)
        self.register_buffer("last", torch.zeros_like(self.D), persistent=False)  # B A before a step

    @torch.no_grad()
    def after_step(self, step, steps):
        now = self.B @ self.A
        if step > 1:
            self.D += self.c * (now - self.last)
        self.last.copy_(now)

    def forward(self, x, y):
        return super().forward(x, y) + self.s * x @ self.D.T
