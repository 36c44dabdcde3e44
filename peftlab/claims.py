"""The claims F-H1 … F-H8 of Fu et al. (arXiv 2211.15583), tried on runs. No torch here.

Each is a number with a 95 % interval, and the interval decides: if it excludes what no effect would give, the claim
holds or does not hold, else it is undecided. Only the seeds count as drawn at random, and all that ran with one seed is
drawn together: an interval speaks of other seeds on the same tasks, not of other tasks.
"""

import inspect
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from .errors import PeftlabError, choose
from .resampling import BOOTSTRAP, STUDENT, bootstrap, bounds, jackknife, least, runs, spearman, student

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided at this scale", "not tried"
RIVALS = ("random-mask", "magnitude-mask", "child-pruning", "diff-pruning")  # random, rule-based, and two projections
CLAIMS = []


class Finding(NamedTuple):
    """An effect with its interval. null: what no effect would give; below: the claim is that it lies under that."""

    effect: float
    low: float
    high: float
    measure: str
    interval: str
    also: str = ""
    null: float = 0.0
    below: bool = False

    @property
    def claimed(self):
        return f"{'<' if self.below else '>'} {self.null:g}"

    @property
    def verdict(self):
        over, under = self.low > self.null, self.high < self.null
        return UNDECIDED if not (over or under) else HOLDS if under == self.below else FAILS


class Claim(NamedTuple):
    """find(frame, …) -> Finding, its arguments named like those of `verdicts`; stat: its number, of one Table for each
    of these frames, where it has one."""

    name: str
    statement: str
    find: object
    stat: object

    @property
    def frames(self):
        return list(inspect.signature(self.find).parameters)


def claim(name, statement, stat=None):
    """Register a claim."""

    def keep(find):
        CLAIMS.append(Claim(name, statement, find, stat))
        return find

    return keep


def verdicts(main=None, perturbed=None, sweep=None, jumps=None):
    """claim, statement, measure, effect, low, high, claimed, verdict, interval, also: a frame, a row for every claim.

    main, perturbed: method, task, seed, score, as `peftlab.frame` makes them; in `perturbed` each seed is a subset of
    the training rows. sweep: the same and the density p. jumps: seed, step, loss (perhaps method, task), the rows of
    `history` of masks that are projected: where step begins at 1 again, the mask has changed. Scores are shares of 1.
    What has no frame is "not tried".
    PeftlabError: a column, a method or a run is missing, or there are fewer than two seeds.
    """
    frames, rows = dict(main=main, perturbed=perturbed, sweep=sweep, jumps=jumps), []
    for one in CLAIMS:
        given = [frames[name] for name in one.frames]
        found = None if any(f is None for f in given) else one.find(*given)
        more = found._asdict() | dict(claimed=found.claimed, verdict=found.verdict) if found else dict(verdict=MISSING)
        rows.append(dict(claim=one.name, statement=one.statement) | more)
    columns = "claim statement measure effect low high claimed verdict interval also".split()
    return pd.DataFrame(rows).reindex(columns=columns)


# The claims ---------------------------------------------------------------------------------------


def over_tasks(values, table, *methods):
    """Means over tasks of these methods, each (…)."""
    return [values.mean(-1)[..., table.at(m)] for m in methods]


def per(a, b):
    """a / b, NaN or infinite where b does not vary at all."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def peft(table):
    return [m for m in table.methods if m != "full"]


def gains(table):
    """Mean over tasks of every PEFT method, less that of full fine-tuning (… methods)."""
    full, *others = over_tasks(table.mean, table, "full", *peft(table))
    return np.stack([m - full for m in others], -1)


def ratios(table):
    """Mean over tasks of every PEFT method's standard deviation over that of full fine-tuning (… methods)."""
    full, *others = over_tasks(table.std, table, "full", *peft(table))
    return np.stack([per(s, full) for s in others], -1)


def winners(table):
    """How many PEFT methods score above full fine-tuning."""
    return (gains(table) > 0).sum(-1)


@claim("F-H1", "Most PEFT methods score above full fine-tuning on average.", winners)
def above_full(main):
    found = runs(main, ["full"])
    many = len(found.methods) - 1
    also = f"median gain {100 * np.median(gains(found.table())):+.2f} points"
    measure = f"of {many} methods with a higher mean"
    return Finding(*bootstrap(winners, found), measure, BOOTSTRAP, also, null=many / 2)


def median_ratio(table):
    return np.median(ratios(table), -1)


@claim("F-H2", "Most PEFT methods are more stable than full fine-tuning.", median_ratio)
def steadier(main):
    found = runs(main, ["full"])
    also = f"{(r := ratios(found.table()) < 1).sum()} of {len(r)} below 1"
    measure = "median ratio of their standard deviations over seeds to full fine-tuning's"
    return Finding(*bootstrap(median_ratio, found), measure, BOOTSTRAP, also, 1, True)


def random_ratio(table):
    """Standard deviation of the random mask over that of full fine-tuning."""
    return per(*over_tasks(table.std, table, "random-mask", "full"))


@claim("F-H3", "Even a random mask is more stable than full fine-tuning.", random_ratio)
def random_steadier(main):
    found = runs(main, ["full", "random-mask"])
    table = found.table()
    wins = (table.std[table.at("random-mask")] < table.std[table.at("full")]).sum()
    also, measure = f"below 1 in {wins} of {len(table.tasks)} tasks", "ratio of both standard deviations over seeds"
    return Finding(*bootstrap(random_ratio, found), measure, BOOTSTRAP, also, 1, True)


def stability(table):
    """Spearman's ρ of the methods' places by stability and by score within each task, over all tasks; equal methods
    share the better place."""
    place = lambda values: rankdata(values, "min", axis=-2).reshape(*values.shape[:-2], -1)
    return spearman(place(table.std), place(-table.mean))


@claim("F-H4", "The more stable a method is, the better it generalises.", stability)
def stable_is_better(main):
    found = runs(main)
    effect, low, high = bootstrap(stability, found)
    less, more, left = jackknife(stability, found.table())
    ends = min(left, key=left.get), max(left, key=left.get)
    also = ", ".join(f"{left[m]:.2f} without {m}" for m in ends)
    measure = f"rank correlation of stability and score, {len(found.methods)} methods × {len(found.tasks)} tasks"
    how = "the wider of a bootstrap over seeds and a jackknife over methods"
    return Finding(effect, max(-1.0, min(low, less)), min(1.0, max(high, more)), measure, how, also)  # a correlation


def parabola(p, values):
    """(fall at the least p, rise at the greatest, log10 p of the turn) of the parabola through values (… p) over
    log10 p. It opens upwards and turns inside where the fall and the rise are both positive."""
    x = np.log10(p)
    a, b, _ = np.linalg.pinv(np.vander(x, 3)) @ np.moveaxis(values, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(2 * a * x[0] + b), 2 * a * x[-1] + b, -b / (2 * a)


def ends(table):
    """Fall and rise of the error, fall and rise of the standard deviation (… 4); the methods are densities."""
    return np.stack([s for v in (-table.mean, table.std) for s in parabola(table.methods, v.mean(-1))[:2]], -1)


def turns(table):
    """Where both parabolas turn, in words."""
    spots = [parabola(table.methods, v.mean(-1))[2] for v in (-table.mean, table.std)]
    inside = lambda x: np.log10(table.methods[0]) < x < np.log10(table.methods[-1])
    told = [f"turns at p = {10**x:.2g}" if inside(x) else "does not turn" for x in spots]
    return f"the error {told[0]}, the standard deviation {told[1]}"


@claim("F-H5", "Error and standard deviation are U-shaped in the density p.", lambda table: ends(table).min(-1))
def u_shape(sweep):
    choose("p", sweep.columns, "column")
    found = runs(sweep[(sweep["method"] == "sam") & sweep["p"].notna()].sort_values("p"), by="p")
    if len(found.methods) < 4:
        raise PeftlabError(f"a U-shape needs SAM at four densities at least, not at {len(found.methods)}")
    seen, drawn = ends(found.table()), ends(found.resampled())
    measure = "least of four slopes per decade of p: fall to the middle and rise from it, of error and of deviation"
    interval = least(lambda level: (seen, *bounds(drawn, found.n, level)), 4)
    return Finding(*interval, measure, BOOTSTRAP, turns(found.table()))


@claim("F-H6", "A change of the mask throws the training back.")
def thrown_back(jumps):
    for column in ("seed", "step", "loss"):
        choose(column, jumps.columns, "column")
    one = jumps.groupby([k for k in ("method", "task", "seed") if k in jumps], sort=False)
    jumps = jumps.assign(before=one["loss"].shift(), rise=one["loss"].diff())[one["step"].diff() <= 0]
    rise = jumps.groupby("seed")["rise"].mean()  # a round counts its steps from 1 again
    if len(rise) < 2:
        raise PeftlabError(f"changes of the mask are needed with two seeds at least, here are {len(rise)}")
    also = f"{len(jumps)} changes; {jumps['before'].mean():.3f} before, {jumps['loss'].mean():.3f} after"
    measure = "training loss right after less right before"
    return Finding(*student(rise.to_numpy()), measure, STUDENT, also)


def lead(table):
    """SAM's mean less the best of its rivals'."""
    sam, *others = over_tasks(table.mean, table, "sam", *RIVALS)
    return sam - np.max(others, 0)


@claim("F-H7", "SAM's mask scores above random, rule-based and projected masks.", lead)
def sam_is_best(main):
    found = runs(main, ["sam", *RIVALS])
    mean = dict(zip(found.methods, found.scores.mean(1), strict=True))  # (seeds), paired with SAM's
    gaps = np.stack([mean["sam"] - mean[m] for m in RIVALS])
    also = "over the mean of the four {:+.4f} [{:+.4f}, {:+.4f}]; ".format(*student(gaps.mean(0)))
    also += f"the best of them is {RIVALS[gaps.mean(1).argmin()]}"
    measure = "mean score of SAM less that of the best of four masks"
    return Finding(*least(lambda level: student(gaps, level), len(gaps)), measure, f"{STUDENT}, paired", also)


def agreement(a, b):
    """Spearman's ρ of the methods' means over tasks in two tables."""
    shared = [m for m in a.methods if m in b.methods]
    return spearman(*(np.stack(over_tasks(table.mean, table, *shared), -1) for table in (a, b)))


def first(table):
    return table.methods[table.mean.mean(-1).argmax()]


@claim("F-H8", "Other training rows leave the methods in the same order.", agreement)
def same_order(main, perturbed):
    common = set(main["task"]) & set(perturbed["task"])
    found = [runs(frame[frame["task"].isin(common)], ["sam"]) for frame in (main, perturbed)]
    also = "first: {}; on other rows: {}".format(*(first(f.table()) for f in found))
    measure = "rank correlation of the methods' mean scores under both designs, on the tasks of both"
    return Finding(*bootstrap(agreement, *found), measure, BOOTSTRAP, also)
