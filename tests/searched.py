"""What the tests of searches share: runs that are not made, but follow from their design."""

import math
import pathlib
import random

import pytest
from small import home  # noqa: F401

from peftlab import ledger, many
from peftlab.fronts import Search
from peftlab.results import Result

TESTS = pathlib.Path(__file__).resolve().parent
PARTS = ("serial", "parallel", "n")


def stub(one, each=None, fresh=False, stop=None):
    """A run that takes no time: larger adapters behind the second layer are better; a little noise."""
    size = {r["method"]: (r["settings"].get("r") or r["settings"]["n"], r["layers"] or [0, 1]) for r in one["recipe"]}
    value = 0.4 + 0.005 * random.Random(ledger.digest(one)).gauss(0, 1)
    for method, worth in (("pfeiffer", 0.12), ("parallel-adapter", 0.08), ("prefix", 0.04)):
        r, layers = size.get(method, (0, []))
        value += worth * math.log10(1 + r) * sum(0.2 + 0.6 * i for i in layers)
    CALLS.append(ledger.digest(one))
    return Result(one, ledger.digest(one), one["task"], "accuracy", score=value - 0.01, validation=value)


CALLS = []


@pytest.fixture
def stubbed(home, monkeypatch):  # noqa: F811
    """Searches with runs that take no time, in a home of their own."""
    monkeypatch.setattr(many, "run", stub)
    CALLS.clear()
    return home


def lasting(search):
    """The trials without what the clock says."""
    return [{k: v for k, v in t.items() if k not in ("asking", "seconds")} for t in search.trials]


def designs(search):
    return [(*t["settings"].values(), *t["layers"]) for t in search.trials]


def trial(numbers, validation, number=1):
    settings = dict(serial=8, parallel=0, n=0)
    return dict(number=number, numbers=numbers, validation=validation, score=0.5, settings=settings, layers=[0, 1])


def made(*points, how="random", seed=0, reference=(1000, 0.0)):
    shared = dict(task="entail", backbone="nano-encoder")
    return Search(how, seed, shared, 2, "accuracy", [*reference], [trial(*p, i) for i, p in enumerate(points, 1)])
