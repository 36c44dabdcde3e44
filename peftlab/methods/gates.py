"""S³Delta: a search by gates for the candidates that are worth their numbers; then these alone learn, without gates."""

import torch
from torch import nn

from ..delta import WeightDelta
from ..errors import PeftlabError
from ..masks import share_of
from ..training import schedule
from ..view import trial
from . import Knob, get, hybrid, method
from .adapters import Adapter
from .dense_first import STEPS, learnt
from .hybrids import row
from .parts import AddedBias
from .reparameterized import LoRA
from .tensors import zeros

S3 = dict(review="hybrid/automatic", delta_tuning="addition/combination", sparse_view="–", paper="2206.07382")
BUDGET = dict(budget=Knob(0.25, 0.001, 1.0, "budget", log=True)) | STEPS
SIZED = dict(r=Knob(4, 1, 64, "rank", log=True)) | BUDGET
RATE = 0.1  # of α


class Gate:
    """y' = y + z·(f(x, y) - y), f the delta that it is mixed into

    What all candidates share. In the search each has numbers of its own and a gate z between 0 and 1. Otherwise those
    that are kept have theirs in one vector v, in the first of them, and the others have none and do nothing. v is as
    long as the budget: what is too short for one more candidate stays 0 in it. budget: how many numbers may learn, up
    to 1 as a share of what all candidates have.
    """

    kin, kept, z, start = "s3", True, None, None

    def __init__(self, m, budget, before, **own):
        super().__init__(m, **own)
        self.budget, self.before, self.settings, self.peers = budget, before, (budget, before), (self,)
        self.history, self.part, self.place = [], {}, 0  # part: where in v its tensors are

    def joined(self):
        """Until the data is seen, a random structure within the budget stands."""
        self.peers = tuple(d for d in self.group if d.settings == self.settings)
        if self is not self.peers[0]:
            return
        for i, d in enumerate(self.peers):
            d.place, d.start = i, {n: p.detach() for n, p in d.named_parameters()}
            d.shapes = {n: t.shape for n, t in d.start.items()}
            d.fold()
        sizes = [d.size for d in self.peers]
        most = share_of(self.budget, sum(sizes)) if self.budget <= 1 else int(self.budget)
        if not min(sizes) <= most <= sum(sizes):
            raise PeftlabError(
                f"budget = {self.budget:g} allows {most} numbers, and of the {len(sizes)} candidates the smallest has "
                f"{min(sizes)}, all together have {sum(sizes)}; take a budget between these"
            )
        like = next(iter(self.start.values()))
        self.v, self.p = nn.Parameter(like.new_zeros(most)), [most / sum(sizes)] * len(sizes)
        self.register_buffer("structure", torch.zeros(len(sizes), dtype=torch.bool, device=like.device))
        self.register_load_state_dict_post_hook(lambda delta, _: delta.restored())
        self.settle(fitting(torch.rand(len(sizes)), sizes, most))

    @property
    def size(self):
        return sum(shape.numel() for shape in self.shapes.values())

    def __getattr__(self, name):
        """Its tensors, as forward knows them, are parts of v."""
        if name in self.__dict__.get("part", ()):
            return self.peers[0].v[self.part[name]].view(self.shapes[name])
        return super().__getattr__(name)

    def forward(self, *given):
        y, first = given[-1], self.peers[0]
        if first.z is not None:
            return y + first.z[self.place] * (super().forward(*given) - y)
        return super().forward(*given) if self.kept else y

    def unfold(self):
        self.part = {}
        for name, t in self.start.items():
            setattr(self, name, nn.Parameter(t.clone()))

    def fold(self):
        for name in self.shapes:
            delattr(self, name)

    def cut(self):
        """Where in v each of those that are kept has its tensors."""
        end = 0
        for d, kept in zip(self.peers, self.structure.tolist(), strict=True):
            d.kept, d.part = kept, {}
            for name, shape in d.shapes.items() if d.kept else ():
                d.part[name] = slice(end, end := end + shape.numel())

    @torch.no_grad()
    def settle(self, kept):
        """These are kept, and begin where they were drawn."""
        self.structure.copy_(kept)
        self.cut()
        numbers = torch.cat([t.flatten() for d in self.peers if d.kept for t in d.start.values()])
        self.v.zero_()[: len(numbers)] = numbers

    def restored(self):
        """The structure came from a file: it is not looked for again."""
        self.cut()
        self.known(None)

    def known(self, p):
        self.p = p
        for d in self.peers:
            d.start = None

    def begin(self, view):
        """Look for the structure, once, with the data; all is rewound after it."""
        if self.start is None or self is not self.peers[0]:
            return
        with trial(view, [], [self.v], others=learnt(view.model)):
            for d in self.peers:
                d.unfold()
            try:
                search = Search(self, view)
                self.history += view.learn(self.before, get("s3delta").lr, [search])
            finally:
                self.z = None
                for d in self.peers:
                    d.fold()
                self.cut()
        p = search.chances().detach()
        self.settle(fitting(p, search.sizes.tolist(), len(self.v)))
        self.known(p.tolist())


def fitting(scores, sizes, most):
    """Which candidates are kept: in the order of their scores each that still fits."""
    kept = torch.zeros(len(sizes), dtype=torch.bool)
    for i in scores.argsort(descending=True, stable=True).tolist():
        kept[i] = sizes[i] <= most
        most -= int(kept[i]) * sizes[i]
    return kept


class Search:
    """z = σ(log u - log(1 - u) + log p - log(1 - p)), p = σ(α - ζ),  ζ such that Σ n p is the budget

    After each step of the deltas α makes one, on the next batch. Of the first order: it does not look ahead to what the
    deltas would learn under other gates. u is drawn from (0, 1) anew for each batch and candidate, which has n numbers.
    """

    def __init__(self, first, view):
        self.first, self.view, self.most = first, view, len(first.v)
        self.sizes = torch.tensor([d.size for d in first.peers], device=first.v.device)  # (n)
        self.a = torch.zeros(len(self.sizes), device=first.v.device, requires_grad=True)  # α (n)
        self.adam = torch.optim.AdamW([self.a], weight_decay=0.0)
        self.draw()

    def chances(self):
        """p, whose sum is a constant for the gradient: one can only rise if others fall."""
        p = torch.sigmoid(self.a - shift(self.a.detach(), self.sizes, self.most))
        return p * (p.sum().detach() / p.sum())

    def draw(self):
        p, u = self.chances(), torch.rand(len(self.a)).to(self.a)
        z = torch.sigmoid(torch.logit(u, 1e-6) + torch.logit(p, 1e-6))
        self.first.z = z.detach()
        return z

    def after_step(self, step, steps):
        z = self.draw()
        slopes = self.view.gradient(next(self.view.batches), [self.first.z])
        (self.a.grad,) = torch.autograd.grad(z, self.a, slopes)
        self.adam.param_groups[0]["lr"] = RATE * schedule(step, steps)
        self.adam.step()
        self.draw()


def shift(a, sizes, most):
    """The ζ with which Σ n σ(α - ζ) is the budget, by bisection."""
    a = a.double()
    low, high = a.min() - 50, a.max() + 50
    for _ in range(40):
        middle = (low + high) / 2
        above = (sizes * torch.sigmoid(a - middle)).sum() > most
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return middle


@method("gate-lora", title="S³Delta's LoRA", **S3, where="q k v o up down", lr=5e-3, knobs=SIZED)
class GateLoRA(Gate, LoRA):
    """y' = y + z·B A x

    A LoRA at each place that is worth it.
    """

    def __init__(self, m, r, budget, before):
        super().__init__(m, budget, before, r=r, alpha=r)


@method("gate-adapter", title="S³Delta's adapter", **S3, where="o down", lr=7e-3, knobs=SIZED)
class GateAdapter(Gate, Adapter):
    """y' = y + z·(U relu(D y + c) + e)

    A sequential adapter at each place that is worth it.
    """

    def __init__(self, m, r, budget, before):
        super().__init__(m, budget, before, r=r)


@method("gate-bias", title="S³Delta's biases", **S3, where="q k v o up down", lr=1e-2, knobs=BUDGET)
class GateBias(Gate, AddedBias):
    """y' = y + z·b

    BitFit at each place that is worth it; a layer needs no bias of its own.
    """


class Gain(WeightDelta):
    """w' = w + Δw for the gain w of a norm"""

    sites, needs = ("norm1", "norm2"), "changes the gains of norms,"

    def __init__(self, m):
        super().__init__()
        self.d = zeros(m, len(m.weight))

    @classmethod
    def fits(cls, m):
        return getattr(m, "weight", None) is not None and m.weight.ndim == 1

    def forward(self, w):
        return w + self.d


@method("gate-norm", title="S³Delta's norms", **S3, where="norm1 norm2", lr=1e-2, knobs=BUDGET)
class GateNorm(Gate, Gain):
    """w' = w + z·Δw for the gain w of a norm

    LNFit at each place that is worth it.
    """


@hybrid("s3delta", title="S³Delta", aliases=("s3delta-m", "s3", "s³delta"), **S3, lr=7e-3, knobs=SIZED)
def s3delta(r, budget, before):
    """y' = y + z·Δ(x, y) for every candidate Δ;  p = σ(α - ζ), Σ n p = budget

    LoRA, adapters, biases and gains of norms at all their places, each behind a gate z that is open with chance p. The
    deltas learn on one batch and the gates' α on the next, while the shift ζ keeps as many numbers open on average as
    the budget allows. Then the likeliest candidates that fit are kept, all is rewound, and they alone learn.
    """
    rows = row("gate-lora", r=r), row("gate-adapter", r=r), row("gate-bias"), row("gate-norm")
    return [one | dict(settings=one["settings"] | dict(budget=budget, before=before)) for one in rows]
