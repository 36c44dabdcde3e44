"""Reparameterized deltas: the change of W lives in a smaller space."""

from ..delta import OutputDelta
from . import Knob, fit_width, method
from .tensors import normal, zeros


@method(
    "lora",
    title="LoRA",
    review="reparameterized/low-rank",
    delta_tuning="reparameterization/rank",
    sparse_view="rule-based",
    paper="2106.09685 eq. 3",
    where="q v",
    lr=5e-3,
    knobs=dict(r=Knob(8, 1, 64, "rank", log=True), alpha=Knob(16, 1, 128, "scale α", log=True)),
)
class LoRA(OutputDelta):
    """y' = y + (α/r)·B A x

    The update of W has rank at most r; B = 0 at the start, so the model is unchanged.
    """

    def __init__(self, m, r, alpha):
        super().__init__()
        fit_width(r, min(m.in_features, m.out_features), "rank r =", m)
        self.A = normal(m, r, m.in_features, std=m.in_features**-0.5)  # (r in)
        self.B = zeros(m, m.out_features, r)  # (out r)
        self.s = alpha / r

    def forward(self, x, y):
        return y + self.s * (x @ self.A.T) @ self.B.T  # scaled where it is r wide: s·x would store every input anew
