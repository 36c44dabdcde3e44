"""Experiments on unified methods: AdaMix's routes, how sparse an adapter may be, what layers take of one prototype."""

import functools

from .attachment import attach, counts
from .backbones import backbone as load
from .methods import get
from .overlaps import overlap
from .routing import routes
from .runs import trained
from .scoring import evaluate
from .specs import spec
from .studies import experiment, found

FULL = dict(pruner="snip", p=1.0)  # all entries stay, whatever the score


@functools.partial(experiment, seeds=range(5))
def routing(seed, method=("adamix-lora", "adamix"), task="reviews", n=8, steps=200):
    """What `pl.routes` finds on test: the scores of n routes, of the mean of the copies, of the n routes together."""
    model, task, undo = trained(spec(method, task=task, seed=seed, steps=steps))
    return routes(model, undo, task, "test", n, seed)


@functools.partial(experiment, seeds=range(5))
def sparsity(seed, pruner=("snip", "random", "magnitude"), p=(1.0, 0.5, 0.25, 0.1), r=8, task="entail", steps=200):
    """score: on test, of SparseAdapter when the share p of its entries stays; numbers: how many it trains."""
    if p == 1 and pruner != FULL["pruner"]:
        return found("sparsity", seed, FULL | dict(r=r, task=task, steps=steps))
    model, task, undo = trained(spec("sparse-adapter", task=task, seed=seed, steps=steps, r=r, p=p, score=pruner))
    return dict(score=evaluate(model, task, "test"), numbers=counts(model)["delta"])


@functools.partial(experiment, seeds=range(5))
def large_sparse(seed, pruner=("snip", "random", "magnitude"), r=(8, 16, 32, 64), full=8, task="entail", steps=200):
    """As `sparsity`, in an adapter that is wider and sparser than a whole one of bottleneck `full`: p = full / r."""
    if r == full:
        return found("sparsity", seed, FULL | dict(r=r, task=task, steps=steps))
    return sparsity(seed, pruner, full / r, r, task, steps)


@experiment
def mask_overlap(seed, method=("propetl-lora", "propetl-adapter"), task="reviews", steps=200):
    """What `pl.overlap` finds after training: places, overlap and chance."""
    model, _, undo = trained(spec(method, task=task, seed=seed, steps=steps))
    short = lambda matrix: [[None if v is None else round(v, 4) for v in line] for line in matrix]
    seen = overlap(model, undo, seed)
    return dict(places=seen["places"]) | {k: short(seen[k]) for k in ("overlap", "chance")}


@functools.partial(experiment, seeds=range(5))
def few_bits(seed, r=(1, 2, 4), task="entail", steps=200):
    """score: on test, of a LoRA of rank r, α = 2r; bits: what its file holds. At the rate of rank 8."""
    model, task, _ = trained(spec("lora", task=task, seed=seed, steps=steps, r=r, alpha=2 * r))
    return dict(score=evaluate(model, task, "test"), bits=counts(model)["stored_bits"])


# What is stored -----------------------------------------------------------------------------------


def stored(backbone="micro-encoder", r=16, p=0.5):
    """Rows {name, one, two, more}: bits in the file for one task, for two, and for every task beyond.

    Adapters of all kinds are one a layer, LoRAs at queries and values. Separate modules need as much for each task.
    AdaMix is what `pl.flatten` leaves. The heads are not in it.
    """
    model = load(backbone)

    def bits(row):
        undo = attach(model, [row])
        try:
            return counts(model)["stored_bits"]
        finally:
            undo()

    row = lambda name, **settings: dict(method=name, settings=settings)
    behind = lambda *given, **settings: row(*given, **settings) | dict(where="down")
    mixed = attach(model, [row("adamix", r=r)])
    averaged, _ = mixed.deltas[0].plain(mixed.recipe[0])
    mixed()
    percent = lambda p: f"{100 * p:g} %"
    separate = {
        f"adapters, r = {r}": behind("adapter", r=r),
        f"LoRA, r = {r}": row("lora", r=r),
        "AdaMix, averaged": averaged,
    } | {f"SparseAdapter, {percent(q)}": behind("sparse-adapter", r=r, p=q) for q in (p, p / 5)}
    sizes = {name: bits(one) for name, one in separate.items()}
    rows = [dict(name=name, one=b, two=2 * b, more=b) for name, b in sizes.items()]
    for name in ("propetl-lora", "propetl-adapter"):
        one, two, three = (bits(row(name, r=r, p=p, tasks=tasks)) for tasks in (1, 2, 3))
        rows.append(dict(name=f"{get(name).title}, {percent(p)}", one=one, two=two, more=three - two))
    return rows
