"""Figures of additive deltas: what they measure is computed in another way, what they draw is what they were given."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from shaking import loaded, noisy, numbers, shaken

import peftlab as pl
from peftlab import additive_figure, listening
from peftlab import additive_plots as ap
from peftlab.runs import batches, laid_out


@pytest.fixture(scope="module")
def record():
    return json.loads(additive_figure.file().read_text(encoding="utf-8"))


# What is added, and what draws attention ----------------------------------------------------------


def test_the_shipped_record_repeats(record):
    again = additive_figure.make(until=25)
    assert again["steps"] == record["steps"][:3] == [0, 10, 25] and again["place"] == record["place"]
    assert again["sentences"] == record["sentences"] and again["even"] == record["even"]
    for i in (0, 1, 2):
        for mine, shipped in zip(again["added"][i], record["added"][i], strict=True):
            assert np.array(mine) == pytest.approx(np.array(shipped), abs=0.005)
        assert np.array(again["pull"][i]) == pytest.approx(np.array(record["pull"][i]), abs=0.005)
    assert additive_figure.file().stat().st_size <= 12_000


def test_the_record_begins_at_the_backbone_and_then_moves(record):
    assert record["steps"] == [*additive_figure.STEPS]
    first, *_, last = (np.concatenate(now) for now in record["added"])
    assert not first.any() and last.mean() > 0.05
    assert np.abs(np.array(record["pull"][-1]) - record["pull"][0]).max() > 0.05
    test = pl.task("reviews").data["test"]
    for label, s in enumerate(record["sentences"]):
        spoken = "".join(s["tokens"][1:-1]).replace(" ", "")
        assert spoken == test["text"][test["label"][:].index(label)].lower().replace(" ", "")


def test_what_a_layer_adds_is_what_it_is_without_the_adapters():
    m = tiny.model("roberta")
    plain, attached, seen = copy.deepcopy(m), shaken(pl.attach(m, "adapter")), {}
    batch = tiny.batch(m, pad=False, labels=False)
    found = additive_figure.added(noisy(m), attached, batch)
    m.eval()
    keep = lambda block, args, kw, out: seen.update({block.block_index: (args, kw, out)})
    blocks = lambda m: [b for b in m.modules() if hasattr(b, "block_index")]
    handles = [b.register_forward_hook(keep, with_kwargs=True) for b in blocks(m)]
    with torch.no_grad():
        m(**batch)
    for b in blocks(plain):
        args, kw, out = seen[b.block_index]
        with torch.no_grad():
            h = b(*args, **kw)
        share = (out - h).square().sum(-1).sqrt() / h.square().sum(-1).sqrt()
        assert found[..., b.block_index].numpy() == pytest.approx(share.numpy(), rel=1e-4) and share.min() > 0.01
    assert all(d.on for d in attached.deltas) and len(handles) == found.shape[2] == 2
    assert all(len(b._forward_hooks) == 1 for b in blocks(m)), "its own hooks are gone"


def test_the_pull_is_that_of_the_attention_weights():
    m, task = loaded()
    (d,) = shaken(pl.attach(m, pl.recipe("prompt", n=3)), std=0.2).deltas
    noisy(m)
    share, even = additive_figure.pull(m, d, task, 20)
    assert all(x.training for x in m.modules()), "the mode is as it was"
    m.eval().set_attn_implementation("eager")
    mine, lengths = [], []
    with torch.no_grad():
        for batch in listening.some(task, 20).batches(m.tokenizer, "test", 1):
            maps = torch.stack(m(**batch, output_attentions=True).attentions)[:, 0]  # (layers h s s)
            text = [0, *range(4, maps.shape[-1])]  # the prompt follows <s>
            lengths.append(len(text))
            mine.append(maps[:, :, text, 1:4].sum(-1).mean(-1))
    assert share.numpy() == pytest.approx(torch.stack(mine).mean(0).numpy(), abs=1e-5)
    assert even == pytest.approx(np.mean([3 / (3 + t) for t in lengths])) and len(set(lengths)) > 1
    assert share.std() > 0.01, "heads differ"


def test_looking_does_not_change_the_training():
    wanted = pl.spec("adapter", task="reviews", backbone="nano-encoder", steps=25)
    state = lambda model, task, attached: [p.detach().clone() for p in attached.deltas[0].parameters()]
    looks = lambda *given: (additive_figure.pull(given[0], Still(), given[1], 4), state(*given))[1]
    start, ten, end = additive_figure.followed(wanted, looks, 25)
    with laid_out(wanted) as (model, task, undo, accelerator):
        same = state(model, task, undo)
        list(pl.fit(model, batches(wanted, task, model), undo.deltas, wanted["lr"], 25, accelerator=accelerator))
        assert all(map(torch.equal, end, state(model, task, undo)))
    assert all(map(torch.equal, start, same)) and not torch.equal(start[0], ten[0])


class Still:
    """A prompt of no tokens."""

    n = 0

    def insert(self, t, value):
        return t


def test_the_moving_figure_holds_the_record(record):
    figure = pl.plots.added()
    assert [f.name for f in figure.frames] == [*map(str, record["steps"])]
    assert [s.args[0][0] for s in figure.layout.sliders[0].steps] == [f.name for f in figure.frames]
    assert figure.layout.updatemenus[0].buttons[0].label == "▶ play"
    *tiles, bars, dots = figure.data
    assert figure.layout.title.text == figure.frames[0].layout.title.text
    assert [list(t.z[0]) for t in tiles] == [list(t.z[0]) for t in figure.frames[0].data[:2]]
    assert {a.text for a in figure.layout.annotations} >= {"a positive sentence", "attention to the prompt"}
    for i, frame in enumerate(figure.frames):
        *tiles, bars, dots = frame.data
        for tile, one in zip(tiles, record["added"][i], strict=True):
            assert np.array(tile.z) == pytest.approx(100 * np.array(one))
            assert tile.zmin == 0 and tile.zmax == max(100 * np.max(a) for now in record["added"] for a in now)
        pull = 100 * np.array(record["pull"][i])
        assert list(bars.y) == pytest.approx(pull.mean(1)) and list(dots.y) == pytest.approx(pull.ravel())
        assert list(dots.x) == [f"{k}" for k in range(4) for _ in range(4)] and dots.text[5].startswith(
            "head 1 of layer 1"
        )
        step, mean, share, n, even = numbers(frame.layout.title.text)
        every = np.concatenate([np.ravel(a) for a in record["added"][i]])
        assert (step, n) == (record["steps"][i], record["place"]["n"])
        assert [mean, share, even] == pytest.approx([100 * every.mean(), pull.mean(), 100 * record["even"]], abs=0.051)
    line = figure.layout.shapes[0]
    assert line.y0 == line.y1 == 100 * record["even"]
    assert list(figure.layout.yaxis.ticktext)[0] == "&lt;s&gt;" and "ghastly, layer 2: " in tiles[0].hovertext[7][2]
    assert figure.layout.yaxis3.range[1] > max(np.max(now) for now in record["pull"]) * 100


# What a prompt is near to -------------------------------------------------------------------------


def test_the_words_are_the_nearest_ones():
    m, _ = loaded()
    found = pl.nearest_words(m, shaken(pl.attach(m, pl.recipe("prompt", n=4)), std=0.1), k=3)
    found[0][0] = ("<mask>", 0.75)
    figure = pl.plots.words(found)
    (tile,) = figure.data
    assert [[c for _, c in line] for line in found] == [list(line) for line in tile.z]
    assert tile.text[0][0] == "&lt;mask&gt;  0.75" and tile.text[3][2] == f"{found[3][2][0]}  {found[3][2][1]:.2f}"
    assert f"vector 4: {found[3][2][0]} is nearest no. 3" in tile.hovertext[3][2]
    first = [line[0][1] for line in found]
    assert numbers(figure.layout.title.text) == pytest.approx([np.mean(first), min(first), max(first)], abs=0.0051)
    assert list(figure.layout.yaxis.ticktext) == [1, 2, 3, 4] and figure.layout.yaxis.range == (3.5, -0.5)
    assert figure.layout.xaxis.ticktext == ("nearest", "no. 2", "no. 3")


# All ----------------------------------------------------------------------------------------------


def test_every_axis_is_named(record):
    row = dict(text="a", label="b", weights={"c": 0.4, "d": 0.6})
    one = dict(place="o, layer 0", source="c", weight=0.4, rows=1, tokens=2)
    gate = dict(place="layer 0", below=0.4)
    for figure in (ap.added(), ap.words([[("a", 0.5)]]), ap.heard([one]), ap.mixture([row]), ap.gates([gate])):
        said = figure.layout.to_plotly_json()
        axes = {k: v for k, v in said.items() if re.fullmatch(r"[xy]axis\d*", k)}
        named = {k for k, v in axes.items() if v.get("title", {}).get("text")}
        if len(figure.frames):
            assert {*axes} - named == {"yaxis", "yaxis2"}, "the words of a sentence name themselves"
        else:
            assert named == {*axes}
        assert figure.layout.title.text and figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
        assert all(t.hovertext is not None or t.hovertemplate or t.text is not None for t in figure.data)


def test_drawing_needs_no_torch():
    code = (
        "import sys, peftlab as pl; pl.plots.added(); pl.plots.gates([dict(place='layer 0', below=0.4)]); "
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_heard_or_drawn_is_told():
    m, task = loaded()
    attached = pl.attach(m, "attempt")
    with pytest.raises(pl.PeftlabError, match="none of these deltas is of adapter-fusion"):
        pl.heard(m, attached, task)
    with pytest.raises(pl.PeftlabError, match="attach lst"):
        pl.gates(attached)
    with pytest.raises(pl.PeftlabError, match="rows must be a whole number from 1 on, not 0"):
        pl.mixture(m, attached, task, rows=0)
    attached.toggle(False)
    with pytest.raises(pl.PeftlabError, match="or it is toggled off"):
        pl.mixture(m, attached, task)
    with pytest.raises(pl.PeftlabError, match="no rows to draw"):
        pl.plots.heard([])
    with pytest.raises(pl.PeftlabError, match="they have place, weight"):
        pl.plots.gates([dict(place="layer 0", weight=0.5)])
    with pytest.raises(pl.PeftlabError, match="no words to draw"):
        pl.plots.words([])


def test_few_rows_are_of_all_lengths():
    task = pl.task("reviews")
    some, every = listening.some(task, 50), task.data["test"]["text"][:]
    few = some.data["test"]["text"][:]
    assert len(set(few)) == 50 and len(listening.some(task, 10**6).data["test"]) == len(every)
    lengths = sorted(map(len, every))
    assert sorted(map(len, few)) == lengths[:: len(every) // 50]
