"""Lab 04's studies and figures: what they say is computed once more, in another way."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import t
from small import home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, budgets, hybrid_findings, hybrid_studies, listening, published
from peftlab.hybrid_studies import PARTS, combined, gates_of, numbers

ADAPTERS = [p for p in PARTS if p.startswith("adapter ")]

# The gates of UniPELT -----------------------------------------------------------------------------


def opened(model, recipe="unipelt", seed=0):
    """A UniPELT whose gates listen, as if they had learned something."""
    attached, draw = pl.attach(model, recipe, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for d in attached.deltas:
            d.w.copy_(torch.randn(d.w.shape, generator=draw) / len(d.w) ** 0.5)
    return attached


@pytest.mark.parametrize("name, layers", [("nano-encoder", 2), ("nano-seq2seq", 2)])
def test_gates_are_means_over_validation_rows(name, layers):
    task = pl.task("reviews")
    model = pl.backbone(name, head="classification")
    attached = opened(model)
    model.train()
    found = gates_of(model, attached, task, 20)
    assert model.training, "the mode is as it was"
    assert [*dict.fromkeys(r["part"] for r in found)] == ["adapter", "prefix", "LoRA at q", "LoRA at v"]
    assert sorted({r["layer"] for r in found}) == [*range(layers)] and len(found) == 4 * layers
    model.eval()
    each = []
    with torch.no_grad():  # one by one, so that nothing is padded
        for batch in listening.some(task, 20, "validation").batches(model.tokenizer, "validation", 1):
            model(**batch)
            each.append([float(d.heard) for d in attached.deltas])
    assert len(each) == 20 == found[0]["rows"]
    assert [r["mean"] for r in found] == pytest.approx(np.mean(each, 0), abs=1e-5)
    assert [r["spread"] for r in found] == pytest.approx(np.std(each, 0), abs=1e-5)
    assert min(r["spread"] for r in found) > 1e-3, "texts differ"


def test_gates_of_what_has_none():
    model = pl.backbone("nano-encoder")
    with pytest.raises(PeftlabError, match="of unipelt"):
        gates_of(model, pl.attach(model, "adapter"), pl.task("reviews"))
    attached = pl.attach(model, "unipelt")
    attached.toggle(False)
    with pytest.raises(PeftlabError, match="toggled off"):
        gates_of(model, attached, pl.task("reviews"))


def test_the_study_of_gates_begins_where_unipelt_begins(home):
    (row,) = pl.study("openness", [3], task="reviews", backbone="nano-encoder", steps=3, rows=12)
    model = pl.backbone("nano-encoder", labels=2)
    fresh = gates_of(model, pl.attach(model, "unipelt", seed=3), pl.task("reviews", seed=3), 12)
    assert [r["mean"] for r in row["before"]] == pytest.approx([r["mean"] for r in fresh], abs=1e-4)
    moved = np.subtract([r["mean"] for r in row["after"]], [r["mean"] for r in row["before"]])
    assert (np.abs(moved) > 1e-4).all() and max(abs(r["mean"] - 0.5) for r in row["before"]) < 0.1
    assert pl.study("openness", [3], task="reviews", backbone="nano-encoder", steps=3, rows=12) == [row]


def looks(*means):
    places = itertools.product((0, 1), ("adapter", "prefix"))
    return [dict(layer=i, part=p, mean=m, spread=0.1 * m, rows=9) for (i, p), m in zip(places, means, strict=True)]


def test_bars_go_from_before_to_after_and_dots_are_seeds():
    rows = [
        dict(task=task, seed=s, before=looks(0.5, 0.4, 0.5, 0.5), after=looks(0.6 + s / 10, 0.2, 0.9, 0.3))
        for task in ("one", "two")
        for s in (0, 1)
    ]
    figure = pl.plots.openness(rows)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.name for bar in bars] == ["adapter", "prefix"] * 2 and [*bars[0].base] == [0.5, 0.5]
    assert bars[0].y == pytest.approx([0.15, 0.4]) and bars[1].base + bars[1].y == pytest.approx([0.2, 0.3])
    assert "over 2 seeds" in bars[0].hovertext[0] and "0.60 to 0.70" in bars[0].hovertext[0]
    texts, dots = figure.data[1:3]
    assert texts.error_y.array == pytest.approx([0.065, 0.09]) and dots.y == pytest.approx([0.6, 0.9, 0.7, 0.9])
    assert figure.layout.title.text.startswith("one: gates 0.20 to 0.90, at first 0.47; ")
    assert f"text to text 0.051, from seed to seed {2**-0.5 / 10 / 4:.3f}" in figure.layout.title.text
    alone = pl.plots.openness(rows[0]["after"])
    assert [*alone.data[0].base] == [0.5, 0.5] and "seed to seed" not in alone.layout.title.text


# One method or several ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def micro():
    return pl.backbone("micro-encoder")


def test_with_an_adapter_all_come_to_one_budget(micro):
    own = {p: numbers(micro, combined(p)) for p in PARTS}
    half = 2 * (2 * 128 + 1) / 2  # of what one more in the bottlenecks of a layer has
    assert all(abs(own[p] - budgets.BUDGET) <= half for p in ("adapter", *ADAPTERS))
    assert own["none"] == 0 and own["bitfit prompt"] == own["bitfit"] + own["prompt"]
    assert own["prompt"] == hybrid_studies.LENGTH * 128
    for parts in ADAPTERS:
        assert numbers(micro, combined(parts, "added")) == sum(own[p] for p in parts.split())


@pytest.mark.parametrize("parts", PARTS[1:])
def test_a_combination_has_its_parts_and_upper_layers_are_wider(parts):
    rows = combined(parts)
    assert {r["method"] for r in rows} == {*parts.split()}
    adapters = [r for r in rows if r["method"] == "adapter"]
    assert [i for r in adapters for i in r["layers"]] == [*range(4)] * ("adapter" in parts)
    assert [r["settings"]["r"] for r in adapters[1:]] == [r["settings"]["r"] + 1 for r in adapters[:-1]]


def test_what_cannot_be_combined_is_refused(micro):
    with pytest.raises(PeftlabError, match="unknown budget 'more'"):
        pl.study("combining", [0], parts="adapter", budget="more")
    with pytest.raises(PeftlabError, match="unknown combination 'adapter lora'"):
        combined("adapter lora")
    with pytest.raises(PeftlabError, match="2,000 numbers are no adapter in each of 4 layers; the least one has 3,080"):
        hybrid_studies.wide(micro, 2000)


TINY = dict(backbone="nano-encoder", steps=2, task="entail")


def test_what_has_no_adapter_beside_others_is_made_once(home, monkeypatch):
    made, real = [], hybrid_studies.trained
    monkeypatch.setattr(hybrid_studies, "trained", lambda wanted: made.append(wanted) or real(wanted))
    rows = pl.study("combining", [1], parts=("adapter", "adapter bitfit"), lr=7e-3, **TINY)
    by = {(r["parts"], r["budget"]): r for r in rows}
    assert len(rows) == 4 and len(made) == 3 and {w["seed"] for w in made} == {1}
    assert by["adapter", "added"] == by["adapter", "equal"] | dict(budget="added")
    assert by["adapter bitfit", "added"]["numbers"] > by["adapter bitfit", "equal"]["numbers"]
    assert all(0 < r["score"] < 1 > r["validation"] for r in rows)


def test_the_rate_is_the_best_on_validation_with_seeds_of_their_own(home, monkeypatch):
    made = []
    score = lambda wanted, split: wanted["lr"] == 7e-3 if wanted["seed"] == 5 else 0.4 * (wanted["lr"] == 1e-2)
    monkeypatch.setattr(hybrid_studies, "trained", lambda wanted: made.append(wanted) or (None, wanted, None))
    monkeypatch.setattr(hybrid_studies, "evaluate", lambda model, task, split: float(score(task, split)))
    assert hybrid_studies.best_rate("adapter", steps=3) == 7e-3
    assert [(w["seed"], w["lr"]) for w in made] == [(s, lr) for lr in hybrid_studies.RATES for s in (5, 6, 7)]
    assert {5, 6, 7}.isdisjoint(pl.studies.STUDIES["combining"].seeds)
    monkeypatch.setattr(hybrid_studies, "counts", lambda model: dict(delta=0))
    monkeypatch.setattr(hybrid_studies, "combined", lambda *given: "adapter")
    (row,) = pl.study("combining", [0], parts="adapter", task="reviews", budget="equal", steps=3)
    assert row["rate"] == made[-1]["lr"] == 7e-3 and len(made) == 10 and made[-1]["task"] == "reviews"


def half(values):
    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5


def grid(scores, budget="equal", validation=None, task="one"):
    """Made-up rows: {parts: scores of the seeds}."""
    sure = validation or {parts: float(np.mean(v)) for parts, v in scores.items()}
    keys = dict(task=task, budget=budget, numbers=7)
    return [
        dict(parts=parts, seed=s, score=v, validation=sure[parts], **keys)
        for parts, values in scores.items()
        for s, v in enumerate(values)
    ]


FLAT = dict.fromkeys(PARTS, (0.5, 0.5, 0.5)) | dict(adapter=(0.7, 0.72, 0.68))


@pytest.mark.parametrize(
    "gain, verdict",
    [
        ((0.05, 0.06, 0.055), "holds"),
        ((-0.05, -0.06, -0.055), "does not hold"),
        ((0.05, -0.06, 0.02), "undecided at this scale"),
    ],
)
def test_the_interval_of_paired_seeds_decides(gain, verdict):
    both = tuple(np.add(FLAT["adapter"], gain).tolist())
    (one,) = hybrid_findings.helps(grid(FLAT | {"adapter bitfit": both}))
    assert (one["combination"], one["single"], one["verdict"]) == ("adapter bitfit", "adapter", verdict)
    assert one["effect"] == pytest.approx(np.mean(gain)) and one["high"] - one["low"] == pytest.approx(2 * half(gain))


def test_the_best_are_chosen_on_validation():
    scores = FLAT | {"adapter prompt": (0.9, 0.9, 0.9), "bitfit prompt": (0.6, 0.61, 0.6)}
    sure = dict.fromkeys(PARTS, 0.1) | {"bitfit prompt": 0.4, "prompt": 0.3, "none": 0.9}
    (one,) = hybrid_findings.helps(grid(scores, validation=sure))
    assert (one["combination"], one["single"]) == ("bitfit prompt", "prompt")
    (single,) = hybrid_findings.helps([r for r in grid(scores) if r["seed"] == 0])
    assert np.isnan(single["low"]) and single["verdict"] == "undecided at this scale"


def test_the_grid_has_means_intervals_and_the_paper_beside_them():
    added = FLAT | {parts: (0.8, 0.82, 0.84) for parts in ADAPTERS}
    figure = pl.plots.combining(grid(FLAT) + grid(added, "added"))
    ours, theirs = figure.data
    assert [*ours.x] == ["one<br>equal budget", "one<br>added"] and len(ours.z) == len(theirs.z) == 8
    at = PARTS.index
    assert [*ours.text[at("adapter")]] == [f"70.0<br>±{100 * half(FLAT['adapter']):.1f}", "="]
    assert ours.text[at("bitfit prompt")][1] == ours.text[at("none")][1] == "=" and ours.z[at("none")][1] is None
    assert ours.z[at("adapter bitfit")] == pytest.approx([-20, 12]) and ours.z[at("adapter")][0] == 0
    assert [*theirs.text[at("adapter bitfit")]] == ["87.1<br>sd 0.2", "87.3"]
    assert theirs.z[at("prompt")] == pytest.approx([77.7 - 87.4, 77.4 - 87.4])
    said = figure.layout.title.text
    assert "one, equal budget: " in said and "one, added: adapter + BitFit − adapter = +12.0 [" in said
    assert "<b>does not hold</b>" in said and "<b>holds</b>" in said
    assert figure.layout.yaxis.ticktext[at("adapter bitfit")].startswith("adapter + BitFit<br>")
    assert "7 numbers" in figure.layout.yaxis.ticktext[0]


def test_the_papers_combinations_are_whole():
    paper = published.combined()
    assert [*paper["parts"].unique()] == [*PARTS] and len(paper) == 16
    best = paper.loc[paper.groupby("template")["mean"].idxmax(), "parts"]
    assert {*best} == {"adapter"}
    percent = paper.groupby("parts")["percent"].first()
    for parts in ADAPTERS:  # as printed, to two places
        assert percent[parts] == pytest.approx(sum(percent[p] for p in parts.split()), abs=0.011)


def test_figures_need_no_torch_and_some_rows():
    rows, gates = grid(FLAT), looks(0.1, 0.2, 0.3, 0.4)
    code = (
        f"import sys, peftlab.plots as p; p.combining({rows}); p.openness({gates}); p.blocks; "
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for draw in (pl.plots.combining, pl.plots.openness):
        with pytest.raises(PeftlabError, match="no rows"):
            draw([])
