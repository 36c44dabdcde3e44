"""K runs of one shape in one pass over one frozen backbone.

A small backbone keeps a GPU waiting for its next launch, so that the rows of K runs take hardly longer than those of
one. They go through the frozen layers as one batch, and what learns has an axis more. A smaller rank is filled up with
zeros that never learn; a mask is a weight of which few entries learn.
"""

import json
import math
import time

import torch

from ..results import Result
from ..runs import GLANCE, describe, laid_out, versions
from ..specs import identify
from ..training import memory, schedule
from .common import SAME, Pass
from .start import levelled, start


def shape(spec):
    """What runs must have in common: all but seed, learning rate and the numbers among the settings."""
    rows = [r | dict(settings={k: v for k, v in r["settings"].items() if isinstance(v, str)}) for r in spec["recipe"]]
    return json.dumps(spec | dict(recipe=rows, seed=0, lr=0.0), sort_keys=True)


def run_together(specs, each=None, stop=None):
    """The Results of runs of one shape, made in one pass; None where they have to be run one by one.

    That is so where a delta adds to the loss or acts between steps, where the runs share more than a backbone, and
    where a step of a run is not what it is alone: that is tried. seconds is a run's share. each(i, row) gets the rows
    of run i, stop() is asked after every step; a true answer of either ends all of them, and they come back stopped.
    A run that diverges has no more rows and scores 0; the others go on. OutOfMemory where so many are too many.
    """
    of = specs[0]
    if of["head"] == "shared" or of["accumulate"] > 1 or of["precision"] not in SAME or not of["pretrained"]:
        return None
    starts = [start(one, i) for i, one in enumerate(specs)]
    if None in starts or not levelled(starts):
        return None
    with memory(f"with {len(specs)} runs in one pass"), laid_out(of) as (model, _, undo, accelerator):
        if starts[0].sparse:
            undo()  # the weights learn themselves
        common = Pass(model.train(), undo, specs, starts, accelerator)
        if not common.agrees():
            return None
        device = f"{describe(accelerator)}, {len(specs)} runs in one pass"
        made = [result(*pair, device) for pair in zip(specs, starts, strict=True)]
        train(common, made, each, stop)
        for i, one in enumerate(made):
            if diverged(one):
                one.metric, one.validation, one.score = "", 0.0, 0.0
            elif not one.stopped:
                one.validation, one.score = common.score(i, "validation"), common.score(i, "test")
    return made


def diverged(result):
    """Whether its rows end early although nobody stopped it."""
    return not result.stopped and (not result.rows or result.rows[-1]["step"] < result.spec["steps"])


def result(spec, start, device):
    task, least = start.task, dict(majority=start.task.majority())
    facts = dict(baselines=least, counts=start.counts, device=device, versions=versions())
    return Result(spec, identify(spec), spec["task"], task.metric, **facts)


def train(common, made, each=None, stop=None):
    """Fill the Results with the rows of their runs, as `fit` would give them; Ctrl-C is a stop, as it is for `run`."""
    try:
        halt = any(steps(common, made, each, stop))
    except KeyboardInterrupt:
        halt = True
    for one in made:
        one.stopped = halt


def steps(common, made, each, stop):
    """After each step: whether all end here."""
    spec, feeds = made[0].spec, common.feeds()
    optimizer = torch.optim.AdamW([common.theta], lr=1.0, weight_decay=0.0, fused=True)
    n, quarter, seconds, since = spec["steps"], max(1, spec["steps"] // 4), 0.0, []
    check = quarter
    for step in range(1, n + 1):
        begun = time.perf_counter()
        since.append(common.step(feeds, optimizer, schedule(step, n)))
        seconds += (time.perf_counter() - begun) / len(made)
        halt = bool(stop and stop())
        if halt or step in (1, n) or step % spec["every"] == 0:
            losses, since = torch.stack(since).mean(0).tolist(), []
            due = not halt and (step >= check or step == n)
            check = (step // quarter + 1) * quarter if due else check
            for i, one in enumerate(made):
                if not math.isfinite(losses[i]):
                    continue
                row = dict(step=step, loss=losses[i], lr=one.spec["lr"] * schedule(step, n), seconds=seconds)
                one.rows.append(row | (dict(validation=common.score(i, "validation", GLANCE)) if due else {}))
                one.seconds = seconds
                halt |= bool(each and each(i, one.rows[-1]))
        yield halt
