"""Hybrids: methods that are recipes of others. Each is a function of its settings that gives the rows."""

from . import Knob, hybrid
from .parts import BOTTLENECK, GATED, LENGTH, MANUAL
from .pruned import KEPT, MAM

SCALE = Knob(4.0, 0.1, 32.0, "scale s", log=True)


def row(method, where=None, layers=None, **settings):
    return dict(method=method, where=where, layers=layers, settings=settings)


@hybrid(
    "mam",
    title="MAM adapter",
    aliases=("mix-and-match",),
    **MANUAL,
    delta_tuning="addition/combination",
    paper="2110.04366",
    lr=7e-3,
    knobs=dict(n=LENGTH, r=BOTTLENECK, s=SCALE),
)
def mam(n, r, s):
    """k' = [P_k; k], v' = [P_v; v];  y' = y + s·(U relu(D x + c) + e)

    A prefix in every attention, a scaled parallel adapter beside every feed-forward part: each where it was found best.
    """
    return [row("prefix", n=n), row("scaled-parallel", r=r, s=s)]


@hybrid(
    "compacter++",
    title="Compacter++",
    aliases=("compacterpp",),
    **MANUAL,
    delta_tuning="addition/adapter",
    paper="2106.04647",
    lr=1e-2,
    knobs=dict(r=BOTTLENECK, n=Knob(4, 1, 16, "products", log=True)),
)
def compacter_plus(r, n):
    """y' = y + U relu(D y + c) + e, D = Σᵢ Aᵢ ⊗ sᵢ tᵢᵀ, U = Σᵢ Aᵢ ⊗ uᵢ vᵢᵀ, behind the feed-forward parts only

    Compacter without the adapters behind the attentions.
    """
    return [row("compacter", "down", r=r, n=n)]


@hybrid(
    "unipelt",
    title="UniPELT",
    **GATED,
    lr=5e-3,
    knobs=dict(r=BOTTLENECK, n=LENGTH),
)
def unipelt(r, n):
    """h' = LN(s + g₁·A(LN(s)));  k' = [g₂·P_k; k], v' = [g₂·P_v; v];  y' = y + g₃·B A x at query and value

    Adapter, prefix and LoRA together, each behind gates: one for every layer, computed anew for every text. It shows
    which of them a layer listens to.
    """
    return [row("gated-adapter", r=r), row("gated-prefix", n=n), row("gated-lora", r=r)]


PARTS = dict(A="adapter", P="prefix", B="added-bias", L="lora")
S4 = ("A L", "A P", "A P B", "P B L")  # of the groups, from the lowest


@hybrid(
    "s4",
    title="S4",
    aliases=("s4-model",),
    review="hybrid/automatic",
    delta_tuning="addition/combination",
    sparse_view="–",
    paper="2301.01821",
    lr=5e-3,
    knobs=dict(r=BOTTLENECK, n=LENGTH),
)
def s4(r, n):
    """adapter + LoRA | adapter + prefix | adapter + prefix + biases | prefix + biases + LoRA, in four groups of layers

    What the search of the design-spaces paper ended with on a T5: the groups are a spindle, those in the middle twice
    as deep, and all are tuned. r and n are the same in each. A backbone of fewer than four layers has the middle only.
    """
    own = dict(A=dict(r=r), P=dict(n=n), B={}, L=dict(r=r, alpha=2 * r))
    return [
        row(PARTS[p], layers=f"spindle {g}", **own[p]) for g, parts in enumerate(S4, 1) for p in parts.split()
    ]


@hybrid(
    "autopeft",
    title="AutoPEFT",
    aliases=("autopeft-space",),
    review="hybrid/automatic",
    delta_tuning="addition/combination",
    sparse_view="–",
    paper="2301.12132",
    lr=7e-3,
    knobs=dict(
        serial=Knob(8, 0, 32, "serial size"),
        parallel=Knob(8, 0, 32, "parallel size"),
        n=Knob(8, 0, 32, "prefix length"),
    ),
)
def autopeft(serial, parallel, n):
    """h' = LN(s + A(LN(s)));  y' = y + U relu(D x + c) + e beside the feed-forward part;  k' = [P_k; k], v' = [P_v; v]

    One point of the space that AutoPEFT searches: three sizes, of which any may be 0, in the layers that are on.
    """
    rows = row("pfeiffer", r=serial), row("parallel-adapter", r=parallel), row("prefix", n=n)
    return [one for one, size in zip(rows, (serial, parallel, n), strict=True) if size]


@hybrid(
    "u-mam",
    title="U-MAM",
    **MAM,
    delta_tuning="addition/combination",
    lr=7e-3,
    knobs=dict(n=LENGTH, r=BOTTLENECK, s=SCALE) | KEPT,
)
def u_mam(n, r, s, p, before):
    """k' = [P_k; k], v' = [P_v; v];  y' = y + s·(U relu(D x + c) + e), only the entries with the largest Σ |Δθ·∂L/∂θ|

    A MAM adapter that learns for a while, loses what was not important, and begins anew.
    """
    return pruned_mam("entry", n, r, s, p, before)


@hybrid(
    "s-mam",
    title="S-MAM",
    **MAM,
    delta_tuning="addition/combination",
    lr=7e-3,
    knobs=dict(n=LENGTH, r=BOTTLENECK, s=SCALE) | KEPT,
)
def s_mam(n, r, s, p, before):
    """k' = [P_k; k], v' = [P_v; v];  y' = y + s·(U relu(D x + c) + e), only the units with the largest Σ |Δθ·∂L/∂θ|

    As U-MAM, but vectors of a prefix and numbers of a bottleneck stay or go as a whole: a layer may end without either.
    """
    return pruned_mam("unit", n, r, s, p, before)


def pruned_mam(unit, n, r, s, p, before):
    how = dict(p=p, unit=unit, before=before)
    return [row("pruned-prefix", n=n, **how), row("pruned-parallel", r=r, s=s, **how)]
