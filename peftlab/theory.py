"""Theorems 1 and 2 of Fu et al. (2211.15583) in numbers: stability, and what it says of the loss on new rows.

Linear models are small enough to do exactly what the theorems speak of: leave every row out in turn, and refit. Rows
are plain dicts; `peftlab.theory_plots` draws them.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from .errors import PeftlabError, choose
from .masks import share_of

P = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
KINDS = ("soft", "fixed", "hard")
ONE_MASK = dict(n=(60,), d=(20,), loss=("squares",), kind=KINDS, scale=(0.05, 0.1, 0.2, 0.5, 1.0))  # for `stability`

# The theorems -------------------------------------------------------------------------------------


def stability_bound(rho, least, p, n):
    """ε = 2ρ² / ((Λ_min + 2(1 - p)) n)

    Theorem 1: pointwise hypothesis stability of min_θ L(θ) + (1 - p)‖θ - θ⁰‖², the objective averaged over the masks of
    density p. rho: Lipschitz constant ρ of the loss of a row; least: Λ_min, the least curvature of L where it ends;
    n: rows. Nothing of it speaks of one mask that was drawn. 2211.15583 thm. 1.
    """
    return 2 * rho**2 / ((least + 2 * (1 - p)) * n)


def generalisation_gap(C, rho, least, p, n, delta):
    """R - R̂ ≤ √((C² + 24 C ρ² / (Λ_min + 2(1 - p))) / (2 n δ)) with probability 1 - δ

    Theorem 2: test loss less training loss. C: range of the loss of a row; the rest as in `stability_bound`, with which
    it is √((C² + 12 C n ε) / (2 n δ)). 2211.15583 thm. 2.
    """
    return np.sqrt((C**2 + 24 * C * rho**2 / (least + 2 * (1 - p))) / (2 * n * delta))


# Stability ----------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """Of a row, with the model's output f and the label y: its value, its derivative by f, and that one's."""

    value: object
    slope: object
    bend: object


LOSSES = dict(
    squares=Loss(lambda f, y: (f - y) ** 2 / 2, lambda f, y: f - y, lambda f, y: np.ones_like(f)),
    logistic=Loss(
        lambda f, y: np.logaddexp(0, -y * f), lambda f, y: -y * expit(-y * f), lambda f, y: expit(f) * expit(-f)
    ),
)


class Rows(NamedTuple):
    """X (n d), y (n), and what the pretrained weights say, Xθ⁰ (n)."""

    X: np.ndarray
    y: np.ndarray
    start: np.ndarray


def drawn(n, d, loss, scale, noise, rng, theta):
    """n rows of the new task, for which the weights are theta[1] and no longer the pretrained theta[0].

    scale: standard deviation of an input; the weights shrink with it, so that the task stays the same in other units.
    """
    X = scale * rng.normal(size=(n, d))
    f = X @ theta[1] / scale
    y = f + noise * rng.normal(size=n) if loss == "squares" else np.where(rng.random(n) < expit(f), 1.0, -1.0)
    return Rows(X, y, X @ theta[0] / scale)


def fitted(rows, loss, weight, kept, D=0.0):
    """argmin_δ (1/n) Σⱼ keptⱼ ℓ(xⱼ·(θ⁰ + δ), yⱼ) + Σᵢ wᵢ δᵢ², by Newton's method

    kept (b n): a problem for each of its rows, all divided by the same n; weight (d): w; returns δ (b d), from D on.
    PeftlabError where there is no minimum.
    """
    X, y, start = rows
    n, d = X.shape
    outer = (X[:, :, None] * X[:, None]).reshape(n, -1)
    D, free = D + np.zeros((len(kept), d)), (weight == 0).sum()
    try:
        for _ in range(50 if kept.sum(1).min() >= free else 0):
            f = start + D @ X.T
            g = kept * loss.slope(f, y) @ X / n + 2 * weight * D
            H = (kept * loss.bend(f, y) @ outer / n).reshape(-1, d, d) + 2 * np.diag(weight)
            step = np.linalg.solve(H, g[..., None])[..., 0]
            D = D - step
            if (step * g).sum(-1).max() < 1e-18:  # what is still to gain, whatever the units of X
                return D
    except np.linalg.LinAlgError:
        pass
    raise PeftlabError(f"{n} rows, less one, do not hold {free} free weights; take more rows, or a smaller p")


def objective(kind, p, d, order):
    """(w, moving): the penalty Σᵢ wᵢ δᵢ² and which entries may move.

    soft: 1 - p on every entry, the mean over masks; fixed: 1 on the entries outside one mask; hard: they do not move.
    The mask has the first ⌊p d⌋ entries of `order`.
    """
    mask = np.isin(np.arange(d), order[: share_of(p, d)])
    if not mask.any() and kind != "soft":
        raise PeftlabError(f"density p = {p} picks none of {d} weights; take p of at least {1 / d:.2g}")
    everywhere = np.ones(d, bool)
    return dict(
        soft=(np.full(d, 1 - p), everywhere), fixed=(1.0 - mask, everywhere), hard=(np.zeros(mask.sum()), mask)
    )[kind]


def left_out(rows, loss, kind, p, order):
    """What Theorem 1 speaks of, for one training set and one p: every row is left out in turn, and the rest refitted.

    phs: the mean change of the loss of the row left out; rho: the largest gradient of such a row's loss at the two fits
    (between them it is smaller, for these losses); least: Λ_min; curvature: that of the objective along the entries
    that move. Also δ, for all d entries. ρ is that of all entries, even where few move.
    """
    X, y, start = rows
    n, d = X.shape
    weight, moving = objective(kind, p, d, order)
    part = Rows(X[:, moving], y, start)
    whole = fitted(part, loss, weight, np.ones((1, n)))
    others = fitted(part, loss, weight, 1 - np.eye(n), whole)
    f, g = start + part.X @ whole[0], start + (part.X * others).sum(1)
    rho = (np.linalg.norm(X, axis=1) * np.abs([loss.slope(f, y), loss.slope(g, y)])).max()
    H = X.T * loss.bend(f, y) @ X / n
    found = dict(
        phs=np.abs(loss.value(g, y) - loss.value(f, y)).mean(),
        rho=rho,
        least=max(0.0, np.linalg.eigvalsh(H)[0]),
        curvature=np.linalg.eigvalsh(H[np.ix_(moving, moving)] + 2 * np.diag(weight))[0],
    )
    change = np.zeros(d)
    change[moving] = whole[0]
    return {k: float(v) for k, v in found.items()}, change


def stability(
    p=P,
    n=(25, 50, 100),
    d=(4, 8, 16),
    loss=("squares", "logistic"),
    kind=("soft",),
    scale=(0.3,),
    noise=0.5,
    delta=0.1,
    seeds=range(8),
):
    """E_i |ℓ(A(Sⁱ), zᵢ) - ℓ(A(S), zᵢ)| by exact leave-one-out, beside Theorem 1's bound

    Rows {n, d, loss, kind, scale, seed, p; phs, rho, least, curvature: see `left_out`; bound: Theorem 1's; train, test:
    mean loss on the n rows and on 1,000 new ones; gap: Theorem 2's, where C is the largest loss among these rows}. One
    training set S for each seed. loss: squares ½(f - y)² or logistic, of which Λ_min is the curvature at the fit only,
    as in the theorem; kind: of the mask, see `objective`; scale: standard deviation of the inputs; noise: that of the
    labels of `squares`. PeftlabError for an unknown loss or kind, for p outside 0 … 1, and where the rows do not hold
    the weights. 2211.15583 thm. 1, 2.
    """
    rows = []
    for n_, d_, loss_, scale_, seed in itertools.product(n, d, loss, scale, seeds):
        one = LOSSES[choose(loss_, LOSSES, "loss")]
        rng = np.random.default_rng([seed, n_, d_])
        theta, order = np.cumsum(rng.normal(size=(2, d_)), 0) / d_**0.5, rng.permutation(d_)
        train, test = (drawn(size, d_, loss_, scale_, noise, rng, theta) for size in (n_, 1000))
        for kind_, p_ in itertools.product(kind, p):
            found, change = left_out(train, one, choose(kind_, KINDS, "kind of mask"), density(p_), order)
            R, r = (one.value(t.start + t.X @ change, t.y) for t in (test, train))
            facts = [found["rho"], found["least"], p_, n_]
            gap = generalisation_gap(max(R.max(), r.max()), *facts, delta)
            case = dict(n=n_, d=d_, loss=loss_, kind=kind_, scale=scale_, seed=seed, p=p_)
            risks = dict(train=float(r.mean()), test=float(R.mean()), gap=float(gap))
            rows.append(case | found | risks | dict(bound=stability_bound(*facts)))
    return rows


def density(p):
    if not 0 < p <= 1:
        raise PeftlabError(f"density p = {p} is no share; take p between 0 and 1")
    return p


def u_shape(n=(50, 60, 80, 160), noise=(0.4,), d=48, moved=8, size=0.25, seeds=range(20)):
    """Squared error of least squares on the first k entries of an order, k = 1 … d, on training rows and 1,000 new ones

    Rows {n, noise, seed, rule: g² (largest gradient at θ⁰ first) or random; p: k/d, train, test: lists over k}. The new
    task has moved `moved` of the d weights by ±size. For a linear model only the change counts, so θ⁰ = 0.
    PeftlabError unless n > d.
    """
    rows = []
    for n_, noise_, seed in itertools.product(n, noise, seeds):
        if n_ <= d:
            raise PeftlabError(f"{n_} rows do not hold {d} free weights; take more than {d} rows")
        rng = np.random.default_rng([seed, n_])
        shift = rng.permutation([size] * moved + [0.0] * (d - moved)) * rng.choice([-1, 1], d)
        X, new = rng.normal(size=(n_, d)), rng.normal(size=(1000, d))
        y, label = (Z @ shift + noise_ * rng.normal(size=len(Z)) for Z in (X, new))
        for rule, order in {"g²": np.argsort(-((X.T @ y) ** 2)), "random": rng.permutation(d)}.items():
            D = nested(X[:, order], y)
            train, test = (((t[:, None] - Z[:, order] @ D) ** 2).mean(0) for Z, t in ((X, y), (new, label)))
            found = dict(p=(np.arange(1, d + 1) / d).tolist(), train=train.tolist(), test=test.tolist())
            rows.append(dict(n=n_, noise=noise_, seed=seed, rule=rule) | found)
    return rows


def nested(X, y):
    """Column k: argmin_δ ‖y - Xδ‖² with only the first k + 1 entries free, (d d)

    With X = QR it is the sum of the first columns of R⁻¹ diag(Qᵀy), as R⁻¹ is triangular.
    """
    Q, R = np.linalg.qr(X)
    return np.cumsum(np.linalg.inv(R) * (Q.T @ y), 1)
