"""Experiments on hybrids: what gates let through or choose, what searches find, and if several methods beat one."""

import functools
import statistics

import torch

from .attachment import attach, counts
from .backbones import backbone as load
from .backbones import n_layers
from .budgets import BUDGET
from .errors import PeftlabError, choose
from .listening import of_kind, some, still
from .methods import get
from .methods.parts import Gated
from .runs import trained
from .scoring import evaluate
from .searching import search
from .specs import spec
from .structures import structure
from .studies import BACKBONE, experiment, found, study

# The gates of UniPELT -----------------------------------------------------------------------------


@torch.no_grad()
def gates_of(model, attached, task, rows=256):
    """How far UniPELT's gates are open, between 0 and 1: [{layer, part, mean, spread, rows}].

    mean and spread (the standard deviation) are over at most so many validation rows, evenly over their lengths. The
    parts are adapter, prefix, LoRA at q and LoRA at v.
    """
    gated, device = of_kind(attached, Gated, "unipelt"), next(model.parameters()).device
    heard = [[] for _ in gated]
    with still(model):
        for batch in some(task, rows, "validation").batches(model.tokenizer, "validation", 64):
            model(**{k: v.to(device) for k, v in batch.items()})
            for mine, (d, _) in zip(heard, gated, strict=True):
                mine.append(d.heard.float().cpu())
    looks = []
    for mine, (d, m) in zip(heard, gated, strict=True):
        g, row = torch.cat(mine), attached.recipe[d.row]
        part = get(row["method"]).title.removeprefix("UniPELT's ")
        part += f" at {m.site}" if " " in row["where"] else ""
        layer = m.block_index if m.site == "block" else getattr(m, "layer", None)
        numbers = dict(mean=float(g.mean()), spread=float(g.std(correction=0)), rows=len(g))
        looks.append(dict(layer=layer, part=part) | numbers)
    return looks


@experiment
def openness(seed, task=("reviews", "entail"), rows=256, backbone=BACKBONE, steps=200):
    """before and after training: what `gates_of` finds in UniPELT."""
    wanted = spec("unipelt", task=task, seed=seed, backbone=backbone, steps=steps)
    model, learned, undo = trained(wanted)
    after = gates_of(model, undo, learned, rows)
    undo()
    before = gates_of(model, attach(model, wanted["recipe"], seed=seed), learned, rows)
    short = lambda row: row | {k: round(row[k], 5) for k in ("mean", "spread")}
    return dict(before=[*map(short, before)], after=[*map(short, after)])


# What is looked for -------------------------------------------------------------------------------


@experiment
def structured(seed, task=("reviews", "entail"), budget=BUDGET, backbone=BACKBONE, steps=200):
    """candidates: what `pl.structure` tells of S³Delta after its search, of each layer, site and kind."""
    model, _, undo = trained(spec("s3delta", task=task, seed=seed, backbone=backbone, steps=steps, budget=budget))
    short = lambda row: {k: row[k] for k in ("layer", "site", "kind", "kept", "numbers")} | dict(p=round(row["p"], 4))
    return dict(candidates=[*map(short, structure(model, undo))])


@functools.partial(experiment, seeds=range(5))
def searched(
    seed, how=("bayes", "evolution", "random"), task="refer", backbone="nano-encoder", evaluations=40, steps=100
):
    """search: what `pl.search` finds, as JSON; again: on fresh seeds its winners, of all and of 2,048 numbers."""
    found = search(task, backbone, how, evaluations, seed=seed, steps=steps)
    if found.stopped:  # half a search is not to be kept as a whole one
        raise KeyboardInterrupt
    return dict(search=found.json(), again=found.again(budgets=(None, 2048)))


# One method or several ----------------------------------------------------------------------------

PARTS = (
    "none",
    "adapter",
    "bitfit",
    "prompt",
    "adapter bitfit",
    "adapter prompt",
    "bitfit prompt",
    "adapter bitfit prompt",
)
LENGTH = 10  # of the prompt, as in the released code of the paper
RATES = (5e-3, 7e-3, 1e-2)  # beyond them on either side all that was tried was worse (seed 5)


def combined(parts, budget="equal", backbone=BACKBONE):
    """The recipe of some of adapter, BitFit and prompt; "none" is the head alone.

    An adapter is as wide as BUDGET numbers allow: with budget "equal" those of all parts, with "added" its own, so that
    the others come on top. What it cannot spend on all layers goes to the upper ones. The others have the size they
    have.
    """
    names, model = choose(parts, PARTS, "combination").split(), load(backbone)
    method = lambda name: dict(method=name, settings=dict(n=LENGTH) if name == "prompt" else {})
    others = [method(dict(none="head").get(name, name)) for name in names if name != "adapter"]
    if "adapter" not in names:
        return others
    taken = numbers(model, others) if others and budget == "equal" else 0
    return wide(model, BUDGET - taken) + others


def wide(model, most):
    """Rows of adapters with about so many numbers: equally wide in all layers, or the upper ones wider by one."""
    L, least = n_layers(model), numbers(model, dict(method="adapter", settings=dict(r=1)))
    more = (numbers(model, dict(method="adapter", settings=dict(r=2))) - least) / L  # for one layer
    r, upper = divmod(round((most - least) / more) + L, L)
    if r < 1:
        raise PeftlabError(f"{most:,} numbers are no adapter in each of {L} layers; the least one has {least:,}")
    row = lambda r, layers: dict(method="adapter", layers=[*layers], settings=dict(r=r))
    return [row(r, range(L - upper))] + [row(r + 1, range(L - upper, L))] * (upper > 0)


def numbers(model, recipe):
    """How many numbers a recipe trains."""
    undo = attach(model, recipe)
    try:
        return counts(model)["delta"]
    finally:
        undo()


@functools.partial(experiment, seeds=(5, 6, 7))
def combining_rates(seed, parts=PARTS[1:], lr=RATES, task="entail", backbone=BACKBONE, steps=200):
    """validation: of a combination at this rate; only it tells which rate is the best, for `combining` on any task."""
    recipe = combined(parts, backbone=backbone)
    model, task, _ = trained(spec(recipe, task=task, seed=seed, lr=lr, backbone=backbone, steps=steps))
    return dict(validation=evaluate(model, task, "validation"))


@functools.partial(experiment, seeds=range(5))
def combining(
    seed, parts=PARTS, task=("entail", "reviews"), budget=("equal", "added"), backbone=BACKBONE, steps=200, lr=None
):
    """validation and score (on test) of a combination, how many numbers it trains, and at which rate.

    lr: None is the one that is best in `combining_rates`, which is the same for both budgets. Only an adapter beside
    others differs between these.
    """
    case = dict(parts=parts, task=task, budget="equal", backbone=backbone, steps=steps, lr=lr)
    if choose(budget, ("equal", "added"), "budget") != "equal" and (parts == "adapter" or "adapter" not in parts):
        return found("combining", seed, case)
    rate = best_rate(parts, backbone, steps) if lr is None and parts != "none" else lr
    recipe = combined(parts, budget, backbone)
    wanted = spec(recipe, task=task, seed=seed, lr=rate, backbone=backbone, steps=steps)
    model, task, _ = trained(wanted)
    scores = {n: evaluate(model, task, split) for n, split in dict(validation="validation", score="test").items()}
    return scores | dict(numbers=counts(model)["delta"], rate=wanted["lr"])


def best_rate(parts, backbone=BACKBONE, steps=200):
    """The rate with the best mean on validation; the lower one of two that are equal."""
    by_rate = {}
    for row in study("combining_rates", parts=parts, backbone=backbone, steps=steps):
        by_rate.setdefault(row["lr"], []).append(row["validation"])
    return max(sorted(by_rate), key=lambda lr: statistics.mean(by_rate[lr]))
