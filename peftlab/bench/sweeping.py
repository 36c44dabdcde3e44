"""Suite many: runs one by one, in processes of one thread each (new, or left from a sweep), and in one pass."""

import os
import statistics
import tempfile
import time
from unittest.mock import patch

from .. import many
from ..specs import spec
from ..together import run_together
from .tables import Column

PRECISION = "fp32"
RANKS, RATE = (1, 2, 4, 8), 1e-3
SIZES = dict(small=dict(backbones=("nano-encoder",), runs=2, steps=2, rounds=1))
SIZES["full"] = dict(backbones=("nano-encoder", "micro-encoder"), runs=8, steps=100, rounds=3)
COLUMNS = (
    Column("backbone", "backbone"),
    Column("how", "how"),
    Column("runs", "runs", "d"),
    Column("seconds", "seconds", ".1f"),
    Column("times", "times as fast", ".2f"),
    Column("apart", "largest difference of a loss", ".0e"),
)


def rows(options):
    """A row for each backbone and way; seconds are medians of rounds in turns, times that of the ratios of a round."""
    size = SIZES[options.size]
    for backbone in size["backbones"]:
        found = {}
        for _ in range(size["rounds"]):
            for how, make in WAYS.items():
                with patch.dict(os.environ, device(options)):
                    found.setdefault(how, []).append(timed(make, sweep(backbone, size)))
        plain = found["one by one"]
        for how, rounds in found.items():
            ratios = [alone[0] / mine[0] for alone, mine in zip(plain, rounds, strict=True)]
            facts = dict(seconds=statistics.median(s for s, _ in rounds), times=statistics.median(ratios))
            facts |= dict(apart=apart(plain, rounds), rounds=len(rounds))
            yield dict(backbone=backbone, how=how, runs=size["runs"], steps=size["steps"]) | facts


def sweep(backbone, size):
    """LoRAs of several ranks, with seeds and rates of their own."""
    how = dict(backbone=backbone, task="reviews", steps=size["steps"])
    return [spec("lora", r=RANKS[i % len(RANKS)], seed=i, lr=RATE * (1 + i), **how) for i in range(size["runs"])]


def device(options):
    return dict(PEFTLAB_DEVICE="cpu") if options.device == "cpu" else {}


def timed(make, specs):
    """(seconds, Results) with a ledger that knows nothing."""
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, PEFTLAB_HOME=home):
        start = time.perf_counter()
        made = make(specs)
        return time.perf_counter() - start, made


def apart(one, other):
    """How far the losses of the same runs are from each other, at most."""
    losses = lambda rounds: [row["loss"] for result in rounds[0][1] for row in result.rows]
    return max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True))


def at_hand(specs):
    return many.run_many(specs, many.cores(), together=False)


def begun(specs):
    """With processes that have to begin: none is left of a sweep before."""
    many.workers(many.cores()).shutdown(kill_workers=True)
    return at_hand(specs)


WAYS = {
    "one by one": lambda specs: [*many.outcomes(specs, together=False)],
    "new processes": begun,
    "processes at hand": at_hand,
    "one pass": run_together,
}
