"""Full fine-tuning whose optimizer, not the update, lives in a smaller space."""

import functools

import torch

from . import Knob, method
from .baselines import Full


class GaLoreAdamW(torch.optim.AdamW):
    """R = Pᵀ G (r n), ΔR = AdamW's step for R, W ← W + s·P ΔR

    P (m r) are the r first left singular vectors of the gradient G (m n), m ≤ n, taken anew every T steps. What is no
    matrix, or no wider than r, is AdamW's as it stands.
    """

    def __init__(self, params, lr, weight_decay=0.0, r=8, T=50, s=0.25):
        super().__init__(params, lr, weight_decay=weight_decay)
        self.r, self.T, self.s, self.n, self.low, self.P = r, T, s, 0, {}, {}

    @torch.no_grad()
    def step(self, closure=None):
        """AdamW is shown the projected matrices in the place of the real ones."""
        real = [g["params"] for g in self.param_groups]
        for g, params in zip(self.param_groups, real, strict=True):
            g["params"] = [self.down(p) for p in params]
        super().step()
        for low in self.low.values():
            self.state[low] |= dict(P=self.P[low], R=low)  # counted with the moments
        for g, params in zip(self.param_groups, real, strict=True):
            for p, low in zip(params, g["params"], strict=True):
                if low is not p:
                    upright(p.mul_(1 - g["lr"] * g["weight_decay"])).add_(self.s * self.P[low] @ low)
            g["params"] = params
        self.n += 1

    def down(self, p):
        """What AdamW steps on: for a matrix zeros (r n), whose gradient is R."""
        if p.grad is None or p.ndim != 2 or min(p.shape) <= self.r:
            return p
        G = upright(p.grad)
        low = self.low.setdefault(p, p.new_zeros(self.r, G.shape[1]))
        if low not in self.P or self.n % self.T == 0:
            self.P[low] = torch.linalg.svd(G.float(), full_matrices=False)[0][:, : self.r].to(G).clone()
        low.zero_()
        low.grad = self.P[low].T @ G
        return low


def upright(t):
    """A view with fewer rows than columns."""
    return t if t.shape[0] <= t.shape[1] else t.T


@method(
    "galore",
    title="GaLore",
    review="–",
    delta_tuning="–",
    sparse_view="–",
    paper="2403.03507 alg. 2",
    where="model",
    lr=5e-3,
    knobs=dict(
        r=Knob(8, 1, 64, "rank", log=True),
        T=Knob(50, 1, 200, "steps per P", log=True),
        s=Knob(0.25, 0.05, 2.0, "scale", log=True),
    ),
)
class GaLore(Full):
    """W ← W + s·P·AdamW(Pᵀ G), P the r first singular vectors of the gradient G

    Every weight learns, but AdamW keeps its two moments for r rows of each matrix only.
    """

    def __init__(self, m, r, T, s):
        super().__init__(m)
        self.optimizer = functools.partial(GaLoreAdamW, r=r, T=T, s=s)
