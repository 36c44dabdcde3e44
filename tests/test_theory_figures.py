"""The figures of the theory hold what was computed, and a sentence says what cannot be computed."""

import subprocess
import sys

import numpy as np
import pytest
from theories import SMALL, jumps, net, one_mask, quadratic, soft  # noqa: F401

from peftlab import PeftlabError, best_mask, choice_plots, projection, theory, theory_plots


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: theory.stability(p=(0.0,)), "density p = 0.0 is no share"),
        (lambda: theory.stability(p=(1.2,)), "take p between 0 and 1"),
        (lambda: theory.stability(loss=("hinge",)), "unknown loss 'hinge'"),
        (lambda: theory.stability(kind=("gentle",)), "unknown kind of mask 'gentle'"),
        (lambda: theory.stability(p=(0.01,), kind=("hard",)), "picks none of 4 weights"),
        (lambda: theory.stability(p=(1.0,), n=(8,), d=(8,)), "8 rows, less one, do not hold 8 free weights"),
        (lambda: theory.stability(p=(1.0,), n=(9,), d=(8,), loss=("logistic",)), "take more rows, or a smaller p"),
        (lambda: theory.u_shape(n=(48,)), "take more than 48 rows"),
        (lambda: best_mask.quadratic(k=13), "take k from 1 to 12"),
        (lambda: best_mask.net(k=0), "a mask of 0 out of 12 entries"),
        (lambda: projection.projections(optimizer=("sgd",)), "unknown optimizer 'sgd'"),
        (lambda: projection.projections(rounds=1), "take 2 rounds or more"),
        (lambda: theory_plots.generalisation(theory.stability(**SMALL | dict(seeds=(0,))), d=5), "no row has"),
    ],
)
def test_bad_input_gets_one_sentence(make, said):
    with pytest.raises(PeftlabError, match=said):
        make()


# Figures ------------------------------------------------------------------------------------------


def test_no_torch_behind_the_figures():
    code = "import sys, peftlab.choice_plots, peftlab.theory_plots; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def frames_of(figure, cases):
    """A frame for each step of the slider, the first of them what is shown at first."""
    assert [f.name for f in figure.frames] == [*map(str, cases)]
    assert [s.args[0][0] for s in figure.layout.sliders[0].steps] == [*map(str, cases)]
    for frame in figure.frames:
        assert len(frame.data) == len(frame.traces) and frame.layout.title.text
        assert [t.name for t in frame.data] == [figure.data[i].name for i in frame.traces]
    assert all(figure.data[i].y == t.y for i, t in zip(figure.frames[0].traces, figure.frames[0].data, strict=True))
    return figure.frames


def means(rows, what, **where):
    by_p = {}
    for r in rows:
        if all(r[k] == v for k, v in where.items()):
            by_p.setdefault(r["p"], []).append(r[what])
    return [np.mean(v) for v in by_p.values()]


def test_figure_of_stability(soft):
    figure = theory_plots.stability(soft)
    for frame, n in zip(frames_of(figure, (15, 40)), (15, 40), strict=True):
        lines = [t for t in frame.data if t.fill is None]
        assert [*lines[0].y] == pytest.approx(means(soft, "phs", n=n, loss="squares"), rel=1e-3)
        assert [*lines[3].y] == pytest.approx(means(soft, "bound", n=n, loss="logistic"), rel=1e-3)
        assert "holds in 40 of 40 cases" in frame.layout.title.text


def test_the_menu_shows_one_d():
    figure = theory_plots.stability(theory.stability(**SMALL | dict(d=(3, 4), seeds=range(2))))
    shown = [b.args[0]["visible"] for b in figure.layout.updatemenus[0].buttons]
    assert [b.label for b in figure.layout.updatemenus[0].buttons] == ["d = 3", "d = 4"]
    assert shown[1] == [t.visible for t in figure.data] and shown[0] == [not v for v in shown[1]]
    assert all(t.visible is None for f in figure.frames for t in f.data), "else the slider would undo the menu"


def test_figure_of_one_mask(one_mask):
    frames = frames_of(theory_plots.hard_mask(one_mask), theory.ONE_MASK["scale"])
    assert frames[0].layout.title.text.endswith("0 of 12 (soft), 12 of 12 (fixed), 12 of 12 (hard)")
    curvature = [t for t in frames[0].data if t.fill is None][2::3]
    for kind, line in zip(theory.KINDS, curvature, strict=True):
        assert [*line.y] == pytest.approx(means(one_mask, "curvature", scale=0.05, kind=kind), rel=1e-3)


def test_figures_of_theorem_2(soft):
    frames = frames_of(theory_plots.generalisation(soft), (15, 40))
    ceiling = [t for t in frames[0].data if t.fill is None][2]
    parts = [means(soft, what, n=15, loss="squares") for what in ("train", "gap")]
    assert [*ceiling.y] == pytest.approx(np.sum(parts, 0), rel=1e-3)
    rows = theory.u_shape(noise=(0.2, 0.4), n=(60,), seeds=range(3))
    frames_of(theory_plots.u_shape(rows, over="noise"), (0.2, 0.4))
    frames_of(theory_plots.u_shape(theory.u_shape(seeds=(0,))), (50, 60, 80, 160))  # one seed has no interval


def test_figures_of_theorem_3(quadratic, net):
    frames = frames_of(choice_plots.rules(quadratic), (0.0, 1.0, 2.0))
    found, dense = frames[-1].data[:2]
    assert found.x == ("g²/h", "g²", "random") and found.y[0] == 1
    assert found.error_y.array[0] == pytest.approx(0, abs=1e-12) and found.error_y.arrayminus[0] > 0.02
    assert 0 < dense.y[0] < 0.5
    frames = frames_of(choice_plots.rules(net), (0.001, 1.0))
    assert frames[0].data[0].x == ("model", "g²/h", "g²", "|θ|", "random")


def test_figures_of_the_projection(jumps):
    rows = projection.expansion()
    frames = frames_of(choice_plots.expansion(rows), [f"{r['distance']:.3g}" for r in rows])
    assert frames[-1].data[2].y[0] == rows[-1]["ratio"] > 1e6
    figure = choice_plots.projections(jumps)
    frames = frames_of(figure, (0.05, 1.0))
    assert max(frames[0].data[-1].y) > 0.2 and set(frames[1].data[-1].y) == {0.0}
    assert "100% kept" in frames[1].layout.title.text
