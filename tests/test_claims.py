"""The paper's tables as data, and its claims on made runs whose truth is known."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import peftlab as pl
from peftlab import claims, claims_plots, plots, published, resampling
from peftlab.methods import METHODS
from peftlab.studies import learner

METHOD, TASKS, DENSITIES = list(published.NAMES.values()), list("abcd"), (0.0005, 0.002, 0.01, 0.05, 0.2)
RISE = np.arange(len(METHOD))[:, None] / 10  # a different number for each method


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(resampling, "TIMES", 1000)


def made(mean=0.8, std=0.01, n=10, seed=0, keys=METHOD, by="method", shared=0.01):
    """Runs with these means and deviations (methods tasks); what a seed brings to all methods is shared."""
    rng, shape = np.random.default_rng(seed), (len(keys), len(TASKS), n)
    mean, std = (np.broadcast_to(np.asarray(v, float), shape[:2])[..., None] for v in (mean, std))
    scores = mean + std * rng.normal(size=shape) + shared * rng.normal(size=shape[1:])
    index = pd.MultiIndex.from_product([keys, TASKS, range(n)], names=[by, "task", "seed"])
    frame = pd.Series(scores.ravel(), index, name="score").reset_index()
    return frame if by == "method" else frame.assign(method="sam")


def only(name, value, rest=0.0):
    return np.array([[value if m == name else rest] for m in METHOD])


def bent(depth, spread, **more):
    """A sweep whose error and deviation are parabolas over log10 p that turn at 0.01."""
    x = (np.log10(DENSITIES) + 2)[:, None]
    return made(0.8 - depth * x**2, 0.03 + spread * x**2, keys=DENSITIES, by="p", shared=0.0, **more)


def losses(rise, n=10, noise=0.01):
    """Histories of three rounds; the loss falls in each and rises by so much between two."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(n):
        level = 1.0
        for _ in range(3):
            for step in (1, 10, 20):
                rows.append(dict(seed=seed, step=step, loss=level + noise * rng.normal()))
                level -= 0.1
            level += 0.1 + rise
    return pd.DataFrame(rows)


# The paper's tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", (1, 2))
@pytest.mark.parametrize("what", ("mean", "std"))
def test_rows_average_to_what_is_printed(number, what):
    wide = published.table(number, average=True).pivot(index="method", columns="task", values=what)
    assert wide.shape == (10, 8) and not wide.isna().any(axis=None)
    assert (wide[list(published.TASKS)].mean(axis=1) - wide["AVG"]).abs().max() < 0.01


def test_the_sweep_averages_to_its_own_curve_and_meets_table_1():
    for what in ("mean", "std"):
        wide = published.sweep(average=True).pivot(index="p", columns="task", values=what)
        assert (wide[list(published.TASKS)].mean(axis=1) - wide["AVG"]).abs().max() < 0.03
    at = published.sweep().query("p == 0.005").set_index("task")
    sam = published.table().query("method == 'sam'").set_index("task")
    assert (at["mean"] - sam["mean"]).abs()[["CoLA", "MRPC", "STS-B"]].max() < 0.03
    assert published.sweep().query("task == 'RTE'")["train"].notna().sum() == 9 and at["train"].isna().all()


def test_the_paper_s_methods_are_the_registry_s():
    assert set(METHOD) <= set(METHODS) and set(published.table(2)["method"]) == set(METHOD)
    assert METHODS["sam"].title.startswith("SAM") and METHODS["magnitude-mask"].title == "MagPruning"
    with pytest.raises(pl.PeftlabError, match="unknown table of the paper '3'"):
        published.table(3)


def test_the_status_of_the_paper_s_own_numbers():
    found = published.published_status().set_index("claim")
    assert list(found.index) == [f"F-H{i}" for i in range(1, 9)]
    assert set(found["source"]) == {"recomputed from the paper's figures"}
    for column, number in (("value_1", 1), ("value_2", 2)):
        t = published.table(number)
        by = t.groupby("task")
        places = by["mean"].rank("min", ascending=False), by["std"].rank("min")
        assert found.at["F-H4", column] == pytest.approx(stats.spearmanr(*places)[0])
        means, deviations = (t.groupby("method")[k].mean() for k in ("mean", "std"))
        assert found.at["F-H1", column] == (means > means["full"]).sum()
        assert found.at["F-H2", column] == (deviations / deviations["full"]).drop("full").median()
        assert found.at["F-H3", column] == pytest.approx(deviations["random-mask"] / deviations["full"])
        assert found.at["F-H7", column] == pytest.approx(means["sam"] - means[list(claims.RIVALS)].max())
    assert found.loc["F-H4", ["value_1", "value_2"]].astype(float).round(3).tolist() == [0.505, 0.315]
    assert "6 and 6 of 9" in found.at["F-H2", "status"] and "in 5 of 7 tasks" in found.at["F-H7", "status"]
    averages = [published.table(n).groupby("method")["mean"].mean() for n in (1, 2)]
    assert found.at["F-H8", "value_1"] == pytest.approx(stats.spearmanr(*averages)[0])
    assert found.at["F-H5", "value_1"] > 0 and "p = 0.01" in found.at["F-H5", "status"]
    assert found.loc["F-H6", ["value_1", "value_2"]].isna().all()


# The claims ---------------------------------------------------------------------------------------

BETTER, WORSE = only("full", 0.7, 0.8), only("full", 0.9, 0.8)
TRUTHS = {
    "F-H1": [dict(main=made(m)) for m in (BETTER, WORSE, 0.8)],
    "F-H2": [dict(main=made(std=s)) for s in (only("full", 0.05, 0.01), only("full", 0.01, 0.05), 0.02)],
    "F-H3": [dict(main=made(std=s)) for s in (only("random-mask", 0.01, 0.05), only("random-mask", 0.05, 0.01), 0.02)],
    "F-H4": [
        dict(main=made(0.8 + 0.1 * m, 0.002 * 4 ** (4 * RISE), n=20, shared=0.0)) for m in (-5 * RISE, 5 * RISE, 0)
    ],
    "F-H5": [dict(sweep=bent(d, s, n=30)) for d, s in ((0.05, 0.02), (-0.05, 0.02), (0.0, 0.0))],
    "F-H6": [dict(jumps=losses(r, noise=k)) for r, k in ((0.3, 0.01), (-0.3, 0.01), (0.0, 0.1))],
    "F-H7": [dict(main=made(m)) for m in (only("sam", 0.9, 0.8), only("lora", 0.9, 0.8) - only("sam", 0.1), 0.8)],
    "F-H8": [dict(main=made(0.8 + RISE / 5), perturbed=made(m, seed=1)) for m in (RISE / 5, -RISE / 5, 0.8)],
}


@pytest.mark.parametrize("truth", range(3), ids=("true", "false", "no effect"))
@pytest.mark.parametrize("name", TRUTHS)
def test_the_verdict_follows_the_truth(name, truth):
    found = claims.verdicts(**TRUTHS[name][truth]).set_index("claim").loc[name]
    assert found["verdict"] == (claims.HOLDS, claims.FAILS, claims.UNDECIDED)[truth]
    assert found["low"] <= found["effect"] <= found["high"]


def test_no_claim_without_runs_and_all_in_order():
    found = claims.verdicts()
    assert list(found["claim"]) == [f"F-H{i}" for i in range(1, 9)] and set(found["verdict"]) == {claims.MISSING}
    some = claims.verdicts(main=made()).set_index("claim")["verdict"]
    assert [c for c in some.index if some[c] == claims.MISSING] == ["F-H5", "F-H6", "F-H8"]


def test_where_nothing_is_true_little_is_said():
    """36 tables of noise alone: a claim on the sign of an effect may be decided in one of twenty, either way."""
    said = [claims.verdicts(made(n=5, seed=s), made(n=5, seed=99 + s)).set_index("claim")["verdict"] for s in range(36)]
    decided = pd.DataFrame(said).isin([claims.HOLDS, claims.FAILS]).mean()
    assert decided.max() <= 0.15 and decided.drop(["F-H5", "F-H6"]).mean() <= 0.05


@pytest.mark.parametrize("name", TRUTHS)
def test_intervals_shrink_with_seeds(name):
    frames = TRUTHS[name][2]
    few = {k: f[f["seed"] < 5] for k, f in frames.items()}
    more = {k: pd.concat(f.assign(seed=f["seed"] + 100 * i) for i in range(6)) for k, f in frames.items()}
    width = lambda given: (f := claims.verdicts(**given).set_index("claim").loc[name])["high"] - f["low"]
    if name == "F-H6":  # the same histories again, as those of other seeds
        more = dict(jumps=losses(0.0, n=60, noise=0.1))
    assert width(more) < width(few)


def test_below_five_seeds_a_bootstrap_decides_nothing():
    found = claims.verdicts(made(BETTER, n=4)).set_index("claim")
    assert found.at["F-H1", "verdict"] == claims.UNDECIDED and np.isnan(found.at["F-H1", "low"])
    assert found.at["F-H1", "effect"] == 9
    assert claims.verdicts(made(only("sam", 0.9, 0.8), n=4)).set_index("claim").at["F-H7", "verdict"] == claims.HOLDS


def test_intervals_are_those_of_the_textbook():
    values = np.random.default_rng(0).normal(size=20)
    assert resampling.student(values) == pytest.approx(plots.interval(values))
    drawn = np.random.default_rng(1).integers(20, size=(20000, 20))
    assert resampling.bounds(values[drawn].mean(1), 20) == pytest.approx(plots.interval(values)[1:], abs=0.06)
    a, b = np.random.default_rng(2).integers(4, size=(2, 30))
    assert resampling.spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert resampling.spearman(a, np.ones(30)) == 0


def test_the_least_effect_of_several_is_the_one_that_counts():
    low = made(only("sam", 0.85, 0.8) + only("diff-pruning", 0.1))
    found = claims.verdicts(low).set_index("claim").loc["F-H7"]
    assert found["verdict"] == claims.FAILS and found["effect"] == pytest.approx(-0.05, abs=0.01)
    assert "best of them is diff-pruning" in found["also"] and "four +0.02" in found["also"]


def test_one_bend_alone_is_no_u():
    assert claims.verdicts(sweep=bent(0.05, 0.0, n=30))["verdict"][4] != claims.HOLDS
    found = claims.verdicts(sweep=bent(0.05, 0.02, n=30))
    turn = [float(part.rpartition(" ")[2]) for part in found["also"][4].split(",")]
    assert turn == pytest.approx([0.01, 0.01], rel=0.2)


def test_the_history_of_a_projected_mask_is_read():
    def history(seed):
        settings = dict(p=0.005, before=6, period=2)
        undo = learner("child-pruning", "entail", seed, 1, backbone="nano-encoder", settings=settings)[2]
        return [row | dict(seed=seed) for row in undo.deltas[0].peers[0].history]

    rows = [history(seed) for seed in range(2)]
    found = claims.verdicts(jumps=pd.DataFrame(sum(rows, []))).set_index("claim").loc["F-H6"]
    rise = [[b["loss"] - a["loss"] for a, b in zip(one, one[1:], strict=False) if b["step"] == 1] for one in rows]
    assert len(rise[0]) == 2 and found["effect"] == pytest.approx(np.mean(rise)) and "4 changes" in found["also"]


def test_what_is_missing_is_said():
    runs = made()
    for frame, said in (
        (runs[runs["method"] != "full"], "unknown method 'full'.*needs its runs"),
        (runs.drop(columns="score"), "unknown column 'score'"),
        (runs.drop(index=7), "no score for method full, task a, seed 7"),
        (pd.concat([runs, runs[:1]]), "two runs of method full, task a, seed 0; keep one setting"),
        (runs[runs["seed"] == 0], "one seed tells nothing of others"),
    ):
        with pytest.raises(pl.PeftlabError, match=said):
            claims.verdicts(frame)
    with pytest.raises(pl.PeftlabError, match="four densities at least, not at 3"):
        claims.verdicts(sweep=(s := bent(0.1, 0.1))[s["p"] > 0.005])
    with pytest.raises(pl.PeftlabError, match="two seeds at least, here are 0"):
        claims.verdicts(jumps=pd.DataFrame(dict(seed=[0, 1], step=[1, 1], loss=[1.0, 1.0])))


def test_the_head_alone_is_no_method_of_the_claims():
    head = made(0.99, keys=["head"])
    same = [claims.verdicts(f, f) for f in (made(), pd.concat([made(), head]))]
    pd.testing.assert_frame_equal(*same)


# The figures --------------------------------------------------------------------------------------


def test_no_torch_behind_them():
    code = "import sys, peftlab.claims_plots as c; c.published.published_status(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_of_verdicts_says_all_of_them():
    frame = claims.verdicts(made(BETTER), jumps=losses(-0.3))
    page = claims_plots.verdicts(frame).data
    assert page.count("<tr") == 9 and all(f"<b>F-H{i}</b>" in page for i in range(1, 9))
    for verdict in set(frame["verdict"]):
        assert page.count(" ".join([claims_plots.SIGNS[verdict][0], verdict])) == (frame["verdict"] == verdict).sum()
    assert "<b>9</b> [9, 9], claimed &gt;&nbsp;4.5" in page and "0.505 and 0.315" in page
    assert "no interval below five seeds" in claims_plots.verdicts(claims.verdicts(made(n=3))).data


def test_both_tables_have_the_paper_s_order_and_their_own_numbers():
    main = pd.concat([made(BETTER), made(0.8, keys=["fish"])])
    figure = claims_plots.tables(main[main["method"] != "lora"], made(WORSE))
    ours, other, first, second = figure.data
    assert all(list(t.y) == [*METHOD, "fish"] for t in figure.data)
    assert [t.visible for t in figure.data] == [True, False, True, False]
    assert list(first.x) == [*published.TASKS, "AVG"] and list(ours.x) == [*TASKS, "mean"]
    assert (
        first.text[-2][0] == f"60.9<br>±{stats.t.ppf(0.975, 9) * 0.96 / 10**0.5:.1f}" and first.text[-2][-1] == "77.1"
    )
    assert first.z[-2][5] == pytest.approx(74.3 - 67.7) and second.z[-2][5] == pytest.approx(74.0 - 69.6)
    empty = ours.z[METHOD.index("lora")], other.z[-1], first.z[-1]
    assert [list(row) for row in empty] == [[None] * 5, [None] * 5, [None] * 8]
    scores = 100 * main[(main["method"] == "sam") & (main["task"] == "a")]["score"]
    mean, low, _ = plots.interval(scores)
    assert ours.text[METHOD.index("sam")][0] == f"{mean:.1f}<br>±{mean - low:.1f}"
    assert figure.layout.updatemenus[0].buttons[1].args[0] == dict(visible=[False, True, False, True])
    alone = claims_plots.tables(main)
    assert alone.layout.updatemenus[0].buttons[1].args[0] == dict(visible=[True, False, True])


def test_the_sweep_has_intervals_baselines_and_the_paper_s_curve():
    ours = pd.concat([s := bent(0.05, 0.02).assign(train=0.9), s.assign(method="random-mask"), made(keys=["full"])])
    figure = claims_plots.sweep(ours)
    named = {(t.name, t.yaxis): t for t in figure.data}
    mean = named["sam (10 seeds)", "y"]
    wanted = 100 * s.groupby("p")["score"].mean()
    assert list(mean.x) == list(DENSITIES) and list(mean.y) == pytest.approx(list(wanted))
    at = s[s["p"] == 0.01].groupby("seed")["score"].mean()
    assert mean.error_y.array[2] == pytest.approx(100 * (at.mean() - plots.interval(at)[1]))
    assert list(named["sam, training rows", "y"].y) == pytest.approx([90] * 5)
    deviation = next(t for t in figure.data if t.yaxis == "y3" and t.legendgroup == "sam")
    assert deviation.y[2] == pytest.approx(100 * s[s["p"] == 0.01].groupby("task")["score"].std().mean())
    theirs = [t for t in figure.data if t.yaxis in ("y2", "y4")]
    assert [t.y[5] for t in theirs] == [76.87, 1.46] and all("recovered" in t.name for t in theirs)
    assert [round(line.y0) for line in figure.layout.shapes] == [80, round(100 * 0.01 * 2**0.5)]
