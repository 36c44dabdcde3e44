"""Lab 05's studies and figures: what they say is computed once more, in another way."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import t
from small import backbone, home, sentences, write  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, rivals, studies, unified_figure, unified_studies
from peftlab.claims import FAILS, HOLDS, UNDECIDED

# One prototype ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return json.loads(unified_figure.file().read_text(encoding="utf-8"))


def masks(record, i):
    """Booleans (layers r d), read bit by bit."""
    word = lambda w: [c == "1" for c in "".join(f"{int(h, 16):04b}" for h in w)][: record["width"]]
    return np.array([[word(w) for w in mask] for mask in record["masks"][i]])


def test_the_shipped_prototype_is_what_a_run_finds(record):
    again = unified_figure.make(until=10)
    assert again["steps"] == record["steps"][:2] and again["place"] == record["place"]
    assert np.abs(np.subtract(again["D"], record["D"][:2])).max() <= 1
    assert again["masks"][0] == record["masks"][0], "before the first step nothing is different"
    assert (masks(again, 1) != masks(record, 1)).mean() < 0.01


def test_the_shipped_record_is_small_and_complete(record):
    assert unified_figure.file().stat().st_size <= 40_000
    assert len(record["steps"]) == len(record["D"]) == len(record["masks"]) >= 6
    place, M = record["place"], masks(record, -1)
    assert M.shape[1:] == np.shape(record["D"][0]) == (place["r"], record["width"])
    assert (M.sum((1, 2)) == int(place["p"] * M[0].size)).all(), "every layer takes its share"
    assert (M != masks(record, 0)).any((1, 2)).all(), "every mask has learned"
    assert all((a != b).any() for a, b in itertools.combinations(M, 2))


def test_each_frame_shows_the_prototype_and_what_the_layers_take_of_it(record):
    figure = pl.plots.prototype()
    assert [f.name for f in figure.frames] == [str(s) for s in record["steps"]]
    for i, frame in enumerate(figure.frames):
        whole, *layers = (np.array(trace.z, float) for trace in frame.data)
        assert np.allclose(100 * whole, record["D"][i])
        for z, M in zip(layers, masks(record, i), strict=True):
            assert np.array_equal(np.isnan(z), ~M) and np.array_equal(z[M], whole[M])
    assert {trace.zmax for trace in figure.data} == {-trace.zmin for trace in figure.data}, "one scale, even around 0"


def test_the_title_tells_how_much_is_in_common(record):
    last, M = pl.plots.prototype().frames[-1].layout.title.text, masks(record, -1)
    J = np.mean([(a & b).sum() / (a | b).sum() for a, b in itertools.combinations(M, 2)])
    assert f"J of two layers is {J:.2f} on average, by chance 0.33" in last
    assert f"{M.all(0).mean():.0%} are in all layers, {(~M.any(0)).mean():.0%} in none" in last
    assert f"{(M != masks(record, 0)).mean():.0%} of the bits have flipped" in last
    assert "0% of its length, 0% of the bits" in pl.plots.prototype().layout.title.text


# Routes -------------------------------------------------------------------------------------------


def routed(*differences, method="adamix", ensemble=0.9):
    given = enumerate(differences)
    return [
        dict(method=method, seed=s, routes=[0.8, 0.85, 0.95], averaged=ensemble + d, ensemble=ensemble)
        for s, d in given
    ]


@pytest.mark.parametrize(
    "differences, verdict",
    [
        ((0.001, 0.0, -0.001), HOLDS),
        ((-0.05, -0.049, -0.051), FAILS),
        ((0.05, 0.049, 0.051), FAILS),
        ((0.02, -0.02, 0.01), UNDECIDED),
        ((0.001,), UNDECIDED),
    ],
)
def test_the_interval_decides_whether_mean_and_ensemble_are_equal(differences, verdict):
    (found,) = rivals.averaged_or_ensemble(routed(*differences))
    assert found["verdict"] == verdict and found["effect"] == pytest.approx(np.mean(differences))
    if len(differences) > 1:
        low, high = t.interval(0.95, 2, np.mean(differences), np.std(differences, ddof=1) / 3**0.5)
        assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_a_wider_margin_may_decide_otherwise():
    rows = routed(-0.05, -0.049, -0.051)
    assert rivals.averaged_or_ensemble(rows, within=0.1)[0]["verdict"] == HOLDS


def test_routes_are_drawn_for_each_seed():
    figure = pl.plots.routes(routed(0.001, 0, 0) + routed(0.1, 0.11, 0.1, method="adamix-lora"))
    assert len(figure.data) == 6 and len(figure.data[0].y) == 9 and len(figure.data[1].y) == 3
    assert list(figure.data[4].y) == pytest.approx([1.0, 1.01, 1.0]) and "3 passes" in figure.data[2].name
    said = figure.layout.title.text.split("<br>")
    assert HOLDS in said[0] and FAILS not in said[0] and FAILS in said[1] and "AdaMix of LoRA" in said[1]


# The studies, small -------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A tiny backbone and task that the studies take in place of their own."""
    task = write(tmp_path / "task.tsv", sentences(120))
    given = dict(backbone=backbone(tmp_path / "tiny"), batch=16, every=3)
    whole = unified_studies.spec
    monkeypatch.setattr(unified_studies, "spec", lambda name, **more: whole(name, **(more | given)))
    return dict(task=task, steps=3)


def test_routing_finds_routes_mean_and_ensemble(home, place):
    (row,) = pl.study("routing", [0], method="adamix-lora", n=3, **place)
    assert len(row["routes"]) == 3 and all(0 <= v <= 1 for v in [*row["routes"], row["averaged"], row["ensemble"]])
    assert pl.plots.routes([row]).layout.title.text.endswith(UNDECIDED), "one seed decides nothing"


def test_a_sparser_adapter_trains_less_and_a_whole_one_needs_no_score(home, place, monkeypatch):
    made = []
    train = unified_studies.trained
    monkeypatch.setattr(unified_studies, "trained", lambda s: made.append(s["recipe"][0]["settings"]) or train(s))
    rows = pl.study("sparsity", [0], pruner=("snip", "magnitude"), p=(1.0, 0.25), r=4, **place)
    numbers = {(r["pruner"], r["p"]): r["numbers"] for r in rows}
    assert numbers["snip", 1.0] == numbers["magnitude", 1.0] > numbers["snip", 0.25] == numbers["magnitude", 0.25]
    assert [(s["score"], s["p"]) for s in made] == [("snip", 1.0), ("snip", 0.25), ("magnitude", 0.25)]


def test_wide_and_sparse_has_as_many_entries(home, place, monkeypatch):
    made = []
    train = unified_studies.trained
    monkeypatch.setattr(unified_studies, "trained", lambda s: made.append(s["recipe"][0]["settings"]) or train(s))
    rows = pl.study("large_sparse", [0], pruner=("random", "snip"), r=(4, 8), full=4, **place)
    assert [(s["score"], s["r"], s["p"]) for s in made] == [("snip", 4, 1.0), ("random", 8, 0.5), ("snip", 8, 0.5)]
    model = pl.backbone(rows[0]["task"].removeprefix("file:").replace("task.tsv", "tiny"))
    places = len(pl.attach(model, "sparse-adapter").deltas)
    one, _, two, _ = (r["numbers"] for r in sorted(rows, key=lambda r: r["r"]))
    assert two - one == 4 * places, "only the 4 more biases of each place"


def test_the_default_cases_are_few_and_the_seeds_three():
    names = ("routing", "sparsity", "large_sparse", "mask_overlap")
    sizes = {n: len(studies.cases(studies.STUDIES[n].cases)) * len(studies.STUDIES[n].seeds) for n in names}
    assert sizes == dict(routing=10, sparsity=60, large_sparse=60, mask_overlap=6)


def test_the_overlap_is_that_of_the_masks(home, place, monkeypatch):
    left, train = [], unified_studies.trained
    monkeypatch.setattr(unified_studies, "trained", lambda s: left.append(train(s)) or left[0])
    (row,) = pl.study("mask_overlap", [1], method="propetl-lora", **place)
    J, by = np.array(row["overlap"], float), np.array(row["chance"], float)
    assert J.shape == by.shape == (len(row["places"]),) * 2 and (J == J.T).all() and (np.diag(J) == 1).all()
    off = ~np.eye(len(J), dtype=bool)
    assert np.mean(by[off]) == pytest.approx(1 / 3, abs=0.06)
    a, b = (np.concatenate([m.numpy().ravel() for m in d.masks()]) for d in left[0][2].deltas[:2])
    assert J[0, 1] == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-4)


# Their figures ------------------------------------------------------------------------------------


def sparse():
    scores = dict(snip=0.7, random=0.6)
    return [
        dict(pruner=n, p=p, r=8, task="entail", seed=s, score=v * p + 0.01 * s, numbers=int(1000 * p))
        for n, v in scores.items() for p in (1.0, 0.5, 0.1) for s in range(3)
    ]  # fmt: skip


def test_sparsity_has_a_line_for_each_score():
    figure = pl.plots.sparsity(sparse())
    assert [line.name for line in figure.data] == ["snip", "random"]
    assert list(figure.data[0].y) == pytest.approx([0.08, 0.36, 0.71]), "from the sparsest, means over the seeds"
    half = t.ppf(0.975, 2) * np.std([0.07, 0.08, 0.09], ddof=1) / 3**0.5
    assert figure.data[0].error_y.array[0] == pytest.approx(half)
    assert "snip 0.080 → 0.710" in figure.layout.title.text and "100 to 1,000 numbers" in figure.layout.title.text


def test_large_sparse_begins_at_the_whole_adapter():
    widths = itertools.product((8, 16), range(3))
    rows = [dict(pruner="snip", r=r, full=8, seed=s, score=r / 20 + s / 100, numbers=90 + r) for r, s in widths]
    figure = pl.plots.large_sparse(rows)
    assert list(figure.data[0].y) == pytest.approx([0.41, 0.81])
    assert figure.layout.xaxis.ticktext == ("8<br>p = 1", "16<br>p = 0.5")
    assert figure.layout.shapes[0].y0 == pytest.approx(0.41), "the whole adapter"


def test_the_overlap_is_coloured_by_what_is_more_than_chance():
    J = [[[1, 0.5, None], [0.5, 1, None], [None, None, 1]], [[1, 0.7, None], [0.7, 1, None], [None, None, 1]]]
    by = [[[1, 0.3, None], [0.3, 1, None], [None, None, 1]]] * 2
    places = [[0, "q"], [0, "v"], [1, "q"]]
    rows = [dict(method="propetl-lora", seed=s, places=places, overlap=J[s], chance=by[s]) for s in range(2)]
    figure = pl.plots.mask_overlap(rows)
    z = np.array(figure.data[0].z, float)
    assert z[0, 1] == z[1, 0] == pytest.approx(0.3) and np.isnan(np.diag(z)).all() and np.isnan(z[2]).all()
    assert figure.data[0].text[0][1] == "0.60" and figure.data[0].x == ("0 q", "0 v", "1 q")
    assert "J = 0.600, chance 0.300, more by +0.300" in figure.layout.title.text


@pytest.mark.parametrize("name", ["routes", "sparsity", "large_sparse", "mask_overlap", "storage"])
def test_rows_that_do_not_fit_are_refused(name):
    with pytest.raises(PeftlabError, match="the rows have no|there are no rows"):
        getattr(pl.plots, name)([dict(seed=1)])


# What is stored -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    return unified_studies.stored("nano-encoder", r=4)


def test_what_many_tasks_store_is_what_they_would_store(stored):
    model, rows = pl.backbone("nano-encoder"), {r["name"]: r for r in stored}
    for name, method in (("ProPETL LoRA, 50 %", "propetl-lora"), ("ProPETL adapter, 50 %", "propetl-adapter")):
        undo = pl.attach(model, [dict(method=method, settings=dict(r=4, p=0.5, tasks=20))])
        assert rows[name]["two"] + 18 * rows[name]["more"] == pl.counts(model)["stored_bits"]
        undo()
    one = rows["adapters, r = 4"]
    assert one["one"] == one["more"] == one["two"] // 2
    assert rows["AdaMix, averaged"] == one | dict(name="AdaMix, averaged"), "the mean of the copies is one adapter"
    layers, d, r = 2, 64, 4
    assert one["one"] == 32 * layers * (2 * r * d + r + d)
    assert rows["ProPETL adapter, 50 %"]["one"] == 32 * (2 * r * d + r + d) + layers * 2 * r * d, "one bit an entry"
    assert rows["ProPETL adapter, 50 %"]["more"] == 2 * r * d, "one mask of a task, for all layers"


def test_a_prototype_overtakes_separate_modules(stored):
    figure = pl.plots.storage(stored)
    assert [f.name for f in figure.frames] == ["1", "5", "20", "100"]
    bars = {f.name: dict(zip(f.data[0].y, f.data[0].x, strict=True)) for f in figure.frames}
    for r in stored:
        assert bars["1"][r["name"]] == r["one"] / 8 and bars["5"][r["name"]] == (r["two"] + 3 * r["more"]) / 8
    of, separate = (np.array([bars[n][name] for n in bars]) for name in ("ProPETL adapter, 50 %", "adapters, r = 4"))
    assert (np.diff(separate / of) > 0).all() and separate[-1] == pytest.approx(100 * separate[0])
    assert figure.layout.xaxis.type == "log" and figure.frames[-1].layout.title.text.startswith(
        "100 tasks: least for ProPETL"
    )


def test_drawing_needs_no_torch():
    seen = "import sys, peftlab.unified_plots as u; u.prototype(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
