"""Methods at one budget: each reparameterized one with the same number of trained numbers on one task, and baselines.

`python -m peftlab.shipped` makes its runs, first those that choose a learning rate for each method (on validation, with
seeds of their own), then those that count (on test).
"""

import copy
import statistics
import time

from .methods import METHODS, get
from .results import frame
from .runs import run, spec

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


def league(seeds=SEEDS, methods=(), fresh=False):
    """The runs of these methods (all of them without any) and the baselines, as Results; `fresh` makes them again."""
    from .shipped import kept

    chosen = {get(m).name for m in methods} or {*ENTRIES, *BASELINES}
    wanted = specs(rates(kept("03_rates").values()))
    return [run(s, fresh=fresh) for s in wanted if s["recipe"][0]["method"] in chosen and s["seed"] in seeds]


def standings(results):
    """A table of such runs, the best method first: mean score ± its 95 % interval, what it trains, keeps and costs.

    trained: numbers of the delta. saved: MB that autograd keeps for the backward pass, optimizer: MB of its state.
    time: seconds of training beside LoRA's. merges: whether the delta can be folded into the weights.
    """
    import pandas as pd

    from .plots import interval

    table = frame(results).groupby("method")
    lora = table.get_group("lora").seconds.median() if "lora" in table.groups else None
    rows = {}
    for name, runs in table:
        mean, low, _ = interval(runs.score)
        rows[get(name).title] = dict(
            score=mean, half=None if low is None else mean - low, trained=int(runs.delta.iloc[0]), lr=runs.lr.iloc[0],
            saved=runs.saved_bytes.mean() / 1e6, optimizer=runs.optimizer_bytes.mean() / 1e6,
            time=runs.seconds.median() / lora if lora else None, merges=get(name).merges,
        )  # fmt: skip
    return pd.DataFrame(rows).T.sort_values("score", ascending=False)


def costs(methods=tuple(ENTRIES), repeats=15):
    """Rows {method, title, time, merges}: how long 8 answers take with the delta attached, the backbone alone being 1.

    Both sides answer in turns in this process; time is the median of the ratios of neighbouring answers.
    """
    import torch

    from .attachment import attach
    from .backbones import backbone
    from .tasks import task

    model, rows = backbone("micro-encoder", head="classification", labels=3), []
    batch = next(task(TASK).batches(model.tokenizer, "test", 8, seed=0))
    plain = copy.deepcopy(model)

    @torch.no_grad()
    def seconds(m):
        start = time.perf_counter()
        m(**batch)
        return time.perf_counter() - start

    for name in methods:
        undo = attach(model, entry(name, 0)["recipe"])
        ratios = [seconds(model) / seconds(plain) for _ in range(repeats + 3)][3:]
        undo()
        one = get(name)
        rows.append(dict(method=name, title=one.title, time=statistics.median(ratios), merges=one.merges))
    return rows
