"""Figures of fusions, mixtures and gates: what they hear is computed in another way."""

import numpy as np
import pytest
from shaking import loaded, numbers, one_by_one, shaken

import peftlab as pl


@pytest.mark.parametrize("name, task, places", [("nano-encoder", "reviews", 4), ("nano-seq2seq", "headline", 10)])
def test_a_fusion_is_heard_at_real_tokens(name, task, places):
    m, task = loaded(name, task)
    attached = shaken(pl.attach(m, [*pl.recipe("adapter-fusion", adapters=3), *pl.recipe("prompt", n=2)]))
    rows = pl.heard(m, attached, task, rows=11)
    fused = [d for d in attached.deltas if hasattr(d, "V")]
    mine, tokens = [0] * len(fused), [0] * len(fused)
    for _ in one_by_one(m, task, 11):
        for i, d in enumerate(fused):
            mine[i], tokens[i] = mine[i] + d.heard.sum((0, 1)), tokens[i] + d.heard.shape[1]
    assert len(fused) == places and [r["tokens"] for r in rows[::3]] == tokens and {r["rows"] for r in rows} == {11}
    for i, total in enumerate(mine):
        assert [r["weight"] for r in rows[3 * i : 3 * i + 3]] == pytest.approx((total / tokens[i]).tolist(), abs=1e-5)
    assert [r["source"] for r in rows[:3]] == ["fresh 1", "fresh 2", "fresh 3"]
    assert len({r["place"] for r in rows}) == places, "no two places have one name"
    assert np.std([r["weight"] for r in rows]) > 0.01


def test_the_adapters_of_a_fusion_have_the_names_of_their_tasks():
    m, task = loaded()
    attached = pl.attach(m, pl.recipe("adapter-fusion", sources="topic entail/garden"))
    rows = pl.heard(m, attached, task, rows=2)
    assert [(r["place"], r["source"]) for r in rows[:4]] == [
        (place, source) for place in ("o, layer 0", "down, layer 0") for source in ("topic", "entail/garden")
    ]


def test_the_heat_map_of_a_fusion():
    weights = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
    rows = [
        dict(place=p, source=s, weight=w, rows=64, tokens=978)
        for p, line in zip(("o, layer 0", "down, layer 0"), weights, strict=True)
        for s, w in zip(("topic", "answer", "<i>"), line, strict=True)
    ]
    figure = pl.plots.heard(rows)
    (tile,) = figure.data
    assert [list(line) for line in tile.z] == weights and list(tile.x)[:2] == ["topic", "answer"]
    assert tile.x[2] == "&lt;i&gt;"
    assert tile.zmax - 1 / 3 == pytest.approx(1 / 3 - tile.zmin) and tile.zmax == pytest.approx(0.8)
    assert tile.hovertext[1][2] == "down, layer 0: &lt;i&gt; 80.0%" and tile.text[1][2] == "0.80"
    assert "978 tokens of 64 test rows" in figure.layout.title.text and "0.33" in figure.layout.title.text
    assert list(figure.layout.yaxis.ticktext) == ["o, layer 0", "down, layer 0"]


def test_a_mixture_is_that_of_its_row():
    m, task = loaded()
    attached = shaken(pl.attach(m, pl.recipe("attempt", prompts=2, t=0.02)))
    rows = pl.mixture(m, attached, task, rows=9)
    for row, batch in zip(rows, one_by_one(m, task, 9), strict=True):
        assert [*row["weights"].values()] == pytest.approx(attached.deltas[0].heard[0].tolist(), abs=1e-5)
        assert row["label"] == task.labels[int(batch["labels"])]
        assert row["text"] == m.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).strip()
    assert list(rows[0]["weights"]) == ["fresh 1", "fresh 2", "its own"] and {r["label"] for r in rows} == {
        *task.labels
    }
    assert np.std([[*r["weights"].values()] for r in rows], axis=0).max() > 0.005, "rows differ"


def test_the_figure_of_a_mixture():
    draw = np.random.default_rng(0)
    names, rows = ("topic", "answer", "its own"), []
    for i in range(7):
        a, b = 0.5 * draw.random(2)
        weights = dict(zip(names, (a, b, 1 - a - b), strict=True))
        rows.append(dict(text=f"row {i} <b>", label=("positive", "negative")[i % 2], weights=weights))
    figure = pl.plots.mixture(rows)
    tile, *bars = figure.data
    values = np.array([[r["weights"][n] for n in names] for r in rows])
    negative, positive = values[1::2], values[::2]
    order = lambda part: part[np.argsort(-part[:, 0])]
    assert np.array(tile.z) == pytest.approx(np.concatenate([order(negative), order(positive)]))
    first = rows[1 + 2 * int(np.argmax(negative[:, 0]))]
    assert tile.hovertext[0][1] == f"negative: {first['text'][:5]} &lt;b&gt;<br>answer {first['weights']['answer']:.3f}"
    assert [b.name for b in bars] == ["negative (3 rows)", "positive (4 rows)"]
    for bar, part, t in zip(bars, (negative, positive), (4.302653, 3.182446), strict=True):
        assert list(bar.y) == pytest.approx(part.mean(0))
        assert list(bar.error_y.array) == pytest.approx(t * part.std(0, ddof=1) / len(part) ** 0.5, rel=1e-5)
    assert list(figure.layout.yaxis.ticktext) == ["negative", "positive"] and figure.layout.yaxis.tickvals == (1, 4.5)
    assert {s.y0 for s in figure.layout.shapes} == {1 / 3, 2.5}
    assert numbers(figure.layout.title.text)[-1] == pytest.approx(np.ptp(values, axis=0).max(), abs=0.006)
    alone = pl.plots.mixture([r | dict(label=None) for r in rows[:1]])
    assert alone.data[1].name == "all rows (1 rows)" and not alone.data[1].error_y.visible


@pytest.mark.parametrize("name", ["nano-encoder", "nano-seq2seq"])
def test_the_gates(name):
    m = pl.backbone(name)
    attached = pl.attach(m, "lst")
    assert all(r["below"] == 0.5 for r in pl.gates(attached))
    shaken(attached, std=0.1)
    rows = pl.gates(attached)
    mine = 1 / (1 + np.exp(-attached.deltas[0].a.detach().numpy() / 0.1))
    assert [r["below"] for r in rows] == pytest.approx(mine.tolist(), rel=1e-5)
    stacks = ["", ""] if name == "nano-encoder" else ["encoder "] * 2 + ["decoder "] * 2
    assert [r["place"] for r in rows] == [f"{s}layer {i}" for i, s in enumerate(stacks)]
    figure = pl.plots.gates(rows)
    below, rest = figure.data
    assert list(below.x) == [r["below"] for r in rows] and list(np.add(below.x, rest.x)) == pytest.approx(
        [1] * len(rows)
    )
    assert list(below.y) == [r["place"] for r in rows] and figure.layout.shapes[0].x0 == 0.5
    assert numbers(figure.layout.title.text)[0] == pytest.approx(np.mean(mine), abs=0.0051)
