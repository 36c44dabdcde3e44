"""Reparameterized deltas: the change of W lives in a smaller space."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from ..delta import OutputDelta
from . import Knob, Peft, fit_width, method
from .tensors import normal, ones, zeros

FACTORS = dict(A="lora_A.weight", B="lora_B.weight")
IN_PEFT = Peft(
    dict(peft_type="LORA", use_rslora=False, use_dora=False),
    settings=dict(r="r", alpha="lora_alpha"),
    tensors=FACTORS,
    patterns=dict(r="rank_pattern", lora_alpha="alpha_pattern"),
)
RANK, SCALE = dict(r=Knob(8, 1, 64, "rank", log=True)), dict(alpha=Knob(16, 1, 128, "scale α", log=True))


@method(
    "lora",
    title="LoRA",
    review="reparameterized/low-rank",
    delta_tuning="reparameterization/rank",
    sparse_view="rule-based",
    paper="2106.09685 eq. 3",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE,
    peft=IN_PEFT,
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


@method(
    "rslora",
    title="rsLoRA",
    aliases=("rank-stabilized-lora",),
    review="–",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2312.03732",
    where="q v",
    lr=2.5e-3,
    knobs=RANK | SCALE,
    peft=IN_PEFT._replace(facts=IN_PEFT.facts | dict(use_rslora=True)),
)
class RsLoRA(LoRA):
    """y' = y + (α/√r)·B A x

    With √r the change keeps its size when the rank grows; with LoRA's r it shrinks.
    """

    def __init__(self, m, r, alpha):
        super().__init__(m, r, alpha)
        self.s = alpha / r**0.5


@method(
    "lora-plus",
    title="LoRA+",
    aliases=("lora+", "loraplus"),
    review="–",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2402.12354",
    where="q v",
    lr=1e-3,
    knobs=RANK | SCALE | dict(ratio=Knob(16.0, 1.0, 64.0, "rate of B / A", log=True)),
    peft=IN_PEFT,
)
class LoRAPlus(LoRA):
    """y' = y + (α/r)·B A x, B at `ratio` times the learning rate of A

    A reads a wide layer and B writes to one: with one rate for both, one of them hardly learns when the layer is wide.
    """

    def __init__(self, m, r, alpha, ratio):
        super().__init__(m, r, alpha)
        self.speeds = dict(B=ratio)


@method(
    "lora-fa",
    title="LoRA-FA",
    aliases=("lorafa",),
    review="reparameterized/improvement",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2308.03303",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE,
    peft=IN_PEFT,
)
class LoRAFA(LoRA):
    """y' = y + (α/r)·B A x, A frozen as drawn

    Only B learns, so of the layer's input the backward pass needs A x alone: r numbers a token instead of all.
    """

    def __init__(self, m, r, alpha):
        super().__init__(m, r, alpha)
        A = self.A.detach()
        del self.A
        self.register_buffer("A", A)


@method(
    "dora",
    title="DoRA",
    review="–",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2402.09353 eq. 5",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE,
    peft=IN_PEFT._replace(facts=IN_PEFT.facts | dict(use_dora=True), tensors=FACTORS | dict(m="lora_magnitude_vector")),
)
class DoRA(OutputDelta):
    """y' = m (W + (α/r)·B A) x / ‖W + (α/r)·B A‖ + b

    Length m and direction of every row learn apart. For the gradient the length of the direction is a constant, so
    that a whole W is nowhere in it.
    """

    def __init__(self, m, r, alpha):
        super().__init__()
        fit_width(r, min(m.in_features, m.out_features), "rank r =", m)
        self.A = normal(m, r, m.in_features, std=m.in_features**-0.5)  # (r in)
        self.B = zeros(m, m.out_features, r)  # (out r)
        self.m = nn.Parameter(m.weight.detach().norm(dim=1))  # (out)
        self.s, self.at = alpha / r, (m,)  # in a tuple: no part of the delta

    def forward(self, x, y):
        (layer,) = self.at
        b = 0.0 if layer.bias is None else layer.bias
        with torch.no_grad():
            length = (layer.weight + self.s * self.B @ self.A).norm(dim=1)  # (out)
        return self.m / length * (y - b + self.s * (x @ self.A.T) @ self.B.T) + b


@method(
    "vera",
    title="VeRA",
    review="–",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2310.11454 eq. 2",
    where="q v",
    lr=4e-2,
    knobs=dict(r=Knob(64, 1, 256, "rank", log=True)),
    peft=Peft(
        dict(peft_type="VERA"),
        dict(r="r"),
        tensors=dict(d="vera_lambda_d", b="vera_lambda_b"),
        frozen=dict(A="base_model.vera_A", B="base_model.vera_B"),
        more=dict(projection_prng_key=0, save_projection=False),
    ),
)
class VeRA(OutputDelta):
    """y' = y + b ⊙ B (d ⊙ A x), A and B random, frozen and the same everywhere

    Only the two vectors learn. A and B follow from the largest shape alone, so they are not stored; a smaller layer
    takes their first rows and columns.
    """

    def __init__(self, m, r):
        super().__init__()
        for name, shape in dict(A=(r, m.in_features), B=(m.out_features, r)).items():
            self.register_buffer(name, torch.empty(shape).to(m.weight), persistent=False)
        self.d, self.b = nn.Parameter(ones(m, r).detach() * 0.1), zeros(m, m.out_features)  # (r) (out)
        self.joined()

    def joined(self):
        wide, high = max(d.A.shape[1] for d in self.group), max(len(d.B) for d in self.group)
        A, B = shared(len(self.d), wide, high)
        self.A, self.B = A[:, : self.A.shape[1]].to(self.d), B[: len(self.B)].to(self.d)  # views: there is one of each

    def forward(self, x, y):
        return y + self.b * F.linear(self.d * F.linear(x, self.A), self.B)

    def own(self):
        return dict(self.named_parameters())


@functools.cache
def shared(r, wide, high):
    """Kaiming's uniform A (r wide) and B (high r) of one seed, drawn as Hugging Face PEFT draws them."""
    drawn = torch.Generator().manual_seed(0)
    uniform = lambda n, m: torch.empty(n, m).uniform_(-((6 / m) ** 0.5), (6 / m) ** 0.5, generator=drawn)
    return uniform(r, wide), uniform(high, r)


@method(
    "pissa",
    title="PiSSA",
    review="–",
    delta_tuning="reparameterization/rank",
    sparse_view="–",
    paper="2404.02948 eq. 2",
    where="q v",
    lr=4e-3,
    knobs=RANK,
)
class PiSSA(OutputDelta):
    """y' = y + (B A - B₀ A₀) x, B₀ A₀ = the r largest singular parts of W

    LoRA from where W is largest: the rest of W stays frozen.
    """

    def __init__(self, m, r):
        super().__init__()
        fit_width(r, min(m.in_features, m.out_features), "rank r =", m)
        U, S, V = torch.linalg.svd(m.weight.detach().float(), full_matrices=False)
        A, B = (S[:r].sqrt()[:, None] * V[:r]).to(m.weight), (U[:, :r] * S[:r].sqrt()).to(m.weight)  # (r in) (out r)
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.register_buffer("A0", A), self.register_buffer("B0", B)

    def forward(self, x, y):
        return y + ((x @ self.A.T) @ self.B.T - (x @ self.A0.T) @ self.B0.T)  # so bracketed: exactly y at the start
