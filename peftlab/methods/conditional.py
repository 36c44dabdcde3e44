"""Conditional computation: a router sends only some tokens through a frozen layer, so that inference is cheaper."""

import torch
from torch.nn import functional as F

from ..delta import BlockDelta
from ..errors import PeftlabError
from . import Knob, fit_width, method
from .side import APART, SideDelta, named
from .tensors import normal, zeros


@method(
    "coda",
    title="CoDA",
    aliases=("conditional-adapter",),
    review="additive/adapter",
    delta_tuning="addition/adapter",
    sparse_view="–",
    paper="2304.04947",
    where="block",
    lr=5e-3,
    knobs=dict(
        r=Knob(3, 1, 16, "reduction r", log=True),
        bottleneck=Knob(8, 1, 64, "bottleneck", log=True),
    ),
)
class CoDA(BlockDelta):
    """y = x + U relu(D x + c) + e + m ⊙ λ ⊙ (Layer(x) - x), m picks the ⌈n/r⌉ tokens with the largest w·x

    All tokens pass the adapter, only the picked ones the frozen layer, where they attend to each other: it is called
    with ⌈n/r⌉ tokens and costs as much less. λ is the soft top-k of the scores w·x. Padding is picked last and masked.
    U = 0 at the start; not the identity, as most tokens skip the layer, which the backbone was never pretrained for:
    with a small backbone it is of use in few `layers`, the lowest best, with a small r.
    """

    needs = "compares each token with later ones, so it needs an encoder's layers,"
    by_row = False

    def __init__(self, m, r, bottleneck):
        super().__init__()
        d = next(c.in_features for c in m.modules() if getattr(c, "site", None) == "q")
        fit_width(bottleneck, d, "bottleneck =", m)
        self.r, self.w = r, normal(m, d, std=d**-0.5)  # (d)
        self.D, self.c = normal(m, bottleneck, d, std=(2 / d) ** 0.5), zeros(m, bottleneck)  # (r d) (r)
        self.U, self.e = zeros(m, d, bottleneck), zeros(m, d)  # (d r) (d)

    @classmethod
    def among(cls, modules, model, **settings):
        return [m for m in modules if model.kind != "decoder" and not getattr(m, "is_decoder", False)]

    def attach(self, m, model):
        if any(isinstance(d, SideDelta) for d in model.modules()):
            raise PeftlabError(APART)
        undo, handle = super().attach(m, model), m.register_forward_pre_hook(self.select, with_kwargs=True)
        return lambda: (handle.remove(), undo())

    def select(self, m, args, kw):
        """The layer is called with the picked tokens (b k d) and what their attention needs."""
        if not self.on:
            return args, kw
        given = named(m, args, kw)
        x, mask = given["hidden_states"], given.get("attention_mask")
        b, t, _ = x.shape
        real = x.new_ones(b, t, dtype=torch.bool) if mask is None else seen(mask).any(2)[:, 0].expand(b, t)
        score, k = (x @ self.w).float(), -(-real.sum(1, keepdim=True) // self.r)  # (b t) (b 1)
        at = score.detach().masked_fill(~real, -torch.inf).topk(-(-t // self.r)).indices  # (b ⌈t/r⌉)
        picked = torch.arange(at.shape[1], device=x.device) < k
        l = soft_top_k(score, k, real).gather(1, at) * picked
        given["hidden_states"] = x.gather(1, wide(at, x))
        if mask is not None:
            given["attention_mask"] = square(seen(mask), at, t) & picked[:, None, None]
        bias = self.bias(m, given, x)
        if bias is not None:
            given["position_bias"] = square(bias, at, t)
        self.kept = x, at, l, bias
        return (), given

    def bias(self, m, given, x):
        """T5's biases for the distances of all tokens (1 h t t); other encoders have none."""
        if given.get("position_bias") is not None or "position_bias" not in given:
            return given.get("position_bias")
        first = next(a for a in m.modules() if getattr(a, "has_relative_attention_bias", False))
        return first.compute_bias(x.shape[1], x.shape[1], device=x.device)

    def hook(self, m, args, out):
        if not self.on:
            return out
        (x, at, l, bias), self.kept = self.kept, None
        h = out[0] if isinstance(out, tuple) else out
        y = self(x, at, l, h - x.gather(1, wide(at, x)))
        return (y, bias, *out[2:]) if isinstance(out, tuple) else y

    def forward(self, x, at, l, change):
        y = x + F.linear(F.relu(F.linear(x, self.D, self.c)), self.U, self.e)
        return y.scatter_add(1, wide(at, x), (l[..., None] * change).to(y.dtype))


def soft_top_k(s, k, real):
    """λ = min(1, exp(s + a)) with Σλ = k: maximises s·λ and λ's entropy; 0 where not `real`.  s (b t) k (b 1)

    Solved exactly, where coordinate descent comes close: if the j largest are at 1, a = ln (k - j) - ln Σ exp s of the
    rest, and the right j is the smallest that leaves none of the rest above 1.
    """
    z = s.masked_fill(~real, -1e4).sort(1, descending=True).values
    j = torch.arange(s.shape[1], device=s.device)
    a = (k - j).clamp_min(1).log() - z.flip(1).logcumsumexp(1).flip(1)
    first = (z + a < 1e-6).long().argmax(1, keepdim=True)
    return (s + a.gather(1, first)).clamp_max(0).exp() * real


def seen(mask):
    """Booleans, whether given as such or as what is added to the attention's scores."""
    return mask if mask.dtype == torch.bool else mask == 0


def wide(at, x):
    return at[..., None].expand(-1, -1, x.shape[-1])


def square(t, at, n):
    """The rows and columns of t (b or 1, h, n or 1, n) at the picked tokens  (b h k k)."""
    t, k = t.expand(len(at), -1, n, n), at.shape[1]
    rows = t.gather(2, at[:, None, :, None].expand(-1, t.shape[1], -1, n))
    return rows.gather(3, at[:, None, None].expand(-1, t.shape[1], k, -1))
