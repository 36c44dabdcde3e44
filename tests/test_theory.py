"""The theory in numbers: every formula against another way to the same number."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from theories import SMALL, jumps, net, one_mask, quadratic, rows_of, soft  # noqa: F401

from peftlab import best_mask, projection, theory

# Theorems 1 and 2 ---------------------------------------------------------------------------------


def test_theorem_2_is_the_bound_of_a_stable_algorithm_with_theorem_1():
    C, rho, least, p, n, delta = 3.0, 2.0, 0.1, 0.25, 40, 0.05
    eps = theory.stability_bound(rho, least, p, n)
    assert eps == pytest.approx(2 * 4 / (1.6 * 40))
    gap = theory.generalisation_gap(C, rho, least, p, n, delta)
    assert gap == pytest.approx(((C**2 + 12 * C * n * eps) / (2 * n * delta)) ** 0.5)


@pytest.mark.parametrize("p", [0.1, 0.7, 1.0])
def test_leaving_out_is_the_identity_of_the_hat_matrix(p):
    X, y, start = rows = rows_of()
    n, d = X.shape
    A = np.linalg.inv(X.T @ X / n + 2 * (1 - p) * np.eye(d))
    r = y - start
    e, h = r - X @ A @ X.T @ r / n, np.einsum("nd,de,ne->n", X, A, X) / n
    out = e / (1 - h)  # the residual of a row by the fit without it
    found, change = theory.left_out(rows, theory.LOSSES["squares"], "soft", p, range(d))
    assert change == pytest.approx(A @ X.T @ r / n)
    assert found["phs"] == pytest.approx(np.abs(out**2 - e**2).mean() / 2)
    assert found["rho"] == pytest.approx((np.linalg.norm(X, axis=1) * np.abs([e, out])).max())
    assert found["least"] == pytest.approx(np.linalg.eigvalsh(X.T @ X / n)[0])


@pytest.mark.parametrize("loss", theory.LOSSES)
def test_a_refit_is_the_minimum_that_another_optimiser_finds(loss):
    X, y, start = rows = rows_of(loss, scale=0.5)
    one, weight, kept = theory.LOSSES[loss], np.array([0.1, 1.0, 0.0, 0.3]), 1 - np.eye(len(X))[:3]
    for k, found in zip(kept, theory.fitted(rows, one, weight, kept), strict=True):
        objective = lambda D, k=k: (k * one.value(start + X @ D, y)).sum() / len(X) + (weight * D**2).sum()
        assert found == pytest.approx(minimize(objective, np.zeros(4), tol=1e-12).x, abs=1e-5)


@pytest.mark.parametrize("loss", theory.LOSSES)
def test_slope_and_bend_are_the_derivatives_of_the_loss(loss):
    one, f, y, h = theory.LOSSES[loss], np.linspace(-3, 3, 7), np.array([1.0, -1, 1, 1, -1, -1, 1]), 1e-5
    assert one.slope(f, y) == pytest.approx((one.value(f + h, y) - one.value(f - h, y)) / (2 * h), abs=1e-8)
    assert one.bend(f, y) == pytest.approx((one.slope(f + h, y) - one.slope(f - h, y)) / (2 * h), abs=1e-8)


def test_a_hard_mask_moves_its_entries_alone_and_as_least_squares_would():
    X, y, start = rows = rows_of(d=6)
    order, S = [4, 1, 0, 2, 3, 5], [1, 4]
    found, change = theory.left_out(rows, theory.LOSSES["squares"], "hard", 0.4, order)
    fit = lambda keep: np.linalg.lstsq(X[keep][:, S], (y - start)[keep], rcond=None)[0]
    everything = np.arange(len(X))
    whole = fit(everything)
    assert change[S] == pytest.approx(whole) and not change[[0, 2, 3, 5]].any()
    miss = lambda i, D: (y[i] - start[i] - X[i, S] @ D) ** 2 / 2
    gaps = [abs(miss(i, fit(np.delete(everything, i))) - miss(i, whole)) for i in everything]
    assert found["phs"] == pytest.approx(np.mean(gaps))


def test_theorem_1_holds_in_every_draw_and_is_loose(soft):
    assert len(soft) == 2 * 2 * 4 * 5 and {r["loss"] for r in soft} == set(theory.LOSSES)
    for r in soft:
        assert r["phs"] <= r["bound"] == theory.stability_bound(r["rho"], r["least"], r["p"], r["n"])
        assert r["phs"] <= theory.stability_bound(r["rho"], 0.0, r["p"], r["n"]), "convexity alone proves this one"
    assert min(r["bound"] / r["phs"] for r in soft) > 2


def test_fewer_entries_and_more_rows_make_it_more_stable(soft):
    phs = lambda p, n: np.mean([r["phs"] for r in soft if (r["p"], r["n"]) == (p, n)])
    for n in (15, 40):
        assert phs(0.1, n) < phs(0.5, n) < phs(0.9, n) < phs(0.99, n)
    assert all(phs(p, 40) < phs(p, 15) for p in SMALL["p"])


def test_the_bound_on_the_test_loss_holds_and_the_training_loss_falls_with_p(soft):
    assert all(r["test"] <= r["train"] + r["gap"] for r in soft)
    for i in range(0, len(soft), len(SMALL["p"])):
        train = [r["train"] for r in soft[i : i + len(SMALL["p"])]]
        assert train == sorted(train, reverse=True)


def test_the_curvature_of_the_theorem_is_that_of_the_mean_over_masks_only(one_mask):
    for r in one_mask:
        theorem = r["least"] + 2 * (1 - r["p"])
        if r["kind"] == "soft":
            assert r["curvature"] == pytest.approx(theorem)
        else:
            assert r["least"] - 1e-12 <= r["curvature"] < theorem / 1.2


def test_one_mask_breaks_the_number_of_the_theorem_in_small_units(one_mask):
    above = lambda *case: [r["phs"] > r["bound"] for r in one_mask if (r["scale"], r["kind"]) == case]
    for scale in theory.ONE_MASK["scale"]:
        assert not any(above(scale, "soft"))
    assert all(above(0.05, "hard")) and all(above(0.05, "fixed"))
    assert not any(above(1.0, "hard"))


def test_the_units_do_not_matter_to_a_hard_mask(one_mask):
    hard = [[r["phs"] for r in one_mask if (r["scale"], r["kind"]) == (s, "hard")] for s in theory.ONE_MASK["scale"]]
    assert all(one == pytest.approx(hard[0], rel=1e-6) for one in hard)


def test_nested_least_squares():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 5)), rng.normal(size=12)
    D = theory.nested(X, y)
    for k in range(5):
        assert D[: k + 1, k] == pytest.approx(np.linalg.lstsq(X[:, : k + 1], y, rcond=None)[0])
        assert not D[k + 1 :, k].round(12).any()


def test_the_test_error_is_u_shaped_for_chosen_entries_and_the_training_error_is_not():
    rows = theory.u_shape(n=(50,), seeds=range(10))
    chosen = [r for r in rows if r["rule"] == "g²"]
    test, inside = np.array([r["test"] for r in chosen]), slice(8, 24)
    assert (test[:, inside].min(1) < test[:, 0]).all() and (test[:, inside].min(1) < test[:, -1]).all()
    assert all((np.diff(r["train"]) <= 1e-12).all() for r in rows)
    at = {rule: np.mean([r["test"][15] for r in rows if r["rule"] == rule]) for rule in ("g²", "random")}
    assert at["g²"] < at["random"]
    both = [[r["test"][-1] for r in rows if r["rule"] == rule] for rule in at]
    assert both[0] == pytest.approx(both[1]), "all entries are the same mask, in whatever order"


# Theorem 3 ----------------------------------------------------------------------------------------


def test_the_gain_of_every_mask():
    rng = np.random.default_rng(0)
    g, A, masks = rng.normal(size=(2, 5)), rng.normal(size=(2, 5, 8)), best_mask.sets(5, 2)
    H = A @ A.mT
    assert [*map(tuple, masks)] == [*itertools.combinations(range(5), 2)]
    found = best_mask.gains(g, H, masks)
    for b, (c, S) in itertools.product(range(2), enumerate(masks)):
        model = lambda D, b=b, S=S: g[b, S] @ D + D @ H[b][np.ix_(S, S)] @ D / 2
        assert found[b, c] == pytest.approx(-minimize(model, np.zeros(2), tol=1e-12).fun, rel=1e-6)
    h = rng.uniform(0.1, 9, (2, 5))
    diagonal = best_mask.gains(g, h[..., None] * np.eye(5), masks)
    assert diagonal == pytest.approx((g**2 / h)[:, masks].sum(-1) / 2)


def test_judged_by_the_mask_of_the_largest_scores():
    masks = best_mask.sets(3, 2)  # 01, 02, 12
    found, share = best_mask.judged(np.array([[1.0, 3, 2], [1, 0, 1]]), masks, np.array([[1.0, 2, 4], [8, 2, 0]]))
    assert found.tolist() == [True, False] and share.tolist() == [1.0, 0.25]


def test_theorem_3_is_exact_for_a_diagonal_hessian_and_g2_loses_as_curvatures_spread(quadratic):
    of = lambda what, **k: np.array([r[what] for r in quadratic if all(r[a] == b for a, b in k.items())])
    assert (of("found", hessian="diagonal", rule="g²/h") == 1).all()
    assert (of("share", hessian="diagonal", rule="g²/h") == 1).all()
    assert (of("found", hessian="diagonal", rule="g²", spread=0.0) == 1).all(), "equal curvatures cancel"
    for hessian in ("diagonal", "dense"):
        share = [of("share", hessian=hessian, rule="g²", spread=s).mean() for s in (0.0, 1.0, 2.0)]
        assert share[0] > share[1] > share[2] > of("share", hessian=hessian, rule="random", spread=2.0).mean()
    dense = of("found", hessian="dense", rule="g²/h", spread=2.0)
    assert (dense < 0.5).all() and (of("share", hessian="dense", rule="g²/h", spread=2.0) > 0.7).all()


def test_the_net_its_hessian_and_its_masks():
    torch.manual_seed(0)
    W, x = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, 9, 2, dtype=torch.float64)
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
    torch.nn.utils.vector_to_parameters(W[1], plain.parameters())
    assert torch.allclose(best_mask.outputs(W, x)[1], plain(x[1]))
    y = best_mask.outputs(W + torch.randn_like(W), x)
    value, g, H = best_mask.derivatives(lambda w: best_mask.squares(w, x, y), W)
    alone = lambda w: torch.nn.functional.mse_loss(best_mask.outputs(w, x[1]), y[1])  # half a sum of 2: the mean
    assert value[1] == pytest.approx(float(alone(W[1])))
    assert torch.allclose(g[1], torch.autograd.functional.jacobian(alone, W[1]))
    assert torch.allclose(H[1], torch.autograd.functional.hessian(alone, W[1]))


def test_training_the_entries_of_a_mask_gets_to_their_minimum():
    torch.manual_seed(1)
    W, x = torch.randn(1, 12, dtype=torch.float64), torch.randn(1, 9, 2, dtype=torch.float64)
    y = best_mask.outputs(W + 0.3 * torch.randn_like(W), x)
    masks = best_mask.sets(12, 3)[::37]

    def loss(values, S):
        w = W[0].clone()
        w[S] += torch.tensor(values)
        return float(best_mask.squares(w, x[0], y[0]))

    for S, found in zip(masks, best_mask.tuned(W, x, y, masks)[0], strict=True):
        assert float(found) == pytest.approx(minimize(loss, np.zeros(3), (S,), tol=1e-12).fun, rel=1e-4)


def test_the_model_finds_the_best_mask_of_the_net_only_near_its_minimum(net):
    share = lambda rule, shift: np.mean([r["share"] for r in net if (r["rule"], r["shift"]) == (rule, shift)])
    assert len(net) == 2 * 5 * 3 and all(r["share"] <= 1 and r["found"] == (r["share"] > 0.999) for r in net)
    assert share("model", 0.001) > 0.999 > share("g²/h", 0.001) > share("random", 0.001)


# Projection ---------------------------------------------------------------------------------------


def test_the_projection_keeps_the_largest_and_of_equal_ones_the_first():
    D = np.array([[1.0, -3, 2, 0.5], [2, 2, -2, 2]])
    assert projection.project(D, 2).tolist() == [[0, -3, 2, 0], [2, 2, 0, 0]]
    assert projection.project(D, np.array([1, 3])).tolist() == [[0, -3, 0, 0], [2, 2, -2, 0]]


def test_the_ratio_of_the_projection_has_no_bound():
    rows = projection.expansion(distance=(0.5, 1e-3, 1e-6, 1e-9))
    for r in rows:
        assert np.subtract(r["a"], r["b"]) @ np.subtract(r["a"], r["b"]) == pytest.approx(r["distance"] ** 2, rel=1e-6)
        assert (r["Pa"], r["Pb"]) == ([1.0, 0.0], [0.0, 1.0])
        assert r["ratio"] == pytest.approx(2**0.5 / r["distance"], rel=1e-6)
    assert rows[-1]["ratio"] > 1e9


@pytest.mark.parametrize("how", projection.OPTIMIZERS)
def test_the_steps_are_those_of_torch(how):
    rng = np.random.default_rng(0)
    X, y, k = rng.normal(size=(12, 6)), rng.choice([-1.0, 1.0], 12), 2
    D = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    fresh = lambda: torch.optim.SGD([D], 0.5) if how == "plain" else torch.optim.Adam([D], 0.01)
    optimizer, path = fresh(), [D.tolist()]
    for step in range(1, 11):
        optimizer.zero_grad()
        torch.nn.functional.softplus(-torch.tensor(y) * (torch.tensor(X) @ D)).mean().backward()
        optimizer.step()
        path.append(D.tolist())
        if step % 5 == 0:
            with torch.no_grad():
                D[D.abs().argsort(descending=True)[k:]] = 0.0
            path.append(D.tolist())
            optimizer = fresh() if how == "Adam reset" else optimizer
    steps, found = zip(*projection.descent(X, y, [k], [how], 5, 2, (0.5, 0.01)), strict=True)
    assert steps == (0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10)
    assert np.array(found)[:, 0] == pytest.approx(np.array(path), abs=1e-9)


def test_the_loss_jumps_at_a_projection_unless_all_is_kept(jumps):
    assert len(jumps) == 2 * 3 * 2
    for r in jumps:
        loss, at = np.array(r["loss"]), [i for i, (a, b) in enumerate(itertools.pairwise(r["step"])) if a == b]
        assert [r["step"][i] for i in at] == [60, 120, 180] and len(r["overlap"]) == 2
        assert loss[0] == pytest.approx(np.log(2))
        if r["share"] == 1.0:
            assert all(loss[i] == loss[i + 1] for i in at) and r["overlap"] == [1.0, 1.0]
        else:
            assert all(loss[i + 1] > 5 * loss[i] for i in at)
    still = [r for r in jumps if r["share"] < 1 and set(r["overlap"]) == {1.0}]
    assert still, "the loss jumps even where the mask stays the same"
