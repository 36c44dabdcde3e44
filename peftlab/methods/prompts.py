"""Soft prompts: trained vectors that a frozen backbone reads like words, at its input or in every layer."""

import torch
from torch import nn
from torch.nn import functional as F

from ..delta import KeyValueDelta, TokenDelta
from . import Choice, Knob, method
from .tensors import normal, zeros


def before(P, t):
    """[P; t] along the positions.  P (n h·d), or one for each text (b n h·d), t (b h t d) -> (b h n+t d)"""
    b, h, _, d = t.shape
    return torch.cat([P.unflatten(-1, (h, d)).transpose(-3, -2).expand(b, -1, -1, -1), t], 2)


def key_of(m):
    """The Linear that makes the keys of an attention; its outputs are as wide as its values."""
    return next(c for c in m.modules() if getattr(c, "site", None) == "k")


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
        width = key_of(m).out_features
        self.P_k, self.P_v = normal(m, n, width, std=0.02), normal(m, n, width, std=0.02)  # (n h·d)

    def forward(self, k, v):
        return before(self.P_k, k), before(self.P_v, v)


@method(
    "prefix-mlp",
    title="prefix-tuning with its MLP",
    aliases=("prefix-tuning-mlp",),
    review="additive/soft prompt",
    delta_tuning="addition/prompt",
    sparse_view="–",
    paper="2101.00190",
    where="attn",
    lr=3e-3,
    knobs=dict(n=Knob(8, 1, 64, "prefix length", log=True), r=Knob(16, 1, 512, "bottleneck", log=True)),
)
class PrefixMLP(KeyValueDelta):
    """k' = [P_k; k], v' = [P_v; v] with [P_k, P_v] = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂

    E, W₁ and b₁ are one for all layers of a row, W₂ and b₂ are each attention's own: together one MLP whose outputs are
    the prefixes of all layers. It only helps the training: `pl.flatten` leaves a plain prefix of the same function.
    """

    def __init__(self, m, n, r):
        super().__init__()
        d, width = key_of(m).in_features, key_of(m).out_features
        self.E, self.W_1, self.b_1 = normal(m, n, d, std=1.0), normal(m, r, d, std=d**-0.5), zeros(m, r)
        self.W_2, self.b_2 = normal(m, 2 * width, r, std=0.02), zeros(m, 2 * width)

    def joined(self):
        self.first = next(i for i, d in enumerate(self.group) if d.row == self.row)
        if self.group[self.first] is not self:
            self.E = self.W_1 = self.b_1 = None  # the first one's are everybody's

    def prefix(self):
        one = self.group[self.first]
        return F.linear(torch.tanh(F.linear(one.E, one.W_1, one.b_1)), self.W_2, self.b_2).chunk(2, dim=1)

    def forward(self, k, v):
        P_k, P_v = self.prefix()
        return before(P_k, k), before(P_v, v)

    def plain(self, row):
        """(row of a recipe, tensors): what does the same without the MLP."""
        return row | dict(method="prefix", settings=dict(n=row["settings"]["n"])), dict(
            zip(("P_k", "P_v"), self.prefix(), strict=True)
        )


@method(
    "p-tuning-v2",
    title="P-tuning v2",
    aliases=("deep-prompt",),
    review="additive/soft prompt",
    delta_tuning="addition/prompt",
    sparse_view="–",
    paper="2110.07602",
    where="attn",
    lr=1e-2,
    knobs=dict(n=Knob(16, 1, 128, "prompt length", log=True)),
)
class PTuningV2(Prefix):
    """k' = [P_k; k], v' = [P_v; v] in every attention

    The equation of prefix-tuning, without its MLP and with a longer prompt.
    """


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
    knobs=dict(
        n=Knob(8, 1, 64, "prompt length", log=True),
        init=Choice("vocabulary", ("vocabulary", "random"), "starts as"),
    ),
)
class Prompt(TokenDelta):
    """e' = [P; e] at the input layer only

    n trained word vectors. They start as words that are drawn from the backbone's own vocabulary, or as random vectors
    of the same size, which are no words. Not the identity at the start.
    """

    def __init__(self, model, n, init="vocabulary"):
        super().__init__()
        self.P = nn.Parameter(dict(vocabulary=drawn, random=unlike)[init](model, n))  # (n d)

    def vectors(self):
        return self.P

    def forward(self, e):
        return torch.cat([e[:, : self.at], self.vectors().expand(len(e), -1, -1), e[:, self.at :]], 1)


def drawn(model, n):
    """The vectors of n words that are drawn from the vocabulary (n d)."""
    return embedded(model, torch.randint(len(model.get_input_embeddings().weight), (n,)))


def unlike(model, n):
    """n random vectors of the size that words have (n d)."""
    E = model.get_input_embeddings()
    size = E.weight.detach().float().square().mean().sqrt().item()
    return normal(E, n, E.weight.shape[1], std=size).detach()


def embedded(model, ids):
    E = model.get_input_embeddings()
    return E(ids.to(E.weight.device)).detach().clone()
