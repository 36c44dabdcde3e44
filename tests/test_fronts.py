"""What a search has found: fronts, hypervolumes, winners on fresh seeds, and their figures."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from searched import CALLS, made, stubbed  # noqa: F401
from small import home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, ledger, plots, search_plots
from peftlab.fronts import hypervolume

# Fronts -------------------------------------------------------------------------------------------


def test_front_and_hypervolume_are_those_of_brute_force():
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    draw = random.Random(0)
    for _ in range(60):
        points = [(10 ** draw.randint(0, 5), draw.randint(0, 10) / 10) for _ in range(draw.randint(1, 12))]
        reference = (10 ** draw.randint(3, 5), draw.randint(0, 4) / 10)
        search = made(*points, reference=reference)
        best = lambda p, points=points: all(q == p or q[0] > p[0] or q[1] < p[1] for q in points)
        assert [(t["numbers"], t["validation"]) for t in search.front()] == sorted(p for p in points if best(p))
        cells = sum(  # of one decade by 0.1
            any(math.log10(n) <= i and round(10 * v) > j for n, v in points)
            for i in range(round(math.log10(reference[0])))
            for j in range(round(10 * reference[1]), 10)
        )
        assert search.hypervolume() == pytest.approx(cells / 10)
        corner = torch.tensor([-math.log10(reference[0]), reference[1]])
        theirs = Hypervolume(corner).compute(torch.tensor([[-math.log10(n), v] for n, v in points]))
        assert search.hypervolume() == pytest.approx(theirs, abs=1e-6)
        assert search.growth()[-1] == search.hypervolume() and search.growth() == sorted(search.growth())
        assert search.hypervolume((10**6, 0.0)) == hypervolume(search.trials, (10**6, 0.0)) >= search.hypervolume()


def test_the_best_within_a_budget_is_on_the_front():
    search = made((100, 0.5), (200, 0.7), (200, 0.6), (400, 0.7), (50, 0.4), (50, 0.4), (800, 0.65))
    assert [(t["numbers"], t["number"]) for t in search.front()] == [(50, 5), (50, 6), (100, 1), (200, 2)]
    for budget, number in ((50, 5), (99, 5), (100, 1), (199, 1), (200, 2), (10**9, 2), (None, 2)):
        assert search.best(budget)["number"] == number
    with pytest.raises(PeftlabError, match="at most 49 numbers; its smallest trains 50"):
        search.best(49)
    with pytest.raises(PeftlabError, match="it has no trials yet"):
        made().best()


def test_the_winners_on_fresh_seeds_are_counted_once(stubbed):
    found = pl.search(how="random", evaluations=8, first=2)
    least = found.front()[0]["numbers"]
    rows = found.again(range(50, 53), budgets=(least, least, None))
    assert [r["budget"] for r in rows] == [least, None] and CALLS[8:] == [
        ledger.digest(found.spec(found.best(b), seed=s)) for b in (least, None) for s in (50, 51, 52)
    ]
    for row in rows:
        low, high = (row["score_mean"] + k * row["score_half"] for k in (-1, 1))
        assert (row["score_mean"], low, high) == pytest.approx(plots.interval(row["scores"]))
    assert found.again([50])[0]["validation_half"] is None


# Figures ------------------------------------------------------------------------------------------


SEVERAL = [
    made((100, 0.5), (10, 0.3), (500, 0.4), how=how, seed=s) for how in ("random", "bayes") for s in range(2)
] + [made((100, 0.9), how="evolution")]  # fmt: skip


def test_the_figure_of_fronts_has_every_trial_and_the_steps():
    figure = plots.front(SEVERAL)
    dots = [t for t in figure.data if t.mode == "markers"]
    assert [len(t.x) for t in dots] == [6, 1, 6] and "serial 8 in layers 0 1" == dots[0].text[0]
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert [(t.x, t.y, t.line.shape) for t in lines][0] == ((10, 100, 1000), (0.3, 0.5, 0.5), "hv")
    assert [t.name for t in lines if t.showlegend] == [
        "bayes, 3 runs: hypervolume 0.800 ± 0.000 (2 seeds)",
        "evolution, 1 runs: hypervolume 0.900 (1 seed)",
        "random, 3 runs: hypervolume 0.800 ± 0.000 (2 seeds)",
    ]
    assert len({t.line.color for t in lines}) == 3 and figure.layout.xaxis.type == "log"
    assert plots.front(SEVERAL[2]).data[1].line.color == lines[0].line.color  # of bayes, also when it is alone


def test_the_figure_of_progress_has_means_and_bands():
    other = made((10, 0.2), (100, 0.5), (1000, 0.9), (1000, 0.9), how="bayes", seed=1)
    figure = plots.progress([SEVERAL[2], other])
    band, mean = figure.data
    growth = np.array([SEVERAL[2].growth(), other.growth()[:3]])
    assert mean.y == pytest.approx(growth.mean(0)) and mean.name == "bayes (2 seeds)" and list(mean.x) == [1, 2, 3]
    low = [plots.interval(values)[1] for values in growth.T]
    steps = np.repeat(low, 2)[:-1]  # each value lasts until the next run
    assert band.y[:4:-1] == pytest.approx(steps) and list(band.x[:5]) == [1, 2, 2, 3, 3]
    assert len(plots.progress(SEVERAL[0]).data) == 1


def test_the_front_of_several_seeds_is_their_mean_in_a_band():
    other = made((20, 0.2), (200, 0.7), how="bayes", seed=1)
    x, mean, half = search_plots.attained([SEVERAL[2], other])
    assert x == [20, 100, 200, 1000] and mean == pytest.approx([0.25, 0.35, 0.6, 0.6])
    assert half[1] == pytest.approx(plots.interval([0.5, 0.2])[2] - 0.35)
    band = plots.front([SEVERAL[2], other]).data[1]
    assert (band.y[1], band.y[-2]) == pytest.approx((0.25 + half[0], 0.25 - half[0])) and band.x[0] == band.x[-1] == 20


def test_the_figure_of_the_curse_has_what_won_beside_what_came_after():
    row = dict(numbers=100, settings=dict(serial=8, parallel=0, n=2), layers=[1], metric="accuracy")
    row |= dict(validation=0.8, validations=[0.7, 0.72], score=0.6, scores=[0.6, 0.64])
    rows = [row | dict(numbers=n) for n in (9, 4)]
    figure = plots.curse(rows)
    won, fresh, dots = (t for t in figure.data if t.xaxis == "x")
    assert won.y == (0.8, 0.8) and fresh.y == pytest.approx((0.71, 0.71)) and len(dots.y) == 4
    assert fresh.error_y.array[0] == pytest.approx(plots.interval([0.7, 0.72])[2] - 0.71)
    assert [a.text for a in figure.layout.annotations] == [
        "chosen on validation: −0.090 on fresh seeds",
        "not chosen on test: +0.020 on fresh seeds",
    ]
    assert figure.layout.xaxis.ticktext == ("4", "9") and won.text[0] == "serial 8, prefix 2 in layer 1"


def test_figures_that_cannot_be_drawn_say_why():
    for none in ([], [made()]):
        with pytest.raises(PeftlabError, match="no trials to draw"):
            plots.front(none)
    with pytest.raises(PeftlabError, match="one task, backbone and space, not entail with nano-encoder, 9 numbers and"):
        plots.progress([made((1, 1)), made((1, 1), reference=(9, 0))])
    with pytest.raises(PeftlabError, match="no rows to draw"):
        plots.curse([])


def test_no_torch_and_no_optuna_behind_the_figures(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SEVERAL[0].json()))
    code = (
        "import sys, json, peftlab as pl; s = pl.Search.of(json.load(open(sys.argv[1]))); pl.plots.front(s); "
        "pl.plots.progress([s]); assert not {'torch', 'optuna', 'botorch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "s.json"], check=True)
