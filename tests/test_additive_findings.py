"""Lab 01's studies and the figures of them: what they say is computed once more, in another way."""

import json

import numpy as np
import pytest
from scipy.stats import t
from small import backbone, home, sentences, write  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, additive_studies, ledger, sizes
from peftlab import additive_findings as af
from peftlab.paths import data
from peftlab.specs import identify

# A model that a run has trained -------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    task = write(tmp_path / "task.tsv", sentences(120))
    return dict(backbone=backbone(tmp_path / "tiny"), task=task, steps=8, batch=16, every=3, lr=1e-2)


@pytest.mark.parametrize("more", [dict(recipe="lora"), dict(recipe="prefix", head="shared")])
def test_a_trained_model_is_the_one_that_the_run_scored(home, place, more):
    model, task, undo = pl.trained(pl.spec(**more, **place))
    assert ledger.find(identify(pl.spec(**more, **place))) is None, "it scores nothing"
    assert not model.training and pl.evaluate(model, task, "test") == pl.run(pl.spec(**more, **place)).score
    attached = pl.counts(model)["delta"]
    undo()
    assert attached > 0 == pl.counts(model)["delta"]


def test_a_trained_model_stands_on_its_sources(home):
    wanted = pl.spec("spot", task="reviews", backbone="nano-encoder", steps=2, before=1, n=2, sources="topic sense")
    _, _, undo = pl.trained(wanted)
    assert len(undo.deltas[0].near) == 2 and len([*(home / "deltas").iterdir()]) == 2
    with pytest.raises(PeftlabError, match="task"):
        pl.trained(dict(recipe="lora", task="revews"))


# The studies --------------------------------------------------------------------------------------


def test_a_method_that_stands_alone_gets_no_sources(monkeypatch):
    asked = []
    monkeypatch.setattr(additive_studies, "trained", asked.append)
    for method in ("adapter", "spot"):
        additive_studies.learned(method, 3, "sense", "topic", 64)
    assert [s["recipe"][0]["settings"].get("sources") for s in asked] == [None, "topic"]
    assert all((s["task"], s["seed"], s["size"]) == ("sense", 3, 64) for s in asked)


def test_a_shipped_case_is_found_again_when_it_is_made_anew(home):
    (known,), (again,) = (pl.study("side", [0], fresh=fresh) for fresh in (False, True))
    assert [r["below"] for r in again["heard"]] == pytest.approx([r["below"] for r in known["heard"]], abs=0.03)


def test_what_the_sources_are_is_part_of_a_case(monkeypatch):
    from peftlab import studies

    case = dict(task="reviews/hotel", sources="reviews/restaurant grammar topic", size=64)
    before = studies.identify("fusion", 0, case)
    version = studies.embedded.version
    monkeypatch.setattr(studies.embedded, "version", lambda task: version(task) + (task == "grammar"))
    assert studies.identify("fusion", 0, case) != before


# Sizes --------------------------------------------------------------------------------------------


def test_by_size_pairs_the_runs_of_the_bench():
    rows = pl.by_size("prompt")
    raw = [json.loads(line) for line in (data() / "results" / "bench.jsonl").read_text().splitlines()]
    place = lambda r: (r["backbone"], r["task"], r["seed"])
    prompts, full = ({place(r): r["score"] for r in raw if r["method"] == m} for m in ("prompt", "full"))
    assert {place(r): (r["score"], r["other"]) for r in rows} == {k: (prompts[k], full[k]) for k in prompts}
    for name in {r["backbone"] for r in rows}:
        model = pl.backbone(name)
        (numbers,) = {r["numbers"] for r in rows if r["backbone"] == name}  # with the head that fills in words
        assert numbers == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)


def test_by_size_names_what_the_bench_has():
    with pytest.raises(PeftlabError, match="no 'krona' beside 'full' on one backbone; its methods are .*prompt"):
        pl.by_size("krona")
    assert {r["backbone"] for r in pl.by_size("lora", other="bitfit")} <= {"micro-encoder", "nano-encoder"}
    assert sizes.bench().exists()


# Figures ------------------------------------------------------------------------------------------


def half(values):
    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5


def test_the_rate_is_chosen_on_validation_and_told_on_test():
    cells = {1e-3: ([0.5, 0.6], [0.9, 0.8]), 1e-2: ([0.7, 0.6], [0.4, 0.6])}
    rows = [
        dict(method=m, where="o", lr=lr, seed=s, validation=v, score=score)
        for m in ("adapter", "parallel-adapter")
        for lr, both in cells.items()
        for s, (v, score) in enumerate(zip(*both, strict=True))
    ]
    figure = af.placement(rows)
    lines, rings = figure.data[::2], figure.data[1::2]
    assert [line.name for line in lines] == ["behind the attention", "beside the attention"]
    assert lines[0].y == pytest.approx([0.85, 0.5]) and lines[0].error_y.array == pytest.approx(
        [half([0.9, 0.8]), half([0.4, 0.6])]
    )
    assert all(ring.y == (0.5,) and ring.x[0] == line.x[1] for line, ring in zip(lines, rings, strict=True))
    assert figure.layout.title.text.count("0.500 ± ") == 2


def test_a_line_for_each_start_of_a_prompt():
    cases = [(n, i, s) for i in ("random", "here") for n in (4, 1) for s in (0, 1)]
    rows = [dict(n=n, init=i, seed=s, score=n / 100 + s / 10) for n, i, s in cases]
    figure = af.prompts(rows)
    assert [line.name for line in figure.data] == ["starts as random vectors", "here"]
    assert figure.data[0].x == (1, 4) and figure.data[0].y == pytest.approx([0.06, 0.09])
    assert figure.data[1].error_y.array == pytest.approx([half([0, 0.1])] * 2)


def test_methods_that_build_on_others_stand_apart():
    score = dict(adapter=0.5, mera=0.7, prompt=0.6, spot=0.4)
    rows = [
        dict(method=m, seed=s, score=v + s / 10, size=64, task="sense", sources="topic")
        for m, v in score.items()
        for s in (0, 1)
    ]
    figure = af.lent(rows)
    alone, dots, built, _ = figure.data
    assert [*alone.y] == ["sequential adapter", "prompt-tuning"] and alone.x == pytest.approx([0.55, 0.65])
    assert dict(zip(built.y, built.x, strict=True)) == pytest.approx({"MerA": 0.75, "SPoT": 0.45})
    assert sorted(dots.x) == pytest.approx([0.5, 0.6, 0.6, 0.7]) and built.name == "builds on topic"
    assert figure.layout.yaxis.categoryarray == ("SPoT", "sequential adapter", "prompt-tuning", "MerA")
    assert figure.layout.xaxis.title.text == "accuracy on the test rows of sense, after 64 rows to learn from"
    strange = [r | dict(sources="grammar", score=r["score"] - 0.3) for r in rows if r["method"] == "mera"]
    more = af.lent(rows + strange)
    assert more.data[4].name == "builds on grammar" and more.data[4].x == pytest.approx([0.45])
    assert more.layout.yaxis.categoryarray == figure.layout.yaxis.categoryarray, "the better of the two counts"


def test_sizes_come_in_their_order_and_single_ones_are_left_out():
    rows = [
        dict(backbone=b, numbers=n, task=task, seed=s, score=0.5 + s / 10, other=0.8, chance=0.3)
        for task, backbones in dict(one=dict(big=1000, small=10), two=dict(small=10)).items()
        for b, n in backbones.items()
        for s in (0, 1)
    ]
    figure = af.sizes(rows)
    assert len(figure.data) == 2 and figure.data[1].x == (10, 1000) and figure.data[1].text == ("small", "big")
    assert figure.data[0].y == (0.8, 0.8) and figure.data[1].y == pytest.approx([0.55, 0.55])
    assert figure.layout.shapes[0].y0 == 0.3


def test_looks_of_several_seeds_are_averaged():
    one = dict(place="o, layer 0", layer=0, site="o", rows=4, tokens=9)
    study = [
        dict(seed=s, heard=[one | dict(source=n, weight=w) for n, w in (("a", a), ("b", 1 - a))])
        for s, a in enumerate((0.2, 0.6))
    ]
    heat = pl.plots.heard(study)
    assert heat.data[0].z[0] == pytest.approx([0.4, 0.6]) and "20.0% to 60.0%" in heat.data[0].hovertext[0][0]
    assert "2 seeds" in heat.layout.title.text and "seeds" not in pl.plots.heard(study[0]["heard"]).layout.title.text
    gates = [dict(seed=s, heard=[dict(place="layer 0", layer=0, below=v)]) for s, v in enumerate((0.2, 0.6))]
    drawn = pl.plots.gates(gates)
    assert drawn.data[0].x == pytest.approx([0.4]) and drawn.data[2].error_x.array == pytest.approx([half([0.2, 0.6])])
    assert drawn.data[2].x == drawn.data[0].x and len(pl.plots.gates(gates[0]["heard"]).data) == 2


def test_mixtures_of_several_seeds_have_intervals_over_the_seeds():
    row = lambda a, label: dict(text="x", label=label, weights=dict(p=a, own=1 - a))
    look = lambda a: [row(a, "good"), row(a + 0.1, "good"), row(a, "bad")]
    study = [dict(seed=s, heard=look(a)) for s, a in enumerate((0.2, 0.6))]
    figure = pl.plots.mixture(study)
    bad, good = figure.data[1:]
    assert good.y == pytest.approx([0.45, 0.55]) and good.error_y.array[0] == pytest.approx(half([0.25, 0.65]))
    assert bad.error_y.array[0] == pytest.approx(half([0.2, 0.6])) and len(figure.data[0].z) == 6
    assert "differs by up to 0.1 within one of 2 seeds" in figure.layout.title.text
    alone = pl.plots.mixture(study[0]["heard"])
    assert alone.data[2].error_y.array[0] == pytest.approx(half([0.2, 0.3])) and "seeds" not in alone.layout.title.text


def test_memory_says_nothing_of_looking_where_nobody_looks():
    row = dict(title="a", weights=1.0, gradients=1.0, optimizer=1.0, saved=1.0)
    names = lambda looking: [bar.name for bar in pl.plots.memory([row | dict(looking=looking)]).data]
    assert "while it looks" in names(2.0) and "while it looks" not in names(0)


@pytest.mark.parametrize("draw", [af.placement, af.prompts, af.lent, af.sizes])
def test_no_rows_are_told(draw):
    with pytest.raises(PeftlabError):
        draw([])
