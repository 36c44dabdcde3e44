"""Reparameterized deltas whose factors have a structure: Kronecker's, Hadamard's, or that of the attention heads."""

import functools

from torch.utils.checkpoint import checkpoint

from ..delta import OutputDelta
from ..errors import PeftlabError
from ..rows import EVERY
from . import Knob, Peft, fit_width, method
from .tensors import normal, zeros


@method(
    "kernel-mix-lite",
    title="Kernel-mix-lite",
    aliases=("kernel-mix", "kernel-mix-lite(qv)"),
    review="reparameterized/improvement",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2205.03720",
    where="q v",
    lr=5e-3,
    knobs=dict(r=Knob(4, 1, 64, "shared rank", log=True), h=Knob(2, 1, 16, "rank of a head", log=True)),
)
class KernelMixLite(OutputDelta):
    """y'ₕ = yₕ + (Bₕ A + Dₕ Cₕ) x for every attention head h; at o  y' = y + Σₕ (B Aₕ + Dₕ Cₕ) xₕ

    A head is a kernel smoother by itself, so that each gets a change of low rank of its own beside the shared one.
    With where="q v o" it is its variant (qvo).
    """

    sites = ("q", "k", "v", "o")

    def __init__(self, m, r, h):
        super().__init__()
        self.heads, self.reads = getattr(m, "heads", 1), getattr(m, "site", None) == "o"
        fit_width(r, min(m.in_features, m.out_features), "shared rank r =", m)
        wide, high = m.in_features // (self.heads if self.reads else 1), m.out_features
        self.A, self.B = normal(m, r, m.in_features, std=m.in_features**-0.5), zeros(m, high, r)  # (r in) (out r)
        self.C = normal(m, self.heads, h, wide, std=wide**-0.5)  # (heads h in)
        self.D = zeros(m, self.heads, high // (1 if self.reads else self.heads), h)  # (heads out h)

    def forward(self, x, y):
        own = x.unflatten(-1, (self.heads, -1)) if self.reads else x.unsqueeze(-2)  # (… heads or 1, in)
        own = (self.D @ (self.C @ own.unsqueeze(-1))).squeeze(-1)  # (… heads out)
        return y + (x @ self.A.T) @ self.B.T + (own.sum(-2) if self.reads else own.flatten(-2))


@method(
    "krona",
    title="KronA",
    aliases=("kronecker-adapter",),
    review="reparameterized/low-rank",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2212.10650",
    where="q v",
    lr=1e-2,
    knobs=dict(k=Knob(16, 2, 64, "size of A", log=True), s=Knob(1.0, 0.1, 16.0, "scale", log=True)),
)
class KronA(OutputDelta):
    """y' = y + s·(A ⊗ B) x

    A is k by k, B has the rest; the rank of the product is rank A times rank B, so few numbers can give full rank.
    """

    def __init__(self, m, k, s):
        super().__init__()
        if m.in_features % k or m.out_features % k:
            raise PeftlabError(f"k = {k} does not divide the {m.in_features} inputs and {m.out_features} outputs")
        self.A = normal(m, k, k, std=k**-0.5)  # (k k)
        self.B, self.s = zeros(m, m.out_features // k, m.in_features // k), s  # (out/k in/k)

    def forward(self, x, y):
        X = x.unflatten(-1, (len(self.A), -1))  # (… k in/k): (A ⊗ B) x is A X Bᵀ, read row by row
        # X Bᵀ is as large as y and cheap: the backward pass computes it anew, so that x alone is kept. Not where many
        # runs share a pass, as vmap cannot follow.
        anew = functools.partial(checkpoint, sandwich, use_reentrant=False, preserve_rng_state=False)
        return y + self.s * (anew if self.rows is EVERY else sandwich)(self.A, X, self.B).flatten(-2)


def sandwich(A, X, B):
    return A @ (X @ B.T)


@method(
    "loha",
    title="LoHa",
    aliases=("fedpara", "low-rank-hadamard"),
    review="–",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2108.06098",
    where="q v",
    lr=1e-2,
    knobs=dict(r=Knob(4, 1, 16, "rank", log=True), alpha=Knob(8, 1, 128, "scale α", log=True)),
    peft=Peft(
        dict(peft_type="LOHA"),
        settings=dict(r="r", alpha="alpha"),
        tensors=dict(A1="hada_w1_b", B1="hada_w1_a", A2="hada_w2_b", B2="hada_w2_a"),
        patterns=dict(r="rank_pattern", alpha="alpha_pattern"),
    ),
)
class LoHa(OutputDelta):
    """y' = y + (α/r)·(B₁A₁ ⊙ B₂A₂) x

    Entry by entry, the product of two matrices of rank r has a rank up to r². It is a product of r² columns and r² rows
    itself, each of B₁ with each of B₂ and each of A₁ with each of A₂, so that the whole of it is never there.
    """

    def __init__(self, m, r, alpha):
        super().__init__()
        wide, high = m.in_features, m.out_features
        fit_width(r, min(wide, high), "rank r =", m)
        self.A1, self.B1 = normal(m, r, wide, std=1.0), normal(m, high, r, std=r**-0.5)  # (r in) (out r)
        self.A2, self.B2 = normal(m, r, wide, std=wide**-0.5), zeros(m, high, r)  # (r in) (out r)
        self.s = alpha / r

    def forward(self, x, y):
        rows = (self.A1[:, None] * self.A2).flatten(0, 1)  # (r² in)
        columns = (self.B1[:, :, None] * self.B2[:, None]).flatten(1)  # (out r²)
        return y + self.s * (x @ rows.T) @ columns.T
