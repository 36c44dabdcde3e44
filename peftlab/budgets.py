"""Methods at one budget: those of a family with the same number of trained numbers on one task, and baselines.

`python -m peftlab.shipped` makes the runs, first those that choose a learning rate for each method (on validation, with
seeds of their own), then those that count (on test).
"""

import copy
import functools
import statistics
import time
from dataclasses import dataclass, field

from .errors import choose
from .methods import METHODS, get
from .recipes import name_of, title_of
from .results import Result, frame
from .runs import run
from .specs import identify, spec

TASK, SEEDS, TRIALS = "entail", range(5), (5, 6)
FACTORS = 0.25, 0.5, 1, 2
BUDGET = 16_384  # what LoRA of rank 8 at q and v trains in micro-encoder
WIDE = "q k v o"
NEAR = "paraphrase answer"  # tasks on whose deltas others build
BASELINES = ("head", "full")


@dataclass(frozen=True)
class League:
    """lab: in which lab's files its runs are. entries: how each method comes to the budget. every: steps of a row.

    wider: more factors of a method's own rate to try, where the best of the first four was the least or the greatest.
    """

    lab: str
    entries: dict
    every: int = 50
    wider: dict = field(default_factory=dict)

    def entry(self, method, seed, lr=None, **more):
        """The spec of one run of a method."""
        return spec(method, task=TASK, seed=seed, lr=lr, every=self.every, **self.entries.get(method, {}) | more)

    def trials(self):
        """The runs that choose the learning rates."""
        return [self.entry(m, s, lr) for m in self.entries for lr in self.tried(m) for s in TRIALS]

    def tried(self, method):
        """The learning rates that are tried for a method."""
        return tried(method, sorted((*FACTORS, *self.wider.get(method, ()))))

    def found(self):
        """The records of these trials that travel with the package."""
        from .shipped import kept

        have = kept()
        return [have[key] for key in map(identify, self.trials()) if key in have]

    def specs(self):
        """The runs that count. The baselines keep the rates that the bench has chosen for them."""
        chosen = rates(self.found())
        return [self.entry(m, s, chosen.get(m)) for m in (*self.entries, *BASELINES) for s in SEEDS]


LEAGUES = {
    "reparameterized": League(
        "03",
        {  # those that move their rank end at the budget
            "lora": {},
            "rslora": {},
            "lora-plus": {},
            "dora": {},
            "pissa": {},
            "lora-fa": dict(r=16),
            "vera": dict(r=1920),
            "krona": dict(k=32, where=WIDE),
            "loha": {},
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
        },
    ),
    "additive": League(
        "01",
        {  # prompts stay short, for each of their vectors is a position more; what has no size keeps its own
            "adapter": dict(r=7),
            "pfeiffer": dict(r=15),
            "residual-adapter": dict(r=14),
            "parallel-adapter": dict(r=15),
            "scaled-parallel": dict(r=15),
            "adapterdrop": dict(r=10),
            "tiny-attn": dict(heads=7),
            "adapter-fusion": dict(r=7, where="down", sources=NEAR),
            "mera": dict(r=7, sources=NEAR),
            "hyperformer": dict(r=8, k=8, tasks=1),
            "coda": dict(r=2, bottleneck=60, layers=[0]),  # in all layers it is at chance
            "prompt": dict(n=16),
            "prefix": dict(n=16),
            "prefix-mlp": dict(n=12, r=12),
            "p-tuning": dict(n=16, r=8),
            "warp": dict(n=16),
            "spot": dict(n=16, sources=NEAR),
            "attempt": dict(n=16, r=48, sources=NEAR),
            "mpt": dict(n=16, sources=NEAR),
            "ipt": dict(n=16, d=64, sources=NEAR),
            "ia3": {},
            "pasta": {},
            "hadamard": {},
            "lst": dict(r=10),
            "attention-fusion": {},
            "lora": {},
        },
        every=200,
        wider={
            "adapter-fusion": (4, 8),
            "prefix": (4, 8),
            "prefix-mlp": (4, 8, 16, 32),
            "p-tuning": (4, 8),
            "attempt": (0.125, 0.0625),
            "hadamard": (4, 8),
            "attention-fusion": (0.125, 0.0625),
        },
    ),
}


ADDITIVE = LEAGUES["additive"]


def beside(lab, parts, entries, wider=()):
    """A league whose methods stand beside some of the additive one: those come as they are there."""
    parts = {name: ADDITIVE.entries[name] for name in parts.split()}
    wider = {n: f for n, f in ADDITIVE.wider.items() if n in parts} | dict(wider)
    return League(lab, parts | entries, every=ADDITIVE.every, wider=wider)


LEAGUES["hybrid"] = beside(
    "04",
    "adapter pfeiffer scaled-parallel prefix lora",
    {
        "mam": dict(n=6, r=9),
        "unipelt": dict(r=3, n=4),
        "compacter": dict(r=64),
        "compacter++": dict(r=64),
        "s4": dict(r=4, n=3),
        "u-mam": dict(n=12, r=19),
        "s-mam": dict(n=12, r=19),
        "s3delta": dict(budget=BUDGET),
        # the best within the budget of `pl.search("entail", "micro-encoder", evaluations=40, seed=5, steps=200,
        # sizes=[0, 1, 2, 4, 8, 12, 16, 24])`
        "autopeft": dict(serial=0, parallel=16, n=1, layers=[0]),
    },
    wider={"unipelt": (4, 8), "s4": (4, 8)},
)

LEAGUES["unified"] = beside(
    "05",
    "adapter lora prefix",
    {
        "adamix": dict(r=15),  # the budget is that of the one module which is left of the copies
        "adamix-lora": {},
        "sparse-adapter": dict(r=14),
        "propetl-adapter": dict(r=12),
        "propetl-prefix": dict(n=12),
        "propetl-lora": dict(r=7),
    },
    wider={"adamix": (0.125, 4), "propetl-adapter": (4, 8, 16), "propetl-prefix": (0.125, 4)},
)


def tried(method, factors=FACTORS):
    """Learning rates around a method's own, from the registry."""
    return [float(f"{METHODS[method].lr * factor:.2g}") for factor in factors]


def rates(results):
    """{method: its rate}: the one with the best mean score on validation among `results` of trials."""
    table = named(results).groupby(["method", "lr"]).validation.mean()
    return {m: table[m].idxmax() for m in table.index.levels[0]}


def named(results):
    """`frame` with a recipe's own name as its method."""
    recipes = [(r.spec if isinstance(r, Result) else r["spec"])["recipe"] for r in results]
    titles = [get(points()[repr(r)]).title if repr(r) in points() else title_of(r) for r in recipes]
    return frame(results).assign(method=[*map(called, recipes)], title=titles)


def called(rows):
    """The name of a recipe in its league, else its own."""
    return points().get(repr(rows)) or name_of(rows)


@functools.cache
def points():
    """{recipe: its name in a league} where its rows do not tell it: a point of AutoPEFT's space that lacks a part."""
    every = [(m, one.entry(m, 0)["recipe"]) for one in LEAGUES.values() for m in one.entries]
    return {repr(rows): m for m, rows in every if name_of(rows) != m}


def league(family="reparameterized", seeds=SEEDS, methods=(), fresh=False):
    """The runs of a family's methods (all of them without any) and the baselines, as Results; `fresh` makes them again.

    family: "reparameterized" (lab 03), "additive" (lab 01), or "hybrid" or "unified" (with some of the
    additive league beside them).
    """
    one = LEAGUES[choose(family, LEAGUES, "league")]
    chosen = {get(m).name for m in methods} or {*one.entries, *BASELINES}
    kept = [s for s in one.specs() if called(s["recipe"]) in chosen and s["seed"] in seeds]
    return [run(s, fresh=fresh) for s in kept]


def standings(results):
    """A table of such runs, the best method first: mean score ± its 95 % interval, what it trains and keeps.

    trained: numbers of the delta. merges: whether the delta can be folded into the weights. In MB, as measured in a
    run: the weights with what the method remembers between steps, the gradients, the optimizer's state, and what
    autograd has saved for the backward pass.
    """
    import pandas as pd

    from .plots import interval

    rows = {}
    for title, runs in named(results).groupby("title"):
        mean, low, _ = interval(runs.score)
        held = {part: runs[f"{part}_bytes"].mean() / 1e6 for part in ("weight", "gradient", "optimizer", "saved")}
        rows[title] = dict(
            score=mean, half=None if low is None else mean - low, trained=int(runs.delta.iloc[0]), lr=runs.lr.iloc[0],
            merges=all(get(name).merges for name in runs.method.iloc[0].split(" + ")), **held,
        )  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("score", ascending=False)


def costs(methods=tuple(LEAGUES["reparameterized"].entries), repeats=9):
    """Rows {method, title, answer, step, merges}: the time of 8 answers with the delta attached, the backbone alone
    being 1, and of a training step on 32 rows, LoRA's being 1.

    Both sides work in turns in this process; a figure is the median of the ratios of neighbours.
    """
    import torch

    from .attachment import attach
    from .backbones import backbone
    from .tasks import task
    from .training import fit

    model, data, rows = backbone("micro-encoder", head="classification", labels=3), task(TASK), []
    plain, batch = copy.deepcopy(model), next(data.batches(model.tokenizer, "test", 8, seed=0))

    def learning(name):
        learner = copy.deepcopy(plain)
        deltas = attach(learner, recipe(name)).deltas
        return fit(learner, data.batches(learner.tokenizer, "train", 32, seed=0), deltas, steps=repeats + 3, every=1)

    for name in methods:
        undo = attach(model, recipe(name))
        with torch.no_grad():
            answer = in_turns(lambda: model(**batch), lambda: plain(**batch), repeats)
        undo()
        one, other = learning(name), learning("lora")
        step = in_turns(lambda one=one: next(one), lambda other=other: next(other), repeats)
        rows.append(dict(method=name, title=get(name).title, answer=answer, step=step, merges=get(name).merges))
    return rows


def recipe(method):
    """That of a method in its league, without the sources, which matter to no cost; else its own."""
    entries = next((e.entries for e in LEAGUES.values() if method in e.entries), {})
    return spec(method, **{k: v for k, v in entries.get(method, {}).items() if k != "sources"})["recipe"]


def in_turns(one, other, repeats):
    """Median ratio of the times of two calls, made in turns; the first three pairs warm up."""

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return statistics.median([seconds(one) / seconds(other) for _ in range(repeats + 3)][3:])
