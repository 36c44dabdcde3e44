"""Sparse deltas that let all weights learn before they choose: fine-tune, choose, rewind or project, and go on."""

import torch
from torch import nn

from ..scores import SCORES, Importance, Look
from ..view import trial
from . import Choice, Knob, get
from .masked import SELECT, Mask, P, sparse
from .partial import BitFit

STEPS = dict(before=Knob(100, 1, 400, "steps before", log=True))
PLANS = {  # the density after round i of n
    "once": lambda p, i, n: p,
    "re-projected": lambda p, i, n: p,
    "gradual": lambda p, i, n: p ** (i / n),
}
PLAN = dict(plan=Choice("re-projected", tuple(PLANS), "schedule"), period=Knob(20, 1, 200, "steps a round", log=True))


class DenseFirst(Mask):
    """What of the following is common: first a training that is not sparse, of `before` steps; its loss in `history`.

    In the plan "once" all is rewound after it. In the others the change is projected on the best entries after every
    so many steps, and what is left of it in the end is kept.
    """

    score, plan = "moved", "once"

    def __init__(self, m, p, select="global", before=100, period=None, n=0, **more):
        super().__init__(m, p, select, n, before=before, period=period, **more)
        self.before, self.period, self.history = before, period, []

    def learn(self, view, steps, deltas=()):
        """All weights under the mask learn, at the rate of full fine-tuning."""
        self.history += view.learn(steps, get("full").lr, deltas)

    def look(self, view):
        once = self.plan == "once"
        rounds = 1 if once else max(1, self.before // self.period)
        with trial(view, self.weights(), [self.v], others=learnt(view.model) if once else ()) as moved:
            for i in range(1, rounds + 1):
                self.learn(view, self.before // rounds)
                score = SCORES[self.score].make(Look(self.weights(), view, self.n, moved))
                changes, I = moved(), self.chosen(score, PLANS[self.plan](self.p, i, rounds))
                project(self.weights(), changes, I)
        self.settle(I, None if once else changes)


def learnt(model):
    """What learns besides: the head."""
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def project(weights, changes, kept):
    """Take back all changes but those at the kept positions."""
    whole = torch.cat([D.flatten() for D in changes])
    away = whole.index_fill(0, kept, 0.0).split([D.numel() for D in changes])
    for W, back in zip(weights, away, strict=True):
        W.sub_(back.view_as(W))


@sparse("lt-sft", "LT-SFT", "2110.07560", "–", knobs=P | SELECT | STEPS)
class LotteryTicket(DenseFirst):
    """W' = W + scatter(v, I), I = the entries that fine-tuning of all W moves most

    After it everything is rewound to where it began, and only the entries that had moved most learn.
    """


@sparse("child-pruning", "ChildPruning", "2211.15583", "projection-based", knobs=P | SELECT | STEPS | PLAN)
class ChildPruning(DenseFirst):
    """W' = W + scatter(v, I), I = the entries with the largest |ΔW|; ΔW ← P(ΔW) after each round of full fine-tuning

    The projection P keeps the largest entries and sets the rest back. A small step may move it far, so that the loss
    jumps at each round; `history` shows it. In a gradual plan the density falls round by round.
    """

    def __init__(self, m, p, select, before, plan, period):
        super().__init__(m, p, select, before, period, plan=plan)
        self.plan = plan


@sparse(
    "mask",
    "sparse mask of your own",
    "–",
    "–",
    aliases=("sparse-mask",),
    knobs=P
    | dict(score=Choice("gradient", tuple(SCORES), "score"))
    | SELECT
    | dict(n=Knob(8, 1, 600, "batches seen", log=True))
    | dict(PLAN, plan=Choice("once", tuple(PLANS), "schedule"))
    | STEPS,
)
class AnyMask(DenseFirst):
    """W' = W + scatter(v, I), I = the entries with the best scores

    Any score with any selection and any schedule.
    """

    def __init__(self, m, p, score, select, n, plan, period, before):
        super().__init__(m, p, select, before, period, n, score=score, plan=plan)
        self.score, self.plan = score, plan

    @property
    def trains(self):
        """Whether all entries learn before it chooses."""
        return self.plan != "once" or self.score == "moved"

    @property
    def blind(self):
        return (self.trains or SCORES[self.score].data) and not self.ready

    def look(self, view):
        super().look(view) if self.trains else Mask.look(self, view)


@sparse(
    "diff-pruning",
    "diff pruning",
    "2012.07463 eq. 4",
    "projection-based",
    lr=2e-2,
    knobs=P | SELECT | STEPS | dict(penalty=Knob(0.1, 0.0, 10.0, "weight of L₀")),
)
class DiffPruning(DenseFirst):
    """W' = W + z ⊙ D, z = min(1, max(0, 3 σ(log u - log(1 - u) + α) - 1.5)), then the largest entries of z ⊙ D

    A gate for every entry and one for every matrix learn whether a change is worth its place: the expected number of
    open ones is the penalty. Then the change is projected on its largest entries, and they alone go on. While it looks
    it needs more memory than full fine-tuning.
    """

    def __init__(self, m, p, select, before, penalty):
        super().__init__(m, p, select, before)
        self.weight = penalty
        self.D = self.a = self.b = nn.Parameter()  # names that are parameters later on
        self.D = self.a = self.b = None

    def gate(self, a):
        """A hard concrete number between 0 and 1, its median without noise."""
        u = torch.rand_like(a).clamp(1e-6, 1 - 1e-6) if self.training else torch.full_like(a, 0.5)
        return (3 * torch.sigmoid(u.log() - (1 - u).log() + a) - 1.5).clamp(0, 1)

    def forward(self, W):
        if self.D is None:
            return super().forward(W)
        return W + self.gate(self.a) * self.gate(self.b) * self.D

    def penalty(self):
        """λ · the expected share of open gates, P(z > 0) = σ(α) for the entry times that for its matrix."""
        if self.D is None:
            return 0.0
        return self.weight * (torch.sigmoid(self.a) * torch.sigmoid(self.b)).mean() / len(self.peers)

    def look(self, view):
        for d, W in zip(self.peers, self.weights(), strict=True):
            d.D, d.a, d.b = (nn.Parameter(t) for t in (torch.zeros_like(W), torch.full_like(W, 5.0), W.new_tensor(5.0)))
            d.speeds = dict(a=100.0, b=100.0)
        self.v.requires_grad_(False)
        try:
            self.learn(view, self.before, self.peers)
            view.model.eval()
            with torch.no_grad():
                changes = [d.gate(d.a) * d.gate(d.b) * d.D for d in self.peers]
        finally:
            for d in self.peers:
                d.D = d.a = d.b = None
                d.speeds = {}
            self.v.requires_grad_(True)
        self.settle(self.chosen([c.abs() for c in changes]), changes)


class SparseBias(DenseFirst):
    """Biases that all learn for a while and add up Σ |Δb·∂L/∂b|; the most important ones begin anew."""

    tensor, sites, needs, fits = "bias", BitFit.sites, BitFit.needs, BitFit.fits

    def look(self, view):
        with trial(view, self.weights(), [self.v], others=learnt(view.model)):
            importance = Importance(self.weights())
            self.history += view.learn(self.before, get("bitfit").lr, [importance])
        self.settle(self.chosen(importance.total))


BIASES = dict(
    review="partial/bias",
    lr=get("bitfit").lr,
    where=get("bitfit").where,
    knobs=dict(p=Knob(0.5, 0.001, 1.0, "density")) | STEPS,
)


@sparse("u-bitfit", "U-BitFit", "2305.16597", "–", **BIASES)
class UBitFit(SparseBias):
    """b' = b + scatter(v, I), I = the single biases with the largest Σ |Δb·∂L/∂b|"""


@sparse("s-bitfit", "S-BitFit", "2305.16597", "–", **BIASES)
class SBitFit(SparseBias):
    """b' = b + scatter(v, I), I = the whole bias vectors with the largest mean Σ |Δb·∂L/∂b|"""

    def __init__(self, m, p, before):
        super().__init__(m, p, "module", before)
