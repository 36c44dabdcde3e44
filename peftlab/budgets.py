"""Methods at one budget: each reparameterized one with the same number of trained numbers on one task, and baselines.

`python -m peftlab.shipped` makes its runs, first those that choose a learning rate for each method (on validation, with
seeds of their own), then those that count (on test).
"""

import copy
import statistics
import time

from .methods import METHODS, get
from .results import frame
from .runs import run
from .specs import spec

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


def tried(method, factors=(0.25, 0.5, 1, 2)):
    """The learning rates that are tried for a method: around its own, from the registry."""
    return [float(f"{METHODS[method].lr * factor:.2g}") for factor in factors]


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


def league(seeds=SEEDS, methods=(), fresh=False):
    """The runs of these methods (all of them without any) and the baselines, as Results; `fresh` makes them again."""
    from .shipped import kept

    chosen = {get(m).name for m in methods} or {*ENTRIES, *BASELINES}
    wanted = specs(rates(kept("03_rates").values()))
    return [run(s, fresh=fresh) for s in wanted if s["recipe"][0]["method"] in chosen and s["seed"] in seeds]


def standings(results):
    """A table of such runs, the best method first: mean score ± its 95 % interval, what it trains and keeps.

    trained: numbers of the delta. merges: whether the delta can be folded into the weights. In MB, as measured in a
    run: the weights with what the method remembers between steps, the gradients, the optimizer's state, and what
    autograd has saved for the backward pass.
    """
    import pandas as pd

    from .plots import interval

    rows = {}
    for name, runs in frame(results).groupby("method"):
        mean, low, _ = interval(runs.score)
        held = {part: runs[f"{part}_bytes"].mean() / 1e6 for part in ("weight", "gradient", "optimizer", "saved")}
        rows[get(name).title] = dict(
            score=mean, half=None if low is None else mean - low, trained=int(runs.delta.iloc[0]), lr=runs.lr.iloc[0],
            merges=get(name).merges, **held,
        )  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("score", ascending=False)


def costs(methods=tuple(ENTRIES), repeats=9):
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
        deltas = attach(learner, entry(name, 0)["recipe"]).deltas
        return fit(learner, data.batches(learner.tokenizer, "train", 32, seed=0), deltas, steps=repeats + 3, every=1)

    for name in methods:
        undo = attach(model, entry(name, 0)["recipe"])
        with torch.no_grad():
            answer = in_turns(lambda: model(**batch), lambda: plain(**batch), repeats)
        undo()
        one, other = learning(name), learning("lora")
        step = in_turns(lambda one=one: next(one), lambda other=other: next(other), repeats)
        rows.append(dict(method=name, title=get(name).title, answer=answer, step=step, merges=get(name).merges))
    return rows


def in_turns(one, other, repeats):
    """Median ratio of the times of two calls, made in turns; the first three pairs warm up."""

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return statistics.median([seconds(one) / seconds(other) for _ in range(repeats + 3)][3:])
