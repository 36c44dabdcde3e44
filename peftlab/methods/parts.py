"""The parts of hybrids that are methods of their own: Compacter's adapter, UniPELT's gated three, added biases."""

import torch

from ..delta import OutputDelta, stack_of
from ..errors import PeftlabError
from . import Knob, fit_width, method
from .adapters import Adapter, Pfeiffer
from .prompts import Prefix, before, key_of
from .reparameterized import RANK, LoRA
from .tensors import normal, zeros

MANUAL = dict(review="hybrid/manual", sparse_view="–")
BOTTLENECK = Knob(8, 1, 64, "bottleneck", log=True)
LENGTH = Knob(8, 1, 64, "prefix length", log=True)


@method(
    "compacter",
    title="Compacter",
    **MANUAL,
    delta_tuning="addition/adapter",
    paper="2106.04647",
    where="o down",
    lr=1e-2,
    knobs=dict(r=BOTTLENECK, n=Knob(4, 1, 16, "products", log=True)),
)
class Compacter(Adapter):
    """y' = y + U relu(D y + c) + e, D = Σᵢ Aᵢ ⊗ sᵢ tᵢᵀ, U = Σᵢ Aᵢ ⊗ uᵢ vᵢᵀ,  i = 1 … n

    A sequential adapter whose matrices are sums of n Kronecker products. The rules Aᵢ (n n) are the same in all layers
    of a row, the other factors have rank 1: r + d numbers for a matrix instead of r·d. v = 0 at the start.
    """

    first = 0  # whose rules they are, in the group

    def __init__(self, m, r, n):
        OutputDelta.__init__(self)
        d = m.out_features
        for what, size in ((f"bottleneck {fit_width(r, d, 'bottleneck r =', m)}", r), (f"width {d}", d)):
            if size % n:
                raise PeftlabError(f"{what} is no sum of {n} Kronecker products of equal size; take n that divides it")
        self.A = normal(m, n, n, n, std=n**-0.5)  # (n n n)
        self.s, self.t = normal(m, n, r // n, std=1.0), normal(m, n, d // n, std=(2 / d) ** 0.5)  # (n r/n) (n d/n)
        self.u, self.v = normal(m, n, d // n, std=1.0), zeros(m, n, r // n)  # (n d/n) (n r/n)
        self.c, self.e = zeros(m, r), zeros(m, d)  # (r) (d)

    def joined(self):
        self.first = next(i for i, d in enumerate(self.group) if d.row == self.row)
        if self.group[self.first] is not self:
            self.A = None  # the first one's is everybody's

    def product(self, left, right):
        """Σᵢ Aᵢ ⊗ leftᵢ rightᵢᵀ  (n·|left| n·|right|)"""
        ones = left[:, :, None] * right[:, None]  # first these, as the backward pass keeps them: Aᵢ ⊗ uᵢ is much larger
        return torch.einsum("nab,nxy->axby", self.group[self.first].A, ones).flatten(2).flatten(0, 1)

    @property
    def D(self):
        return self.product(self.s, self.t)

    @property
    def U(self):
        return self.product(self.u, self.v)


class Gated:
    """What UniPELT's parts share: a gate g = mean over the tokens of σ(w·x + b), one number for each text.

    x is what the sublayer reads. The mean is over a whole text, without its padding, so that a gate can only sit where
    every token may see all others.
    """

    needs, mask, at = "needs layers that read whole texts,", None, 0

    def gate_of(self, m, d):
        self.w, self.b = normal(m, d, std=0.02), zeros(m)  # (d) ()

    @classmethod
    def among(cls, modules, model, **settings):
        return [m for m in super().among(modules, model, **settings) if not stack_of(m, model)[1]]

    def attach(self, m, model):
        undo, self.at = super().attach(m, model), int(model.kind == "encoder")
        seen = self.watch(stack_of(m, model)[0])
        return lambda: (seen.remove(), undo())

    def gate(self, x):  # x (b t d) -> (b 1 1)
        g = torch.sigmoid(x @ self.w + self.b)
        heard = torch.ones_like(g)
        if self.mask is not None:
            new = heard[:, : g.shape[1] - self.mask.shape[1]]  # the tokens of a prompt
            before, behind = self.mask[:, : self.at], self.mask[:, self.at :]
            heard = torch.cat([before, new, behind], 1).to(g)
        self.heard = (g * heard).sum(-1) / heard.sum(-1)  # (b), for who wants to see it
        return self.heard[..., None, None]


GATED = MANUAL | dict(delta_tuning="addition/combination", paper="2110.07577")


@method("gated-adapter", title="UniPELT's adapter", **GATED, where="block", lr=7e-3, knobs=dict(r=BOTTLENECK))
class GatedAdapter(Gated, Pfeiffer):
    """h' = LN(s + g·A(LN(s))), g = mean over the tokens of σ(w·LN(s) + b);  without that LN: h' = s + g·A(s)

    A Pfeiffer adapter whose share is decided for each text.
    """

    def __init__(self, m, r):
        super().__init__(m, r)
        self.gate_of(m, len(self.U))

    def squeezed(self, x):
        return self.gate(x) * super().squeezed(x)


@method("gated-lora", title="UniPELT's LoRA", **GATED, where="q v", lr=5e-3, knobs=RANK)
class GatedLoRA(Gated, LoRA):
    """y' = y + g·B A x, g = mean over the tokens of σ(w·x + b)

    A LoRA with a gate in place of its fixed scale α/r.
    """

    def __init__(self, m, r):
        super().__init__(m, r, alpha=r)
        self.gate_of(m, m.in_features)

    def forward(self, x, y):
        return y + self.gate(x) * (x @ self.A.T) @ self.B.T

    @classmethod
    def merges(cls, settings):
        return False


@method("gated-prefix", title="UniPELT's prefix", **GATED, where="attn", lr=1e-2, knobs=dict(n=LENGTH))
class GatedPrefix(Gated, Prefix):
    """k' = [g·P_k; k], v' = [g·P_v; v], g = mean over the tokens of σ(w·x + b), x what the attention reads

    A prefix that each text takes as a whole or in part.
    """

    def __init__(self, m, n):
        super().__init__(m, n)
        self.gate_of(m, key_of(m).in_features)

    def attach(self, m, model):
        undo, handle = super().attach(m, model), key_of(m).register_forward_pre_hook(self.keep)
        return lambda: (handle.remove(), undo())

    def keep(self, m, args):
        if self.on:
            self.x = self.rows.pick(args[0])

    def forward(self, k, v):
        g, self.x = self.gate(self.x), None  # (b 1 1)
        return before(g * self.P_k, k), before(g * self.P_v, v)


@method(
    "added-bias",
    title="added biases",
    review="hybrid/automatic",
    delta_tuning="addition/others",
    sparse_view="–",
    paper="2203.06904",
    where="q k v o up down",
    lr=1e-2,
)
class AddedBias(OutputDelta):
    """y' = y + b

    What BitFit does, for layers that have no bias as well (T5, Llama): there it adds what it trains.
    """

    def __init__(self, m):
        super().__init__()
        self.b = zeros(m, m.out_features)

    def forward(self, x, y):
        return y + self.b
