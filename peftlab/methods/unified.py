"""Unified methods: one module in place of many, by routes that are averaged or by masks of a shared prototype."""

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import PeftlabError
from ..masks import share_of
from ..quantized import pack, unpack
from . import Knob, method
from .adapters import Adapter, Pfeiffer, R
from .prompts import Prefix, before
from .reparameterized import RANK, SCALE, LoRA
from .tensors import like


def bottleneck(x, D, c, U, e):
    return F.linear(F.relu(F.linear(x, D, c)), U, e)


# AdaMix -------------------------------------------------------------------------------------------

COPIES = dict(copies=Knob(4, 1, 16, "copies", log=True), weight=Knob(1.0, 0.0, 100.0, "consistency"))
NEAR = 0.1  # how far apart copies begin, as a share of their size


class Copies:
    """What AdaMix's forms share: copies of what reads and of what writes, and in each pass a route through one of each.

    Outside of training it is one module, the mean of the copies, unless `route` (2 1) says which two are taken.
    """

    kin, route = "adamix", None

    def multiply(self, copies, weight):
        """So many of each tensor. They start near each other, as their mean is to stand for all; zeros stay zeros."""
        self.copies, self.weight = copies, weight
        for name, t in dict(self.named_parameters()).items():
            noise = torch.randn(copies, *t.shape).to(t) * NEAR * t.detach().square().mean().sqrt()
            setattr(self, name, nn.Parameter(t.detach() + noise))  # (copies …)

    def mean(self):
        return {n: p.mean(0) for n, p in self.named_parameters()}

    def module(self):
        """The tensors of the module that this pass goes through; which copies they are is `taken`."""
        if self.route is None and not self.training:
            return self.mean()
        device = next(self.parameters()).device
        i, j = self.taken = torch.randint(self.copies, (2, 1), device=device) if self.route is None else self.route
        return {n: p[j if n in self.writes else i][0] for n, p in self.named_parameters()}

    def compare(self, model, batch, output):
        """In training: the weight times how far a second pass, through other routes, is from the first."""
        if self is not self.group[0] or not (self.training and self.on and self.weight):
            return 0.0
        ahead = getattr(model, "module", model).kind == "decoder"  # whose answers are to the words that follow
        return self.weight * apart(output.logits, model(**batch).logits, batch["labels"], ahead)

    def plain(self, row):
        """(row of a recipe, tensors): the mean of the copies, one module."""
        settings = {n: v for n, v in row["settings"].items() if n not in COPIES}
        return row | dict(method=self.one, settings=settings), self.mean()


def apart(a, b, labels, ahead=False):
    """½ (KL(p‖q) + KL(q‖p)) of two passes' answers, where there is a label; (a - b)² where the answers are numbers."""
    if a.shape[-1] == 1:
        return (a - b).float().square().mean()
    p, q = a.float().log_softmax(-1), b.float().log_softmax(-1)
    each = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2  # (b) or (b t)
    if labels.ndim == 1:
        return each.mean()
    t = labels.shape[1]
    told = labels[:, ahead:] != -100
    return (each[:, -t:][:, : t - ahead] * told).sum() / told.sum().clamp(min=1)


MIX = dict(review="unified", sparse_view="–", paper="2205.12410")


@method(
    "adamix",
    title="AdaMix",
    aliases=("adamix-adapter",),
    **MIX,
    delta_tuning="addition/adapter",
    where="down",
    lr=1e-2,
    knobs=R | COPIES,
)
class AdaMix(Copies, Adapter):
    """y' = y + Uⱼ relu(Dᵢ y + cᵢ) + eⱼ;  at last y' = y + Ū relu(D̄ y + c̄) + ē

    Several copies of an adapter's two halves, of which each pass of training draws one and one. A second pass draws
    anew, and the loss has a part for what the two passes say differently. The mean of all copies is what stays:
    `pl.flatten` leaves a plain adapter.
    """

    one, writes = "adapter", ("U", "e")

    def __init__(self, m, r, copies, weight):
        super().__init__(m, r)
        self.multiply(copies, weight)

    def squeezed(self, x):
        return bottleneck(x, **self.module())


@method(
    "adamix-lora",
    title="AdaMix of LoRA",
    **MIX,
    delta_tuning="reparameterization/rank",
    where="q v",
    lr=5e-3,
    knobs=RANK | SCALE | COPIES,
)
class AdaMixLoRA(Copies, LoRA):
    """y' = y + (α/r)·Bⱼ Aᵢ x;  at last y' = y + (α/r)·B̄ Ā x

    AdaMix with the two matrices of LoRA. `pl.flatten` leaves a plain LoRA, which merges.
    """

    one, writes = "lora", ("B",)

    def __init__(self, m, r, alpha, copies, weight):
        super().__init__(m, r, alpha)
        self.multiply(copies, weight)

    def forward(self, x, y):
        w = self.module()
        return y + self.s * (x @ w["A"].T) @ w["B"].T


# ProPETL ------------------------------------------------------------------------------------------

SHARE = dict(p=Knob(0.5, 0.01, 1.0, "density"), tasks=Knob(1, 1, 64, "tasks", log=True))
SPREAD = 0.1  # scores begin between -SPREAD and SPREAD


class Masked:
    """What ProPETL's forms share: W^(l) = W ⊙ M^(l), W one prototype for all layers of a row, M^(l) a mask of layer l.

    M^(l) has the ⌊p·n⌋ entries that are largest in |s|, s the layer's scores of one of W's matrices; their gradient is
    that of the mask (straight through). With several tasks an entry is also there where the mask of the task, one for
    all layers, has it: `delta.task = 1`. Layers of other shapes have a prototype of their own. A file holds the masks
    as bits and no scores.
    """

    first = task = 0  # first: whose prototype it is, in the group

    def masking(self, m, p, tasks, names):
        if p > 1:
            raise PeftlabError(f"density p = {p} is more than the whole prototype; take 0.5 for half of its entries")
        self.p, self.tasks, self.masked = p, tasks, names
        self.shapes = {n: t.shape for n, t in self.named_parameters()}
        for n in names:
            setattr(self, f"s_{n}", scores(m, *self.shapes[n]))
            if tasks > 1:
                setattr(self, f"t_{n}", scores(m, tasks, *self.shapes[n]))

    def joined(self):
        self.first = next(i for i, d in enumerate(self.group) if d.row == self.row and d.shapes == self.shapes)
        if self.group[self.first] is not self:
            for n in self.shapes:  # the first one's are everybody's
                setattr(self, n, None)
                if hasattr(self, f"t_{n}"):
                    setattr(self, f"t_{n}", None)

    def module(self):
        """The tensors of this layer's module: the prototype's, masked where they are matrices."""
        W = self.group[self.first]
        return {n: getattr(W, n) * self.chosen(n) if n in self.masked else getattr(W, n) for n in self.shapes}

    def chosen(self, n):
        """The mask of one of the matrices, for the task that is set."""
        M = self.best(n, getattr(self, f"s_{n}"))
        if self.tasks == 1:
            return M
        return 1 - (1 - M) * (1 - self.best(n, getattr(self.group[self.first], f"t_{n}")[self.task]))  # or

    def best(self, n, s):
        """1 where |s| is largest, 0 elsewhere, for one mask or several; the gradient is that of |s|."""
        size, many = s.abs().reshape(-1, self.shapes[n].numel()), max(1, share_of(self.p, self.shapes[n].numel()))
        M = torch.zeros_like(size).scatter(1, size.detach().topk(many, 1).indices, 1.0)
        return (M + (size - size.detach())).view_as(s)

    def masks(self):
        """What this layer takes of each matrix, booleans."""
        return [self.best(n, getattr(self, f"s_{n}").detach()) > 0 for n in self.masked]

    def stored(self):
        return {n: t if n in self.shapes else pack(self.best(n[2:], t.detach()), 1) for n, t in self.own().items()}

    @torch.no_grad()
    def unpack(self, tensors):
        """Take scores that have these masks: the middle of the upper or of the lower half of where scores begin."""
        for n, s in self.own().items():
            if n not in self.shapes:
                s.copy_((unpack(tensors[n], 1, s.shape) + 0.5) * SPREAD / 2)


def scores(m, *shape):
    return nn.Parameter(((2 * torch.rand(shape) - 1) * SPREAD).to(like(m)))


PRO = dict(review="unified", sparse_view="–", paper="2305.17682")


@method(
    "propetl-adapter",
    title="ProPETL adapter",
    aliases=("propetl",),
    **PRO,
    delta_tuning="addition/adapter",
    where="block",
    lr=7e-3,
    knobs=R | SHARE,
)
class ProPETLAdapter(Masked, Pfeiffer):
    """h' = LN(s + A(LN(s))), A(z) = (U ⊙ M) relu((D ⊙ M') z + c) + e, U D c e the same in all layers, M and M' not

    A Pfeiffer adapter that exists once: each layer has its own masks of it, in a file one bit an entry. U = 0 at the
    start, the masks are random.
    """

    def __init__(self, m, r, p, tasks):
        super().__init__(m, r)
        self.masking(m, p, tasks, ("D", "U"))

    def squeezed(self, x):
        return bottleneck(x, **self.module())


@method(
    "propetl-prefix",
    title="ProPETL prefix",
    **PRO,
    delta_tuning="addition/prompt",
    where="attn",
    lr=1e-2,
    knobs=dict(n=Knob(8, 1, 64, "prefix length", log=True)) | SHARE,
)
class ProPETLPrefix(Masked, Prefix):
    """k' = [P_k ⊙ M; k], v' = [P_v ⊙ M'; v], P_k and P_v the same in all layers, M and M' not

    One prefix for every attention, of which each has masks of its own. Not the identity at the start.
    """

    def __init__(self, m, n, p, tasks):
        super().__init__(m, n)
        self.masking(m, p, tasks, ("P_k", "P_v"))

    def forward(self, k, v):
        w = self.module()
        return before(w["P_k"], k), before(w["P_v"], v)


@method(
    "propetl-lora",
    title="ProPETL LoRA",
    **PRO,
    delta_tuning="reparameterization/rank",
    where="q v",
    lr=1e-2,
    knobs=RANK | SCALE | SHARE,
)
class ProPETLLoRA(Masked, LoRA):
    """y' = y + (α/r)·(B ⊙ M) (A ⊙ M') x, B and A the same wherever they fit, M and M' not

    One LoRA for all layers, and for queries and values alike; two rows, `q` and `v`, have one each. B = 0 at the start.
    """

    def __init__(self, m, r, alpha, p, tasks):
        super().__init__(m, r, alpha)
        self.masking(m, p, tasks, ("A", "B"))

    def forward(self, x, y):
        w = self.module()
        return y + self.s * (x @ w["A"].T) @ w["B"].T
