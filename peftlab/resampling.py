"""Means and deviations of runs, of resamples of their seeds, and intervals from them. No torch here."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata, t

from .errors import PeftlabError, choose

TIMES = 4000  # resamples
BOOTSTRAP = "bootstrap over seeds"
STUDENT = "Student t over seeds"

# Means and deviations, observed and resampled -----------------------------------------------------


class Table(NamedTuple):
    """mean, std (… methods tasks): of runs, of many resamples of runs, or as a paper prints them."""

    methods: list
    tasks: list
    mean: np.ndarray
    std: np.ndarray

    def at(self, method):
        return self.methods.index(method)

    def without(self, i):
        keep = [k for k in range(len(self.methods)) if k != i]
        return Table([self.methods[k] for k in keep], self.tasks, self.mean[..., keep, :], self.std[..., keep, :])


class Runs(NamedTuple):
    """scores (methods tasks seeds)."""

    methods: list
    tasks: list
    scores: np.ndarray

    @property
    def n(self):
        return self.scores.shape[-1]

    def table(self):
        return Table(self.methods, self.tasks, self.scores.mean(-1), self.scores.std(-1, ddof=1))

    def resampled(self, seed=0):
        """Tables of n seeds drawn with replacement, the same for all methods and tasks. A draw of one seed n times
        has no deviation and is left out; the others' are, squared, 1/n too small, which is made good."""
        drawn = np.random.default_rng(seed).integers(self.n, size=(2 * TIMES, self.n))
        drawn = drawn[(drawn != drawn[:, :1]).any(1)][:TIMES]  # of three seeds every ninth draw is left out
        scores = np.moveaxis(self.scores[..., drawn], 2, 0)  # (times methods tasks seeds)
        widen = (self.n / (self.n - 1)) ** 0.5
        return Table(self.methods, self.tasks, scores.mean(-1), widen * scores.std(-1, ddof=1))


def runs(frame, needed=(), by="method"):
    """The Runs of a frame, without the head alone; every method must have run on every task with every seed."""
    keys = [by, "task", "seed"]
    for column in ("method", *keys, "score"):
        choose(column, frame.columns, "column")
    frame = frame[frame["method"] != "head"]
    for name in needed:
        choose(name, frame["method"].unique(), "method", "; the claim needs its runs")
    told = lambda key: ", ".join(f"{k} {v}" for k, v in zip(keys, key, strict=True))
    scores = frame.set_index(keys)["score"]
    if scores.index.has_duplicates:
        raise PeftlabError(
            f"two runs of {told(scores.index[scores.index.duplicated()][0])}; keep one setting of each method"
        )
    names = [list(frame[k].unique()) for k in keys]
    if len(names[2]) < 2:
        raise PeftlabError("one seed tells nothing of others; run every method with two at least, better with five")
    scores = scores.reindex(pd.MultiIndex.from_product(names))
    if scores.isna().any():
        raise PeftlabError(f"no score for {told(scores.index[scores.isna()][0])}; run it, or leave its seed out")
    return Runs(names[0], names[1], scores.to_numpy(float).reshape([len(n) for n in names]))


# Intervals ----------------------------------------------------------------------------------------


def bounds(values, n, level=0.05):
    """The percentile interval of resamples (times …) of n seeds, its tails widened to those of Student's t with n - 1
    degrees of freedom: the plain one is too narrow (Hesterberg, arXiv 1411.5279). Below five seeds even the widest one
    is, and there is none (NaN)."""
    if n < 5:
        return np.full((2, *values.shape[1:]), np.nan)
    tail = norm.cdf(-((n / (n - 1)) ** 0.5) * t.ppf(1 - level / 2, n - 1))
    return np.quantile(values, [tail, 1 - tail], axis=0, method="inverted_cdf")


def bootstrap(stat, *designs):
    """(effect, low, high) of stat(table, …); the seeds of two designs are drawn apart."""
    found = stat(*(d.resampled(i) for i, d in enumerate(designs)))
    return float(stat(*(d.table() for d in designs))), *map(float, bounds(found, min(d.n for d in designs)))


def student(values, level=0.05):
    """(mean, low, high) over the last axis."""
    mean, half = values.mean(-1), student_half(values.std(-1, ddof=1), values.shape[-1], level)
    return mean, mean - half, mean + half


def student_half(std, n, level=0.05):
    """Half the interval of a mean of n values with this standard deviation."""
    return t.ppf(1 - level / 2, n - 1) * std / n**0.5


def least(intervals, k):
    """(effect, low, high) of the least of k effects, from intervals(level) of them all. That it is above 0 takes only
    that each is; that it is below 0 may be so by chance of any, hence the upper ends are Bonferroni's."""
    effects, lows, _ = intervals(0.05)
    return tuple(float(np.min(v)) for v in (effects, lows, intervals(0.05 / k)[2]))


def spearman(a, b):
    """Rank correlation over the last axis; 0 where one of both is constant, since it then orders nothing."""
    a, b = (r - r.mean(-1, keepdims=True) for r in (rankdata(v, axis=-1) for v in (a, b)))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(scale, scale, 1)


def jackknife(stat, table):
    """(low, high) by leaving out one method at a time, and what stat is without each of them."""
    k = len(table.methods)
    left = np.array([stat(table.without(i)) for i in range(k)])
    half = t.ppf(0.975, k - 1) * ((k - 1) * left.var()) ** 0.5
    return stat(table) - half, stat(table) + half, dict(zip(table.methods, left.tolist(), strict=True))
