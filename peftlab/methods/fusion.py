"""Adapters that build on other tasks: trained ones fused by attention or merged into one, and a network that makes all.

The sources are named by a setting; a run trains them first (`peftlab.sources`) and hands them over. Attached by hand,
without that, a delta has fresh adapters in their place.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..delta import OutputDelta
from . import Knob, Tasks, fit_width, method
from .adapters import Adapter
from .tensors import normal, zeros

PARTS = ("D", "c", "U", "e")
R, SOURCES = dict(r=Knob(8, 1, 64, "bottleneck", log=True)), dict(sources=Tasks("", "source tasks"))


@method(
    "adapter-fusion",
    title="AdapterFusion",
    aliases=("adapterfusion", "fusion"),
    review="additive/adapter",
    delta_tuning="addition/adapter",
    sparse_view="–",
    paper="2005.00247",
    where="o down",
    lr=3e-3,
    knobs=R
    | dict(adapters=Knob(2, 1, 16, "fresh adapters", log=True))
    | SOURCES
    | dict(pull=Knob(0.01, 0.0, 0.1, "pull of V to I")),
)
class AdapterFusion(OutputDelta):
    """y' = y + V Σₜ sₜ zₜ, s = softmaxₜ((Q y)·(K zₜ)), zₜ = Uₜ relu(Dₜ y + cₜ) + eₜ

    Each token asks the adapters of the source tasks, which are frozen, and takes a mixture of their answers; `heard`
    has the weights s of the last pass (b t adapters). Q, K and V are trained; V starts as the identity, and the penalty
    pull·‖V - I‖² keeps it near. Without sources there are fresh adapters, trained as well.
    """

    builds_on = "adapter"

    def __init__(self, m, r, adapters, sources, pull):
        super().__init__()
        d, fresh = m.out_features, [Adapter(m, r) for _ in sources.split() or range(adapters)]
        for name in PARTS:  # (n r d) (n r) (n d r) (n d)
            stacked = torch.stack([getattr(a, name).detach() for a in fresh])
            setattr(self, name, nn.Parameter(stacked, requires_grad=not sources))
        self.Q, self.K, self.V = normal(m, d, d, std=0.02), normal(m, d, d, std=0.02), zeros(m, d, d)
        nn.init.eye_(self.V)
        self.pull = pull

    def take(self, states):
        """What these adapters have learned, one for each source."""
        with torch.no_grad():
            for name in PARTS:
                getattr(self, name).copy_(torch.stack([s[name] for s in states]))

    def forward(self, x, y):
        inner = F.relu(torch.einsum("...d,nrd->...nr", y, self.D) + self.c)
        z = torch.einsum("...nr,ndr->...nd", inner, self.U) + self.e
        s = torch.softmax(torch.einsum("...d,...nd->...n", F.linear(y, self.Q), F.linear(z, self.K)), -1)
        self.heard = s.detach()
        return y + F.linear(torch.einsum("...n,...nd->...d", s, z), self.V)

    def penalty(self):
        return self.pull * (self.V - torch.eye(len(self.V)).to(self.V)).square().sum()


@method(
    "mera",
    title="MerA",
    review="additive/adapter",
    delta_tuning="addition/adapter",
    sparse_view="–",
    paper="2308.15982",
    where="o down",
    lr=7e-3,
    knobs=R | SOURCES,
)
class MerA(Adapter):
    """y' = y + U relu(D y + c) + e, at the start D = meanₜ diag(1/β) Tₜᵀ Dₜ, c and U likewise

    Trained adapters become one, which is trained on. Which neuron is which differs between them, so that first those of
    each are brought into the order of the first adapter's: Tₜ is the optimal transport between their neurons, a neuron
    being what it reads, its bias and what it writes, and β is the mass that arrives. Without sources it is an adapter.
    """

    builds_on = "adapter"

    def __init__(self, m, r, sources):
        super().__init__(m, r)

    def take(self, states):
        """The trained adapters that are merged."""
        aligned = [transported(s, states[0]) for s in states]
        with torch.no_grad():
            for name in PARTS:
                getattr(self, name).copy_(torch.stack([s[name] for s in aligned]).mean(0))


def transported(state, goal):
    """A trained adapter with its neurons in the order of another's, at best."""
    import ot

    told = [torch.cat([s["D"], s["c"][:, None], s["U"].T], 1).double().cpu().numpy() for s in (state, goal)]
    T = ot.emd([], [], ot.dist(*told))  # [] is an equal mass for each neuron; T (neurons, neurons of the goal)
    M = torch.from_numpy((T / T.sum(0)).T).to(state["D"])
    return dict(D=M @ state["D"], c=M @ state["c"], U=state["U"] @ M.T, e=state["e"])


@method(
    "hyperformer",
    title="Hyperformer++",
    aliases=("hyperformer++",),
    review="additive/adapter",
    delta_tuning="addition/adapter",
    sparse_view="–",
    paper="2106.04489",
    where="o down",
    lr=2e-3,
    knobs=R | dict(k=Knob(16, 1, 128, "embedding", log=True), tasks=Knob(2, 1, 64, "tasks", log=True)),
)
class Hyperformer(OutputDelta):
    """y' = y + U relu(D y + c) + e, (D, c, U, e) = G I, I = LN(H₂ relu(H₁ [z; l; p]))

    One network, shared by all layers, makes every adapter: I comes from the embeddings of the task, `delta.task = 1`,
    of the layer and of the position in it, and all have k numbers. U and e start at 0. Here no adapter has a layer
    norm of its own.
    """

    sites = ("o", "down")  # all as wide as the hidden states, as one network makes adapters of one width

    @classmethod
    def merges(cls, settings):
        return False

    def __init__(self, m, r, k, tasks):
        super().__init__()
        fit_width(r, m.out_features, "bottleneck r =", m)
        self.at, self.settings, self.task = (m,), (r, k, tasks), 0  # in a tuple: no part of the delta

    def joined(self):
        """One network for all deltas with these settings; the first of them has it."""
        self.peers = tuple(d for d in self.group if d.settings == self.settings)
        places = [getattr(d.at[0], "layer", 0) for d in self.peers]
        layers, mine = sorted({*places}), [d is self for d in self.peers].index(True)
        m, (r, k, tasks) = self.at[0], self.settings
        self.l = tasks + layers.index(places[mine])
        self.p = tasks + len(layers) + places[:mine].count(places[mine])
        if mine == 0:
            d, most = m.out_features, max(map(places.count, layers))
            self.Z = normal(m, tasks + len(layers) + most, k, std=1.0)  # of the tasks, the layers and the positions
            self.H1, self.H2 = normal(m, k, 3 * k, std=(2 / 3 / k) ** 0.5), normal(m, k, k, std=k**-0.5)
            self.G_D, self.G_c = normal(m, r * d, k, std=(2 / d / k) ** 0.5), zeros(m, r, k)
            self.G_U, self.G_e = zeros(m, d * r, k), zeros(m, d, k)

    def forward(self, x, y):
        net, (r, k, _) = self.peers[0], self.settings
        embedded = net.Z[[self.task, self.l, self.p]].flatten()
        I = F.layer_norm(net.H2 @ F.relu(net.H1 @ embedded), (k,))
        D, U = (net.G_D @ I).view(r, -1), (net.G_U @ I).view(-1, r)
        return y + F.linear(F.relu(F.linear(y, D, net.G_c @ I)), U, net.G_e @ I)
