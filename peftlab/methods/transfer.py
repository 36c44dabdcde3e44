"""Soft prompts that build on the prompts of other tasks: where they begin, what they mix, the space they live in.

The sources are named by a setting; a run trains a prompt on each first (`peftlab.sources`) and hands them over.
Attached by hand, without that, a delta has fresh prompts in their place: words of the backbone's own vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..delta import TokenDelta
from ..errors import PeftlabError
from ..view import trial
from . import Choice, Knob, Tasks, get, method
from .prompts import Prompt
from .tensors import normal, ones, zeros

LENGTH, SOURCES = dict(n=Knob(8, 1, 64, "prompt length", log=True)), dict(sources=Tasks("", "source tasks"))
PLACE = dict(sparse_view="–", where="model")
PROMPT = PLACE | dict(review="additive/soft prompt", delta_tuning="addition/prompt")


class Transferred(TokenDelta):
    """What of the following is common: `prompt(e)` (n d) or (b n d) is put before the tokens."""

    builds_on = "prompt"

    def forward(self, e):
        P = self.prompt(e).expand(len(e), -1, -1)
        return torch.cat([e[:, : self.at], P, e[:, self.at :]], 1)


def fresh(model, n, k=1):
    """k new prompts of n words (k n d)."""
    return torch.stack([Prompt(model, n).P.detach() for _ in range(k)])


@method(
    "spot",
    title="SPoT",
    paper="2110.07904",
    lr=1e-2,
    knobs=LENGTH
    | SOURCES
    | dict(start=Choice("nearest", ("nearest", "mean"), "begins at"))
    | dict(before=Knob(20, 1, 400, "steps before", log=True)),
    **PROMPT,
)
class SPoT(Transferred):
    """e' = [P; e], at the start P = Pⱼ of the nearest source task j

    Pⱼ is a trained prompt; start="mean" begins at the mean of all. The nearest is found by a prompt that is trained
    on the target for the steps before, and then forgotten: `near` has its similarity to each source, the cosine between
    two tokens averaged over all pairs of them. Without sources it is prompt-tuning.
    """

    def __init__(self, model, n, sources, start, before):
        super().__init__()
        self.P = nn.Parameter(fresh(model, n)[0])  # (n d)
        self.start, self.before, self.found, self.near = start, before, None, []

    def take(self, states):
        """Trained prompts of the sources."""
        self.found = torch.stack([s["P"] for s in states]).to(self.P)  # (sources n d)
        if self.start == "mean" or len(states) == 1:
            self.begin_at(self.found.mean(0))

    def begin(self, view):
        if self.found is None:
            return
        learnt = [p for p in view.model.parameters() if p.requires_grad]
        with trial(view, [self.P], [], others=learnt):
            view.learn(self.before, get("prompt").lr)
            self.near = [similarity(self.P.detach(), P).item() for P in self.found]
        self.begin_at(self.found[self.near.index(max(self.near))])

    def begin_at(self, P):
        with torch.no_grad():
            self.P.copy_(P)
        self.found = None

    def prompt(self, e):
        return self.P


def similarity(P, other):
    """The mean cosine between a token of one prompt and a token of the other."""
    return (F.normalize(P, dim=-1) @ F.normalize(other, dim=-1).T).mean()


@method(
    "attempt",
    title="ATTEMPT",
    paper="2205.11961",
    lr=3e-2,
    knobs=LENGTH
    | dict(r=Knob(16, 1, 128, "bottleneck G", log=True), t=Knob(2.7, 0.01, 10.0, "temperature/d", log=True))
    | dict(prompts=Knob(2, 1, 16, "fresh prompts", log=True))
    | SOURCES,
    **PROMPT,
)
class Attempt(Transferred):
    """e' = [P + Σⱼ aⱼ Pⱼ; e], a = softmaxⱼ(G(max e)·max Pⱼ / (t d)), G(x) = LN(U silu(D x))

    An instance decides how much of each prompt it gets: of those of the source tasks, which are frozen, and last of P,
    its own. max is taken over the tokens, and a of the last pass is kept in `heard` (b prompts). P and G are trained.
    Without sources there are fresh prompts, trained as well.
    """

    def __init__(self, model, n, r, t, prompts, sources):
        super().__init__()
        k, E = len(sources.split()) or prompts, model.get_input_embeddings()
        self.P, d = nn.Parameter(fresh(model, n)[0]), E.weight.shape[1]  # (n d)
        self.S = nn.Parameter(fresh(model, n, k), requires_grad=not sources)  # (k n d)
        self.D, self.U = normal(E, r, d, std=d**-0.5), normal(E, d, r, std=r**-0.5)
        self.g, self.b = ones(E, d), zeros(E, d)
        self.t, self.mask = t * d, None

    def take(self, states):
        """Trained prompts of the sources."""
        with torch.no_grad():
            self.S.copy_(torch.stack([s["P"] for s in states]))

    def attach(self, m, model):
        if model.kind == "decoder" and model.head_kind in ("lm", "seq2seq"):
            raise PeftlabError(
                "attempt reads the whole text, in which a decoder would see the words that it is to predict; take spot"
            )
        return super().attach(m, model)

    def widen(self, stack, args, kw):
        self.mask = self.rows.mine(kw.get("attention_mask"))  # of the tokens that e has, without the new ones
        return super().widen(stack, args, kw)

    def prompt(self, e):
        there = e if self.mask is None else e.masked_fill(self.mask[..., None] == 0, -torch.inf)
        most = torch.cat([self.S.amax(1), self.P.amax(0, keepdim=True)])  # (k+1 d)
        x = F.linear(F.silu(F.linear(there.amax(1), self.D)), self.U)  # (b d)
        a = torch.softmax(F.layer_norm(x, self.g.shape, self.g, self.b) @ most.T / self.t, -1)
        self.heard = a.detach()
        return self.P * (1 + a[:, -1:, None]) + torch.einsum("bk,knd->bnd", a[:, :-1], self.S)


@method("mpt", title="MPT", paper="2303.02861", lr=3e-2, knobs=LENGTH | SOURCES, **PROMPT)
class MPT(Transferred):
    """e' = [P* ⊙ (u vᵀ); e]

    P* is what the prompts of all source tasks have in common, and u (n), v (d) make it a task's own. For the sources
    they are the least squares fit of P* ⊙ (uₖ vₖᵀ) to their trained prompts, which here stands for the paper's
    distillation; the target begins at P* and the mean of uₖ and vₖ and trains all three. Without sources P* are words
    and u = v = 1.
    """

    def __init__(self, model, n, sources):
        super().__init__()
        E = model.get_input_embeddings()
        self.P = nn.Parameter(fresh(model, n)[0])  # (n d)
        self.u, self.v = ones(E, n), ones(E, E.weight.shape[1])

    def take(self, states):
        """Trained prompts of the sources."""
        P, u, v = factored(torch.stack([s["P"] for s in states]).double())
        with torch.no_grad():
            self.P.copy_(P), self.u.copy_(u.mean(0)), self.v.copy_(v.mean(0))

    def prompt(self, e):
        return self.P * torch.outer(self.u, self.v)


def factored(prompts, rounds=200):
    """P* (n d), u (k n) and v (k d) with P* ⊙ (uₖ vₖᵀ) ≈ prompts (k n d): alternating least squares.

    It begins at the first prompt; u and v of a task are scaled to be as large as each other.
    """
    P, (k, n, d) = prompts[0].clone(), prompts.shape
    u, v = P.new_ones(k, n), P.new_ones(k, d)
    share = lambda a, b, dim: (a * b).sum(dim) / b.square().sum(dim).clamp_min(1e-30)
    for _ in range(rounds):
        u = share(prompts, P * v[:, None], 2)
        v = share(prompts, P * u[..., None], 1)
        P = share(prompts, u[..., None] * v[:, None], 0)
    a, b = (t.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30) for t in (u, v))
    scale = (b / a).sqrt() * torch.where(u.sum(1, keepdim=True) < 0, -1, 1)  # of two signs that do the same, one
    return P, u * scale, v / scale


@method(
    "ipt",
    title="intrinsic prompt tuning",
    aliases=("intrinsic-prompt",),
    paper="2110.07867",
    lr=5e-2,
    knobs=LENGTH | dict(d=Knob(8, 1, 256, "dimension d", log=True)) | SOURCES,
    review="–",
    delta_tuning="reparameterization/space",
    **PLACE,
)
class IPT(Transferred):
    """e' = [b + W z; e]

    Only the d numbers z are trained, through a frozen decoder W (n·d_model d) that was found on the prompts of the
    source tasks: here that of the best linear auto-encoder of the prompts alone. Its columns are their principal
    components, each as long as they spread along it, and b is their mean. Directions that the sources do not fill stay
    random, as all are without sources, where b are words.
    """

    def __init__(self, model, n, d, sources):
        super().__init__()
        E, P = model.get_input_embeddings(), fresh(model, n)[0]
        if d > P.numel():
            raise PeftlabError(f"dimension {d} is above the {P.numel()} numbers of the prompt; take at most that")
        self.z = zeros(E, d)
        self.register_buffer("b", P)  # (n d_model)
        self.register_buffer("W", torch.randn(P.numel(), d).to(P) * P.std())

    def take(self, states):
        """Trained prompts of the sources."""
        prompts = torch.stack([s["P"] for s in states]).to(self.b)
        self.b.copy_(prompts.mean(0))
        _, S, V = torch.linalg.svd((prompts - self.b).flatten(1), full_matrices=False)
        k = min(int((S > 1e-5 * S.max().clamp_min(1e-30)).sum()), len(self.z))
        self.W[:, :k] = V[:k].T * S[:k] / len(prompts) ** 0.5

    def prompt(self, e):
        return self.b + (self.W @ self.z).view_as(self.b)
