"""The league: every reparameterized method on one task with the same number of trained numbers, and the baselines.

`python -m peftlab.shipped` makes its runs, first those that choose a learning rate for each method (on validation, with
seeds of their own), then those that count (on test).
"""

from .methods import METHODS
from .results import frame
from .runs import spec

TASK, SEEDS, TRIALS = "entail", range(5), (5, 6)
BUDGET = 16_384  # what LoRA of rank 8 at q and v trains in micro-encoder
WIDE = "q k v o"
ENTRIES = {  # how each method comes to the budget; those that move their rank end there
    "lora": {},
    "rslora": {},
    "lora-plus": {},
    "dora": {},
    "pissa": {},
    "lora-fa": dict(r=16),
    "vera": dict(r=1920),
    "krona": dict(k=32, where=WIDE),
    "kernel-mix-lite": dict(r=3, h=2),
    "said": dict(d=BUDGET, where="q v"),
    "dylora": {},
    "adalora": dict(r=4, r0=6, where=WIDE),
    "increlora": dict(r=4, most=8, where=WIDE),
    "delta-lora": {},
    "loraprune": dict(r=2),
    "qlora": dict(where="q v"),
    "loftq": dict(where="q v"),
    "qa-lora": dict(r=15, where="q v"),
    "moelora": {},
    "l-lora": {},
    "galore": {},  # trains all weights; its budget is the optimizer's
}
BASELINES = ("head", "full")


def entry(method, seed, lr=None, **more):
    """The spec of one run of a method in the league."""
    return spec(method, task=TASK, seed=seed, lr=lr, every=50, **ENTRIES.get(method, {}) | more)


def tried(method):
    """The learning rates that are tried for a method: around its own, from the registry."""
    return [float(f"{METHODS[method].lr * factor:.2g}") for factor in (0.25, 0.5, 1, 2)]


def trials():
    """The runs that choose the learning rates."""
    return [entry(m, s, lr) for m in ENTRIES for lr in tried(m) for s in TRIALS]


def rates(results):
    """{method: its rate}: the one with the best mean score on validation among `results` of `trials`."""
    table = frame(results).groupby(["method", "lr"]).validation.mean()
    return {m: table[m].idxmax() for m in table.index.levels[0]}


def specs(rates):
    """The runs that count. The baselines keep the rates that the bench has chosen for them."""
    return [entry(m, s, rates.get(m)) for m in (*ENTRIES, *BASELINES) for s in SEEDS]
