"""Figures are checked by what they hold: every method once, counts that add up, intervals of the textbook."""

import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
import tiny

import peftlab as pl
from peftlab import plots
from peftlab.methods import METHODS, catalogue
from peftlab.results import Result


def result(score, seed=0, method="lora", rows=None):
    spec = dict(recipe=[dict(method=method, where="q v", layers=None, settings={})], seed=seed)
    return Result(
        spec=spec,
        hash="",
        task="t",
        metric="accuracy",
        score=score,
        rows=rows or [],
        baselines=dict(majority=0.5, head=None),
    )


def test_no_torch_behind_figures():
    code = (
        "import sys, peftlab.plots as p; from peftlab.results import Result; "
        "p.delta(); p.scores([]); assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("key", plots.TAXONOMIES)
def test_every_method_is_one_leaf_of_every_taxonomy(key):
    tree = plots.sectors(catalogue(), key)
    leaves = [i.rsplit("/", 1)[1] for i in tree["ids"] if i not in tree["parents"]]
    assert sorted(leaves) == sorted(METHODS)
    assert len(set(tree["ids"])) == len(tree["ids"])
    size = dict(zip(tree["ids"], tree["values"], strict=True))
    for sector in set(tree["parents"]) - {""}:  # what branchvalues="total" needs, else the figure is blank
        assert size[sector] == sum(size[i] for i, p in zip(tree["ids"], tree["parents"], strict=True) if p == sector)


def test_the_menu_of_the_taxonomy_replaces_all_of_a_tree():
    figure = plots.taxonomy()
    menu = figure.layout.updatemenus[0].buttons
    assert len(menu) == 3
    for button, key in zip(menu, plots.TAXONOMIES, strict=True):
        new, tree = button.args[0], plots.sectors(catalogue(), key)
        assert new["ids"] == [tree["ids"]] and new["marker.colors"] == [tree["colors"]]
        assert {len(v[0]) for v in new.values()} == {len(tree["ids"])}


def test_the_moving_delta_has_the_rank_it_names():
    figure = plots.delta(d=12, ranks=(1, 3, 12))
    W, want = np.array(figure.data[0].z), np.array(figure.data[3].z)
    for frame in figure.frames:
        fit, used = (np.array(t.z) for t in frame.data)
        gaps = np.linalg.svd(fit, compute_uv=False)
        assert gaps[int(frame.name) :].max(initial=0) < 0.1 and gaps[min(int(frame.name), 3) - 1] > 0.5, (
            "entries are rounded to 0.01"
        )
        assert np.abs(used - W - fit).max() < 0.03
        assert f"{24 * int(frame.name):,} numbers" in frame.layout.title.text
    assert np.abs(fit - want).max() < 0.02 and "100% of the wanted change" in frame.layout.title.text
    assert [s.args[0][0] for s in figure.layout.sliders[0].steps] == [f.name for f in figure.frames]


def test_parts_add_up_to_the_model():
    model = tiny.model("roberta")
    rows = plots.parts(model)
    assert sum(r["frozen"] + r["trained"] for r in rows) == sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in pl.head_parameters(model).values())
    assert sum(r["trained"] for r in rows) == head == sum(r["trained"] for r in rows if r["site"] == "head")


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_parts_find_the_delta_at_its_sites(family):
    model = tiny.model(family, "seq2seq" if family == "t5" else "classification")
    undo = pl.attach(model, pl.recipe("lora", r=2, where="q v"))
    rows = plots.parts(model)
    trained = {r["site"]: 0 for r in rows}
    for r in rows:
        trained[r["site"]] += r["trained"]
    assert (
        trained["q"] + trained["v"]
        == pl.counts(model)["delta"]
        == sum(p.numel() for d in undo.deltas for p in d.parameters())
    )
    assert sum(trained.values()) == sum(p.numel() for p in pl.trainable(model))
    bars = plots.modules(model).data
    assert [b.type for b in bars] == ["bar", "bar"]


def test_interval_of_a_mean():
    mean, low, high = plots.interval([1, 2, 3])
    assert (
        mean == 2
        and high - mean == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
        and mean - low == pytest.approx(high - mean)
    )
    assert plots.interval([0.5]) == (0.5, None, None)
    assert plots.told([0.9]) == "0.900 (1 seed)" and plots.told([1, 2, 3]) == "2.000 ± 2.484 (3 seeds)"


def test_curves_and_scores_hold_every_seed():
    rows = [dict(step=s, loss=1.0 / s) for s in (1, 2, 4)]
    runs = [result(0.8, 0, rows=rows), result(0.9, 1, rows=[dict(r, loss=r["loss"] + 1) for r in rows])]
    mean = plots.curves(runs).data[-1]
    assert list(mean.x) == [1, 2, 4] and list(mean.y) == pytest.approx([1.5, 1.0, 0.75]) and "(2)" in mean.name
    means, dots = plots.scores(runs).data
    assert list(means.y) == pytest.approx([0.85]) and list(dots.y) == [0.8, 0.9]
    assert means.error_y.array[0] == pytest.approx(plots.interval([0.8, 0.9])[2] - 0.85)
    assert [line.y0 for line in plots.scores(runs).layout.shapes] == [0.5], "majority; an unknown baseline has no line"
    assert not plots.scores([result(0.5, method="majority")]).layout.shapes, (
        "what is shown as a point is not a line too"
    )


def test_only_figures_that_old_and_new_plotly_draw_alike():
    figures = [
        plots.taxonomy(),
        plots.delta(),
        plots.modules(plots.parts(tiny.model())),
        plots.scores([result(0.5)]),
        plots.curves([result(0.5)]),
    ]
    assert {t.type for f in figures for t in f.data} <= {"scatter", "heatmap", "bar", "sunburst"}
    assert not any(type(f) is not go.Figure for f in figures)
    assert max(len(f.to_json()) for f in figures) < 200_000, "a figure travels to the page whole"
