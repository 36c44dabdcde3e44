"""Masks by projection, of which Fu et al. (2211.15583) speak, in numbers: two near points, and training that jumps.

Rows are plain dicts; `peftlab.choice_plots` draws them.
"""

import itertools

import numpy as np
from scipy.special import expit

from .errors import PeftlabError, choose
from .masks import share_of
from .theory import LOSSES, density

OPTIMIZERS = ("plain", "Adam kept", "Adam reset")


def project(D, k):
    """P(D): the k entries largest in |D| along the last axis, of equal ones the first, and 0 elsewhere; k may be one
    number for each row of D."""
    rank = np.argsort(np.argsort(-np.abs(D), -1, kind="stable"), -1)
    return np.where(rank < np.asarray(k)[..., None], D, 0.0)


def expansion(distance=tuple(10.0**-i for i in range(7))):
    """‖P(a) - P(b)‖ / ‖a - b‖ for two points on either side of the diagonal of the plane, P keeping one entry

    Rows {distance: ‖a - b‖, a, b, Pa, Pb, ratio}. A projection on a convex set would keep it at 1 or below.
    """
    rows = []
    for r in distance:
        a = np.array([1.0, 1.0 - r / 2**0.5])
        b = a[::-1]
        Pa, Pb = project(a, 1), project(b, 1)
        ratio = float(np.linalg.norm(Pa - Pb) / np.linalg.norm(a - b))
        rows.append(dict(distance=r, a=a.tolist(), b=b.tolist(), Pa=Pa.tolist(), Pb=Pb.tolist(), ratio=ratio))
    return rows


def descent(X, y, keep, how, every, rounds, rates):
    """Yield (step, δ (c d)) of c logistic regressions from δ = 0 on; where δ ← P(δ), once before it and once after."""
    slope, adam, reset = LOSSES["logistic"].slope, [[h != "plain"] for h in how], [h == "Adam reset" for h in how]
    D, a, b = np.zeros((3, len(keep), X.shape[1]))
    age = np.zeros((len(keep), 1))
    yield 0, D
    for step in range(1, every * rounds + 1):
        g, age = slope(D @ X.T, y) @ X / len(X), age + 1
        a, b = 0.9 * a + 0.1 * g, 0.999 * b + 0.001 * g * g
        moment = a / (1 - 0.9**age) / (np.sqrt(b / (1 - 0.999**age)) + 1e-8)
        D = D - np.where(adam, rates[1] * moment, rates[0] * g)
        yield step, D
        if step % every == 0:
            D = project(D, keep)
            a[reset], b[reset], age[reset] = 0.0, 0.0, 0.0
            yield step, D


def projections(
    share=(0.01, 0.03, 0.1, 0.3, 1.0),
    optimizer=OPTIMIZERS,
    every=100,
    rounds=4,
    d=400,
    n=200,
    rates=(0.5, 0.01),
    seeds=range(3),
):
    """δ ← P(δ), the share of entries largest in |δ|, after every so many full steps; logistic regression

    Rows {share, optimizer, seed; step, loss: lists, where a step with a projection stands twice, before it and after;
    overlap: Jaccard's, of each mask with the one before}. optimizer: plain gradient descent, or Adam, its moments kept
    through a projection or reset; rates: of the two.
    """
    if rounds < 2:
        raise PeftlabError(f"with {rounds} projection no mask has one before it; take 2 rounds or more")
    rows, cases = [], list(itertools.product(share, optimizer))
    keep = [max(1, share_of(density(s), d)) for s, _ in cases]
    how = [choose(o, OPTIMIZERS, "optimizer") for _, o in cases]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(n, d))
        y = np.where(rng.random(n) < expit(X @ rng.normal(size=d) * 2 / d**0.5), 1.0, -1.0)
        steps, path = zip(*descent(X, y, keep, how, every, rounds, rates), strict=True)
        losses = [LOSSES["logistic"].value(D @ X.T, y).mean(1) for D in path]
        masks = [D != 0 for D, now, then in zip(path[1:], steps[1:], steps, strict=False) if now == then]
        overlap = [(m & o).sum(1) / (m | o).sum(1) for m, o in itertools.pairwise(masks)]
        for i, (s, o) in enumerate(cases):
            found = dict(loss=[float(v[i]) for v in losses], overlap=[float(v[i]) for v in overlap])
            rows.append(dict(share=s, optimizer=o, seed=seed, step=list(steps)) | found)
    return rows
