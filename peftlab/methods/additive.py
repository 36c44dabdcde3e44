"""Additive deltas: new parameters beside a frozen backbone."""

import torch
from torch import nn
from torch.nn import functional as F

from ..delta import KeyValueDelta, OutputDelta, TokenDelta
from . import Knob, fit_width, method
from .tensors import normal, ones, zeros


@method(
    "adapter",
    title="sequential adapter",
    aliases=("houlsby", "sequential-adapter", "bottleneck"),
    review="additive/adapter",
    delta_tuning="addition/adapter",
    sparse_view="rule-based",
    paper="1902.00751",
    where="o down",
    lr=7e-3,
    knobs=dict(r=Knob(8, 1, 64, "bottleneck", log=True)),
)
class Adapter(OutputDelta):
    """y' = y + U relu(D y + c) + e

    D squeezes to r numbers, as large at the start as relu needs to hand on what it reads (1502.01852 eq. 10); U = 0, so
    the model is unchanged. In series: it reads the layer's output.
    """

    def __init__(self, m, r):
        super().__init__()
        d = m.out_features
        fit_width(r, d, "bottleneck r =", m)
        self.D, self.c = normal(m, r, d, std=(2 / d) ** 0.5), zeros(m, r)  # (r d) (r)
        self.U, self.e = zeros(m, d, r), zeros(m, d)  # (d r) (d)

    def forward(self, x, y):
        return y + F.linear(F.relu(F.linear(y, self.D, self.c)), self.U, self.e)


@method(
    "ia3",
    title="(IA)³",
    aliases=("(ia)3", "(ia)³"),
    review="additive/others",
    delta_tuning="addition/others",
    sparse_view="–",
    paper="2205.05638",
    where="k v down",
    lr=1e-2,
)
class IA3(OutputDelta):
    """y' = l ⊙ (W x + b) at k and v;  y' = W (l ⊙ x) + b at down

    One gain per channel, l = 1 at the start. At `down` it scales what enters, the inner activations.
    """

    sites = ("k", "v", "down")

    def __init__(self, m):
        super().__init__()
        self.inner = getattr(m, "site", None) == "down"
        self.l = ones(m, m.in_features if self.inner else m.out_features)

    def enter(self, x):
        return self.l * x if self.inner else x

    def forward(self, x, y):
        return y if self.inner else self.l * y


@method(
    "prefix",
    title="prefix-tuning",
    aliases=("prefix-tuning",),
    review="additive/soft prompt",
    delta_tuning="addition/prompt",
    sparse_view="–",
    paper="2101.00190",
    where="attn",
    lr=1e-2,
    knobs=dict(n=Knob(8, 1, 64, "prefix length", log=True)),
)
class Prefix(KeyValueDelta):
    """k' = [P_k; k], v' = [P_v; v] in every attention

    n trained keys and values that each query may attend to. Not the identity at the start: the prefix takes attention.
    """

    def __init__(self, m, n):
        super().__init__()
        width = next(c.out_features for c in m.modules() if getattr(c, "site", None) == "k")
        self.P_k, self.P_v = normal(m, n, width, std=0.02), normal(m, n, width, std=0.02)  # (n h·d)

    def forward(self, k, v):
        return self.before(self.P_k, k), self.before(self.P_v, v)

    def before(self, P, t):  # (n h·d) and (b h t d) -> (b h n+t d)
        b, h, _, d = t.shape
        return torch.cat([P.view(-1, h, d).transpose(0, 1).expand(b, -1, -1, -1), t], 2)


@method(
    "prompt",
    title="prompt-tuning",
    aliases=("prompt-tuning", "soft-prompt"),
    review="additive/soft prompt",
    delta_tuning="addition/prompt",
    sparse_view="–",
    paper="2104.08691",
    where="model",
    lr=1e-2,
    knobs=dict(n=Knob(8, 1, 64, "prompt length", log=True)),
)
class Prompt(TokenDelta):
    """e' = [P; e] at the input layer only

    n trained word vectors, drawn at the start from the backbone's own vocabulary. Not the identity at the start.
    """

    def __init__(self, model, n):
        super().__init__()
        E = model.get_input_embeddings()
        words = torch.randint(len(E.weight), (n,)).to(E.weight.device)
        self.P = nn.Parameter(E(words).detach().clone())  # (n d)

    def forward(self, e):
        return torch.cat([e[:, : self.at], self.P.expand(len(e), -1, -1), e[:, self.at :]], 1)
