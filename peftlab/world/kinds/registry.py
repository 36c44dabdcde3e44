"""The registry of task kinds: a kind is one function that builds an example with a given answer, and a decorator."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One row as meanings; each is said in the task's language (a str is text already, and is taken as it is).

    text, text2 (optional), target (generation), references (all right answers, where there are several; the target
    may be left out, then it is the first of them).
    """

    text: Any
    text2: Any = None
    target: Any = None
    references: tuple = ()


@dataclass(frozen=True)
class Kind:
    """A kind of task; `sample(draw, label)` gives an Example whose answer is the label.

    answers: the labels that are asked for in turn, so that they are balanced: 0 … k-1 for k classes, the levels of a
    regression, (None,) for generation. size: training rows by default. unseen: share of every word list that training
    examples do not use, by default. domains: those it exists in (None: all). version: of its bytes, counted up when any
    of them changes, so that results of before are not found again.
    """

    name: str
    sample: Callable
    kind: str
    labels: tuple | None
    metric: str
    size: int
    unseen: float
    answers: tuple
    about: str
    domains: tuple | None = None
    version: int = 3


KINDS = {}
LEVELS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)  # of a regression, as in STS-B


def kind(metric, labels=None, kind=None, size=256, unseen=0.67, levels=LEVELS, domains=None, version=3):
    """Register `sample(draw, label)` under its own name; the first line of its docstring says what is asked.

    labels: names of the classes, for classification. kind: "classification" (when there are labels), else "seq2seq"
    unless said ("regression", whose `levels` are balanced, or "lm").
    """

    def register(sample):
        name = sample.__name__.rstrip("_")  # continue is a word of Python
        what = kind or ("classification" if labels else "seq2seq")
        answers = tuple(range(len(labels))) if labels else tuple(levels) if what == "regression" else (None,)
        about = inspect.getdoc(sample).splitlines()[0]
        names = tuple(labels) if labels else None
        KINDS[name] = Kind(name, sample, what, names, metric, size, unseen, answers, about, domains, version)
        return sample

    return register
