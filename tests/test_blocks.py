"""Lab 04's first figure: each block stands where its delta is, as wide as its numbers."""

import json

import pytest
import tiny

import peftlab as pl
from peftlab import PeftlabError, hybrid_plots

# Blocks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks():
    return pl.plots.blocks()


def rectangles(trace):
    """(x, y, width, height) of the blocks of a trace, without the arms of those beside a sublayer."""
    corners = list(zip(trace.x, trace.y, strict=True))
    found = []
    for i in range(0, len(corners) - 1, 6):
        (x0, y0), (x1, _), (_, y1) = corners[i : i + 3]
        found.append((x0, y0, x1 - x0, y1 - y0))
    return [box for box in found if box[3] > 0.1]


def parts_of(figure, name):
    """{part: its rectangles} of one frame."""
    frame = next(f for f in figure.frames if f.name == name)
    return {trace.name.split(":")[0]: rectangles(trace) for trace in frame.data if trace.name}


def test_there_is_a_frame_for_each_recipe_and_it_counts_right(blocks):
    assert [f.name for f in blocks.frames] == [*hybrid_plots.HYBRIDS]
    assert [s.args[0][0] for s in blocks.layout.sliders[0].steps] == [*hybrid_plots.HYBRIDS]
    assert blocks.layout.updatemenus[0].buttons[0].label == "▶ play"
    model = pl.backbone("micro-encoder")
    for frame in blocks.frames:
        undo = pl.attach(model, frame.name)
        delta = pl.counts(model)["delta"]
        undo()
        parts = [trace for trace in frame.data if trace.name]
        assert [*frame.traces] == [*range(len(frame.data))] and len(blocks.data) == len(frame.data) + 1
        assert sum(int(trace.name.rsplit(": ")[1].replace(",", "")) for trace in parts) == delta
        assert f"{pl.get(frame.name).title}</b>: {delta:,} trained numbers" in frame.layout.title.text
    assert json.loads(blocks.to_json())["frames"] and blocks.data[0].name == blocks.frames[0].data[0].name


def test_a_block_is_as_wide_as_its_numbers(blocks):
    widest = 128 * 8 + 8 + 128 * 8 + 128 + 129  # UniPELT's adapter with its gate
    wide = {name: sorted(round(w * widest) for *_, w, _ in boxes) for name, boxes in parts_of(blocks, "s4").items()}
    assert {*wide["LoRA"]} == {2 * 8 * 128} and {*wide["sequential adapter"]} == {2 * 8 * 128 + 8 + 128}
    assert wide["added biases"] == [128] * 10 + [512] * 2


def test_blocks_stand_where_the_deltas_are(blocks):
    s4 = parts_of(blocks, "s4")
    layers = {name: {int(y // hybrid_plots.PITCH) for _, y, *_ in boxes} for name, boxes in s4.items()}
    assert layers["sequential adapter"] == {0, 1, 2} and layers["LoRA"] == {0, 3}
    assert layers["prefix-tuning"] == {1, 2, 3} and layers["added biases"] == {2, 3}
    words, grey = blocks.data[-1], [(s.x0, s.x1, s.y0, s.y1) for s in blocks.layout.shapes]
    places = dict(zip(words.text, zip(words.x, words.y, strict=True), strict=True))  # of the highest layer
    lora = max(s4["LoRA"], key=lambda box: box[1])
    inside = [box for box in grey if box[0] <= lora[0] <= box[1] and box[2] <= lora[1] <= box[3]]
    assert min(b[1] - b[0] for b in inside) < 2 and abs(places["q"][1] - lora[1]) < 0.5, "it is in the box of q"
    first, second = sorted({x for x, *_ in s4["sequential adapter"]})
    order = places["o"][0], first, places["norm1"][0], places["down"][0], second, places["norm2"][0]
    assert [*order] == sorted(order)


@pytest.mark.parametrize(
    "name, encoder, decoder",
    [
        ("lora", "q/v", "q/v"),
        ("pfeiffer", "behind down", "block"),
        ("residual-adapter", "block", "block"),
        ("parallel-adapter", "beside down", "beside down"),
        ("compacter", "behind down/behind o", "behind down/behind o"),
        ("prefix", "attn", "attn"),
        ("prompt", "prompt", "prompt"),
        ("bitfit", "down/embed/k/norm1/norm2/o/q/up/v", "down/k/norm1/norm2/o/q/up/v"),
        ("lst", "model", "model"),
        ("head", "", ""),
    ],
)
def test_every_method_has_a_place(name, encoder, decoder):
    for family, wanted in (("roberta", encoder), ("gpt2", decoder)):
        model = tiny.model(family)
        look = hybrid_plots._look(model, name)
        assert {r["cell"] for r in look["rows"]} == {*wanted.split("/")} - {""}
        undo = pl.attach(model, name)
        assert sum(r["numbers"] for r in look["rows"]) == pl.counts(model)["delta"]
        undo()


def test_recipes_of_ones_own_and_other_backbones():
    rows = [dict(method="prompt"), dict(method="lora", layers="1")]
    figure = pl.plots.blocks([rows, "lora", "lora"], "nano-decoder")
    assert [f.name for f in figure.frames] == ["1. prompt + lora", "2. lora", "3. lora"]
    (prompt,) = rectangles(figure.data[0])
    assert prompt[1] < 0 and {int(y // hybrid_plots.PITCH) for _, y, *_ in rectangles(figure.data[1])} == {1}
    assert figure.frames[1].data[1].x == (None,), "there is one part only"
    one = pl.plots.blocks("head", "nano-seq2seq")
    assert not one.frames and not one.layout.sliders and "0 trained numbers" in one.layout.title.text
    with pytest.raises(PeftlabError, match="no recipes to draw"):
        pl.plots.blocks([])


def test_methods_of_one_figure_have_colours_of_their_own(blocks):
    seen = {trace.name.split(":")[0]: trace.fillcolor for f in blocks.frames for trace in f.data if trace.name}
    assert len({*seen.values()}) == len(seen) > 8
