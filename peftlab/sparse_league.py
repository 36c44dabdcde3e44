"""Sparse fine-tuning at one density: the ten methods that Fu et al. (2211.15583) compare, and how density matters.

`python -m peftlab.shipped` makes the runs: first those that choose a learning rate for each method (on validation, with
a seed of their own), then those that count (on test).
"""

from . import ledger
from .budgets import rates, tried
from .errors import choose
from .paths import data
from .results import Result
from .runs import run
from .specs import spec
from .tasks import task as find

TASKS, SEEDS, TRIAL = ("entail", "reviews", "sense"), range(5), 5
DENSITY = dict(p=0.005)  # 3,932 of the 786,432 weights of micro-encoder's layers
PAPER = {  # each as near to the density as it comes
    "full": {},
    "random-mask": DENSITY,
    "mixout": {},  # trains every entry, as full does
    "bitfit": {},  # all 5,760 biases
    "magnitude-mask": DENSITY,
    "adapter": dict(r=3, where="down"),  # 3,596
    "lora": dict(r=2),  # 4,096
    "diff-pruning": DENSITY,
    "child-pruning": DENSITY,
    "sam": DENSITY,
}
SWEPT, DENSITIES = ("random-mask", "magnitude-mask", "sam"), (0.0002, 0.001, 0.005, 0.02, 0.07, 0.2)
FACTORS = (0.25, 0.5, 1, 2, 4)
LESS = 0.9  # the part of the training rows that each perturbed run sees


def entry(method, task, seed, lr, **more):
    """The spec of one run."""
    return spec(method, task=task, seed=seed, lr=lr, every=200, **PAPER.get(method, {}) | more)


def trials():
    """The runs that choose the learning rates."""
    return [entry(m, t, TRIAL, lr) for m in PAPER for lr in tried(m, FACTORS) for t in TASKS[:2]]


def chosen():
    """{method: its rate}, by the shipped trials."""
    return rates([Result.of(r) for r in ledger.records(data() / "results" / "06_rates.jsonl")])


def main():
    """The main comparison: other seeds, the same rows."""
    rate = chosen()
    return [entry(m, t, s, rate[m]) for t in TASKS for m in PAPER for s in SEEDS]


def perturbed():
    """The same on the first two tasks, with a tenth of the training rows left out, another tenth for each seed."""
    size = {t: round(LESS * len(find(t).data["train"])) for t in TASKS[:2]}
    return [one | dict(size=size[one["task"]]) for one in main() if one["task"] in size]


def comparison(what="main", seeds=SEEDS, methods=(), fresh=False):
    """The runs of these methods (all without any) as Results: "main", "perturbed" or, over the density, "sweep".

    `fresh` makes them again. PeftlabError for another word, or a method that is not compared.
    """
    wanted = dict(main=main, perturbed=perturbed, sweep=sweep)
    specs = wanted[choose(what, wanted, "comparison")]()
    named = {s["recipe"][0]["method"] for s in specs}
    kept = {choose(m, named, "method of the comparison") for m in methods} or named
    chosen = [s for s in specs if s["recipe"][0]["method"] in kept and s["seed"] in seeds]
    return [run(s, fresh=fresh) for s in chosen]


def rate_at(rate, p):
    """rate · √(0.005/p), for another density than that at which a rate was chosen.

    Adam moves every entry by about the rate, so that with this rule all of them together go equally far.
    """
    return float(f"{rate * (DENSITY['p'] / p) ** 0.5:.2g}")


def sweep(task="entail"):
    """Densities from 0.02 % to 20 %, each at the rate that suits it, and the two baselines."""
    rate = chosen()
    masks = [entry(m, task, s, rate_at(rate[m], p), p=p) for m in SWEPT for p in DENSITIES for s in SEEDS]
    return masks + [entry("full", task, s, rate["full"]) for s in SEEDS] + [entry("head", task, s, None) for s in SEEDS]
