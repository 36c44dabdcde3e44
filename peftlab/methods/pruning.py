"""Low-rank deltas that find out which heads and channels the model can do without."""

import torch

from ..errors import PeftlabError
from . import Knob, method
from .ranks import budget
from .reparameterized import RANK, SCALE, LoRA


@method(
    "loraprune",
    title="LoRAPrune",
    review="reparameterized/LoRA-guided update",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2305.18403",
    where="q k v o up down",
    lr=2.5e-3,
    knobs=RANK | SCALE | dict(p=Knob(0.5, 0.0, 0.95, "share pruned")),
)
class LoRAPrune(LoRA):
    """y' = M ⊙ (y + (α/r)·B A x), M silences whole attention heads and FFN channels

    What matters least is silenced while the delta learns, up to the share p in every layer; the gradients of A and B
    alone tell how much an entry matters. `shrink` then cuts it away, and the model is smaller and faster. Where heads
    share a bias (T5) only channels are cut.
    """

    def __init__(self, m, r, alpha, p):
        super().__init__(m, r, alpha)
        self.p = p
        self.register_buffer("M", torch.ones(m.out_features, dtype=torch.bool, device=self.A.device))

    def attach(self, m, model):
        self.at, self.seen = (m,), None  # in a tuple: the layer is not a part of its delta
        return super().attach(m, model)

    def joined(self):
        """The unit of this delta: all whose rows (q, k, v or up) feed the columns of the same o or down."""
        unit = []
        for d in self.group:
            unit.append(d)
            if d.at[0].site in ("o", "down"):
                if self in unit:
                    break
                unit = []
        sites = [d.at[0].site for d in unit]
        if set(sites) not in ({"q", "k", "v", "o"}, {"up", "down"}):
            raise PeftlabError(f"loraprune cuts q k v o together, and up down; here is only {' '.join(sites)}")
        self.unit, last = unit, unit[-1].at[0]
        keys = next((d.at[0] for d in unit if d.at[0].site == "k"), None)  # queries may have more heads
        self.parts = last.in_features if keys is None else 1 if keys.shares_bias else keys.heads

    def forward(self, x, y):
        return super().forward(x, y) * self.M

    @torch.no_grad()
    def after_step(self, step, steps):
        """Watch what matters; the last delta of a unit then silences the least of its heads or channels."""
        now = self.importance()
        self.seen = now if self.seen is None else 0.9 * self.seen + 0.1 * now
        if self is not self.unit[-1]:
            return
        score = sum(d.seen for d in self.unit)
        alive = self.unit[0].M.view(self.parts, -1).any(1)
        keep = max(1, budget(step, steps, self.parts, round(self.parts * (1 - self.p))))
        kept = score.masked_fill(~alive, -1).topk(keep).indices
        mask = torch.zeros_like(alive).index_fill_(0, kept, True)
        for d in self.unit[:-1]:
            d.M.copy_(mask.repeat_interleave(len(d.M) // self.parts))

    def importance(self):
        """Σ |(W + s·B A) ⊙ (∂B A + B ∂A - ∂B ∂A)| for each head or channel (2305.18403)."""
        m, a, b = self.at[0], self.A.grad, self.B.grad
        entries = ((m.weight + self.s * self.B @ self.A) * (b @ self.A + self.B @ a - b @ a)).abs()
        return entries.sum(0 if self is self.unit[-1] else 1).view(self.parts, -1).sum(1)
