"""Adapters: a bottleneck beside or behind the layers of a frozen backbone."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import layer_of
from ..delta import BlockDelta, OutputDelta, register, stack_of
from ..errors import PeftlabError
from . import Choice, Knob, fit_width, method
from .tensors import normal, ones, zeros

R = dict(r=Knob(8, 1, 64, "bottleneck", log=True))
ADAPTER = dict(review="additive/adapter", delta_tuning="addition/adapter", sparse_view="–")


@method(
    "adapter",
    title="sequential adapter",
    aliases=("houlsby", "sequential-adapter", "bottleneck"),
    **ADAPTER | dict(sparse_view="rule-based"),
    paper="1902.00751",
    where="o down",
    lr=7e-3,
    knobs=R,
)
class Adapter(OutputDelta):
    """y' = y + U relu(D y + c) + e

    D squeezes to r numbers, as large at the start as relu needs to hand on what it reads (1502.01852 eq. 10); U = 0, so
    the model is unchanged. In series: it reads the layer's output.
    """

    def __init__(self, m, r):
        super().__init__()
        d = inside(m, "down").out_features if hasattr(m, "block_index") else m.out_features
        fit_width(r, d, "bottleneck r =", m)
        self.D, self.c = normal(m, r, d, std=(2 / d) ** 0.5), zeros(m, r)  # (r d) (r)
        self.U, self.e = zeros(m, d, r), zeros(m, d)  # (d r) (d)

    def squeezed(self, x):
        return F.linear(F.relu(F.linear(x, self.D, self.c)), self.U, self.e)

    def forward(self, x, y):
        return y + self.squeezed(y)


def inside(m, site):
    """The first module at this site inside `m`."""
    return next(c for c in m.modules() if getattr(c, "site", None) == site)


@method(
    "pfeiffer",
    title="Pfeiffer adapter",
    aliases=("adapterhub", "seq-bn"),
    **ADAPTER,
    paper="2005.00247",
    where="block",
    lr=7e-3,
    knobs=R,
)
class Pfeiffer(BlockDelta, Adapter):
    """h' = LN(s + A(LN(s))), A(z) = U relu(D z + c) + e, s = h + FFN(h);  without that LN: h' = s + A(s)

    One adapter a layer, behind the feed-forward part only. Where a layer ends in a norm (BERT and its kin) it reads the
    normalised sum and adds to the plain one, over which the norm is then taken again; where norms come first (GPT-2,
    Llama, T5) it reads the plain sum, and is a sequential adapter on the residual stream.
    """

    def attach(self, m, model):
        if not m.ends_in_norm:
            return super().attach(m, model)
        norm = inside(m, "norm2")
        self.norm = (norm,)  # in a tuple: no part of the delta
        name, handle = register(norm, self), norm.register_forward_pre_hook(self.before)
        return lambda: (handle.remove(), delattr(norm, name))

    def before(self, norm, args):
        return (self.rows.call(self.read, args[0]), *args[1:]) if self.on else args

    def read(self, s):
        return s + self.squeezed(self.norm[0].forward(s))  # not its call, which would come here again

    def forward(self, h):
        return h + self.squeezed(h)


@method(
    "residual-adapter",
    title="residual adapter",
    aliases=("vlm-adapter",),
    **ADAPTER,
    paper="2004.03829",
    where="block",
    lr=7e-3,
    knobs=R,
)
class Residual(BlockDelta, Adapter):
    """h' = h + U relu(D LN(h) + c) + e

    One adapter a layer, at its output, with a layer norm of its own in front: what it reads has the same size in every
    layer. The norm starts at gain 1 and shift 0.
    """

    def __init__(self, m, r):
        super().__init__(m, r)
        self.gain, self.shift = ones(m, len(self.U)), zeros(m, len(self.U))  # (d) (d)

    def forward(self, h):
        return h + self.squeezed(F.layer_norm(h, self.gain.shape, self.gain, self.shift))


@method(
    "parallel-adapter",
    title="parallel adapter",
    aliases=("parallel", "par-bn"),
    **ADAPTER,
    paper="2110.04366",
    where="down",
    lr=2e-2,
    knobs=R,
)
class Parallel(Adapter):
    """y' = y + U relu(D x + c) + e, x what enters the sublayer, y what leaves it

    Beside a whole sublayer instead of behind it: at `down` x is what enters `up`, at `o` what enters `q`; where a norm
    comes first, x has been through it. U = 0 at the start.
    """

    sites, first, s = ("o", "down"), dict(o="q", down="up"), 1.0

    def attach(self, m, model):
        undo, earlier = super().attach(m, model), itertools.takewhile(lambda other: other is not m, model.modules())
        *_, own = (other for other in earlier if getattr(other, "site", None) == self.first[m.site])  # the last one
        handle = own.register_forward_pre_hook(self.keep, prepend=True)
        return lambda: (handle.remove(), undo())

    def keep(self, m, args):
        if self.on:
            self.x = args[0]

    def hook(self, m, args, y):
        x, self.x = self.x if self.on else None, None  # nothing of a pass outlives it
        return self.rows.call(self, x, y) if self.on else y

    def forward(self, x, y):
        return y + self.s * self.squeezed(x)

    @classmethod
    def merges(cls, settings):
        return False


@method(
    "scaled-parallel",
    title="scaled parallel adapter",
    aliases=("scaled-parallel-adapter",),
    **ADAPTER,
    paper="2110.04366",
    where="down",
    lr=7e-3,
    knobs=R | dict(s=Knob(4.0, 0.1, 32.0, "scale s", log=True)),
)
class ScaledParallel(Parallel):
    """y' = y + s·(U relu(D x + c) + e), x what enters the sublayer, y what leaves it

    A parallel adapter times a fixed number.
    """

    def __init__(self, m, r, s):
        super().__init__(m, r)
        self.s = s


@method(
    "adapterdrop",
    title="AdapterDrop",
    **ADAPTER,
    paper="2010.11918",
    where="o down",
    lr=7e-3,
    knobs=R | dict(drop=Knob(1, 0, 24, "layers without")),
)
class AdapterDrop(Adapter):
    """y' = y + U relu(D y + c) + e in all layers but the first n

    Sequential adapters, none in the lowest layers: these run as fast as the plain backbone, and the backward pass ends
    above them. T5's encoder and decoder both lose their first n. The number is fixed, in training as afterwards.
    """

    def __init__(self, m, r, drop):
        super().__init__(m, r)

    @classmethod
    def among(cls, modules, model, drop, **settings):
        lists = [s for s in model.modules() if isinstance(s, nn.ModuleList) and hasattr(next(iter(s), None), "site")]
        depth = {b.block_index: i for s in lists for i, b in enumerate(s) if b.site == "block"}
        left = [m for m in super().among(modules, model) if depth[layer_of(m)] >= drop]
        if not left and modules:
            deepest = max(depth[layer_of(m)] for m in modules)
            raise PeftlabError(
                f"drop={drop} leaves no adapter: the last layer asked for has {deepest} before it; take drop={deepest}"
            )
        return left


@method(
    "tiny-attn",
    title="Tiny-Attn adapter",
    aliases=("tiny-attention",),
    **ADAPTER,
    paper="2211.01979",
    where="o",
    lr=2e-2,
    knobs=dict(
        heads=Knob(1, 1, 16, "heads", log=True), deploy=Choice("heads", ("heads", "average"), "deployed as")
    ),
)
class TinyAttention(OutputDelta):
    """y' = y + (1/n) Σᵢ uᵢ aᵢ + e, aᵢ = softmax(qᵢ kᵢᵀ) vᵢ, [qᵢ kᵢ vᵢ] = Dᵢ LN(y) + cᵢ, one number each a token

    An adapter whose middle is a self-attention: each token's change depends on the other tokens of its text, in a
    decoder on those before it. It reads what the attention's output layer gives. With deploy=average the n heads start
    close to each other, and outside of training their numbers are averaged into one head.
    """

    sites, by_row = ("o",), False

    def __init__(self, m, heads, deploy):
        super().__init__()
        d, self.average = m.out_features, deploy == "average"
        self.gain, self.shift = ones(m, d), zeros(m, d)  # (d) (d)
        D, near = normal(m, heads, 3, d, std=d**-0.5), normal(m, heads, 3, d, std=0.1 * d**-0.5)
        self.D = nn.Parameter((D[:1] + near if self.average and heads > 1 else D).detach())  # (n 3 d)
        self.c, self.U, self.e = zeros(m, heads, 3), zeros(m, heads, d), zeros(m, d)  # (n 3) (n d) (d)

    def attach(self, m, model):
        stack, self.causal = stack_of(m, model)
        undo, self.at, seen = super().attach(m, model), int(model.kind == "encoder"), self.watch(stack)
        return lambda: (seen.remove(), undo())

    def see(self, stack, args, kw):
        super().see(stack, args, kw)
        if self.on and getattr(kw.get("past_key_values"), "get_seq_length", lambda: 0)():
            raise PeftlabError("tiny-attn reads all earlier tokens, which a cache hides; generate with use_cache=False")

    def allowed(self, y):
        """Which tokens each one reads (b 1 t t): no padding, in a decoder none that follow, and always itself."""
        t, mask = y.shape[1], y.new_ones(y.shape[:2]) if self.mask is None else self.mask
        new = mask.new_ones(len(mask), t - mask.shape[1])  # those of a prompt
        mask = torch.cat([mask[:, : self.at], new, mask[:, self.at :]], 1).bool()[:, None, None]
        every = torch.ones(t, t, dtype=torch.bool, device=y.device)
        return (mask & (every.tril() if self.causal else every)) | every.tril().triu()

    def forward(self, x, y):
        parts = self.D, self.c, self.U
        D, c, U = (p.mean(0, keepdim=True) for p in parts) if self.average and not self.training else parts
        z = F.layer_norm(y, self.gain.shape, self.gain, self.shift)
        q, k, v = (F.linear(z, D.flatten(0, 1), c.flatten()).unflatten(-1, c.shape).permute(3, 0, 2, 1)).unsqueeze(-1)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=self.allowed(y))  # (b n t 1)
        return y + a.squeeze(-1).transpose(1, 2) @ U / len(U) + self.e

    @classmethod
    def merges(cls, settings):
        return False
