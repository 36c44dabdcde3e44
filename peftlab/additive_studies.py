"""Experiments on additive deltas: behind or beside a sublayer, prompts' lengths and starts, what other tasks lend."""

import functools

from .attachment import attach
from .backbones import backbone
from .listening import gates, heard, mixture
from .methods import get
from .nearest import nearest_words
from .runs import trained
from .scoring import evaluate
from .specs import spec
from .studies import experiment

TASK, SOURCES, SIZE = "reviews/hotel", "reviews/restaurant grammar topic", 64


@functools.partial(experiment, seeds=range(5))
def placement(
    seed,
    method=("adapter", "parallel-adapter"),
    where=("o", "down"),
    lr=(3.5e-3, 7e-3, 1.4e-2, 2.8e-2),
    task="entail",
    r=15,
):
    """validation and score (on test) of an adapter behind or beside the attention (o) or the feed-forward part (down).

    Only they tell which rate is a method's best at a place.
    """
    model, task, _ = trained(spec(method, where, task=task, seed=seed, lr=lr, r=r))
    return {name: evaluate(model, task, split) for name, split in dict(validation="validation", score="test").items()}


@functools.partial(experiment, seeds=range(5))
def prompts(seed, n=(1, 4, 16), init=("vocabulary", "random"), task="entail"):
    """score: on test, of prompt-tuning with n vectors that start as words or as random vectors."""
    model, task, _ = trained(spec("prompt", task=task, seed=seed, n=n, init=init))
    return dict(score=evaluate(model, task, "test"))


@experiment
def meaning(seed, init=("vocabulary", "random"), task="entail", n=8):
    """before and after training: the word nearest to each vector of a prompt, and the cosine."""
    wanted = spec("prompt", task=task, seed=seed, n=n, init=init)
    model = backbone(wanted["backbone"])
    fresh = attach(model, wanted["recipe"], seed=seed)
    before = [line[0] for line in nearest_words(model, fresh, k=1)]
    model, _, undo = trained(wanted)
    return dict(before=before, after=[line[0] for line in nearest_words(model, undo, k=1)])


@functools.partial(experiment, seeds=range(5))
def lent(
    seed,
    method=("adapter", "adapter-fusion", "mera", "prompt", "spot", "attempt", "mpt", "ipt"),
    task=TASK,
    sources=SOURCES,
    size=SIZE,
):
    """score: on test, after a few rows of a new task; methods that build on other tasks have those of `sources`."""
    return dict(score=evaluate(*learned(method, seed, task, sources, size)[:2], "test"))


@functools.partial(experiment, seeds=range(5))
def strangers(seed, method=("adapter-fusion", "mera", "spot"), task=TASK, sources="sense grammar topic", size=SIZE):
    """score: as in `lent`, where none of the other tasks is near the new one."""
    return lent(seed, method, task, sources, size)


@experiment
def fusion(seed, task=TASK, sources=SOURCES, size=SIZE):
    """heard: what `pl.heard` finds in an AdapterFusion."""
    model, task, undo = learned("adapter-fusion", seed, task, sources, size)
    return dict(heard=heard(model, undo, task))


@experiment
def mixing(seed, t=(2.7, 0.02), task=TASK, sources=SOURCES, size=SIZE, rows=32):
    """heard: what `pl.mixture` finds in an ATTEMPT of this temperature."""
    model, task, undo = learned("attempt", seed, task, sources, size, t=t)
    short = lambda row: row | dict(weights={name: round(a, 5) for name, a in row["weights"].items()})
    return dict(heard=[*map(short, mixture(model, undo, task, rows))])


@experiment
def side(seed, task="entail"):
    """heard: what `pl.gates` finds in LST."""
    return dict(heard=gates(trained(spec("lst", task=task, seed=seed))[2]))


def learned(method, seed, task, sources, size, **settings):
    """(model, task, attachment) of a method, on top of what was learned from the sources if it builds on any."""
    settings |= dict(sources=sources) if "sources" in get(method).knobs else {}
    return trained(spec(method, task=task, seed=seed, size=size, **settings))
