"""Figures of masks: what they hold is recomputed from what they were given; the shipped record repeats."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch

import peftlab as pl
from peftlab import mask_figure, masks, sparse_studies, sparsity
from peftlab import mask_plots as mp
from peftlab import study_plots as sp


@pytest.fixture(scope="module")
def record():
    return json.loads(mask_figure.file().read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return tiny.model("roberta")


@pytest.fixture(scope="module")
def some(model):
    """Masks of known density at known places."""
    wide = pl.changes(model, pl.recipe("random-mask", p=0.25, where="q k v o up down"))
    large = pl.changes(model, pl.recipe("magnitude-mask", p=0.25, where="q k v o up down"))
    q0 = pl.changes(model, pl.recipe("random-mask", p=0.5, where="q", layers=[0]))
    return {"random": wide, "large": large, "q of layer 0": q0}


def percents(text):
    return [float(v) for v in re.findall(r"([\d.]+) ?%", text)]


# Which entries ------------------------------------------------------------------------------------


def test_the_shipped_record_repeats(record):
    again = json.loads(json.dumps(mask_figure.make()))
    assert {k: v for k, v in again.items() if k != "levels"} == {k: v for k, v in record.items() if k != "levels"}
    for score in ("random", "magnitude"):
        assert again["levels"][score] == record["levels"][score]
    same = [a == b for a, b in zip(*("".join(r["levels"]["gradient"]) for r in (again, record)), strict=True)]
    assert np.mean(same) > 0.99, "sums of another machine may differ in their last bits"
    assert mask_figure.file().stat().st_size <= 60_000


def test_the_record_is_what_the_selection_takes_of_the_weights(record):
    place = record["place"]
    (m,) = [m for m in pl.sites(pl.backbone(place["backbone"]), place["site"]) if m.layer == place["layer"]]
    levels = np.array([list(line) for line in record["levels"]["magnitude"]])
    assert levels.shape == m.weight.shape and record["heads"] == m.heads
    for i in (0, 4, 11):
        mine = (levels != mp.NEVER) & np.isin(levels, [*"0123456789ab"[: i + 1]])
        size = m.weight.abs().detach().numpy()
        assert mine.sum() == masks.share_of(record["densities"][i], m.weight.numel())
        assert size[mine].min() >= size[~mine].max()


def test_the_moving_masks_have_the_density_and_the_overlap_of_their_caption(record):
    figure = mp.density()
    tiles = [np.array(t.z) for t in figure.data]
    assert [a.text for a in figure.layout.annotations] == ["random", "largest |W|", "largest |Σ g|"]
    assert len(figure.frames) == len(record["densities"]) == len(figure.layout.sliders[0].steps)
    assert [s.args[0][0] for s in figure.layout.sliders[0].steps] == [f.name for f in figure.frames]
    assert figure.layout.updatemenus[0].buttons[0].label == "▶ play"
    assert figure.layout.title.text == figure.frames[0].layout.title.text
    assert all(t.zmin == figure.frames[0].data[0].zmin for t in figure.data)
    for p, frame in zip(record["densities"], figure.frames, strict=True):
        (border,) = {(t.zmin + t.zmax) / 2 for t in frame.data}
        a, b, c = (tile < border for tile in tiles)  # the lower of the two colours
        assert {m.sum() for m in (a, b, c)} == {int(p * 128 * 128)}
        assert not any(((t > u.zmin) & (t < u.zmax)).any() for t, u in zip(tiles, frame.data, strict=True))
        head, pairs = frame.layout.title.text.split("<br>")
        assert percents(head) == pytest.approx([100 * p]) and f": {int(p * 128 * 128):,} of the 16,384" in head
        shares = [(x & y).sum() / (x | y).sum() for x, y in ((a, b), (a, c), (b, c))]
        assert percents(pairs) == pytest.approx([100 * s for s in (*shares, p / (2 - p))], abs=0.051)


def test_a_matrix_whose_rows_belong_to_no_head_names_none():
    record = mask_figure.make(backbone="nano-encoder", site="down", batches=1)
    assert np.array(mp.density(record).data[2].z).shape == (64, 256)
    assert mp.density(record).layout.yaxis.tickvals == ()


# Overlaps -----------------------------------------------------------------------------------------


def test_chance_is_what_random_masks_share():
    draw, n = np.random.default_rng(0), 4_000_000
    for p, q in ((0.1, 0.1), (0.5, 0.02), (1.0, 0.3)):
        a, b = (draw.random(n) < share for share in (p, q))
        assert mp.by_chance(p, q) == pytest.approx((a & b).sum() / (a | b).sum(), rel=0.02)
    assert mp.by_chance(0.3, 0.3) == pytest.approx(0.3 / 1.7) and mp.by_chance(0, 0) is None


def test_the_overlaps_are_those_of_the_masks(some):
    some = some | {"nothing": {}}
    (tile,) = mp.overlap(some).data
    assert list(tile.x) == list(tile.y) == list(some)
    for i, a in enumerate(some.values()):
        for j, b in enumerate(some.values()):
            share = sparsity.overlap(a, b)
            assert tile.z[i][j] == share
            assert (
                tile.text[i][j] == "–"
                if share is None
                else float(tile.text[i][j]) == pytest.approx(100 * share, abs=0.5)
            )
    size = sum(m.numel() for m in some["random"].values())
    p, q = (sum(int(m.sum()) for m in some[t].values()) / size for t in ("random", "q of layer 0"))
    assert percents(tile.hovertext[0][2])[:2] == pytest.approx([100 * p, 100 * q], rel=5e-3)
    assert percents(tile.hovertext[0][2])[2:] == pytest.approx(
        [100 * tile.z[0][2], 100 * p * q / (p + q - p * q)], rel=5e-3
    )
    assert tile.z[0][1] == pytest.approx(mp.by_chance(p, p), rel=0.1), "two independent masks"
    assert tile.zmax == max(tile.z[i][j] for i in range(3) for j in range(i))


@pytest.mark.parametrize(
    "share, told", [(0, "0"), (0.04, "0.0"), (3.04, "3.0"), (9.96, "10"), (57.6, "58"), (100, "100")]
)
def test_a_number_fits_its_cell(share, told):
    assert mp._brief(share) == told


# Places -------------------------------------------------------------------------------------------


def test_where_the_entries_sit(some, model):
    figure = mp.located(some, model)
    *bars, tile = figure.data
    names = [*some, "even spread"]
    assert list(figure.layout.yaxis.ticktext) == names
    assert [b.name for b in bars] == "q k v o up down".split()
    for i, mask in enumerate(some.values()):
        total = sum(int(m.sum()) for m in mask.values())
        for bar in bars:
            there = [n for n in mask if masks.places(model)[n][1] == bar.name]
            assert bar.x[i] == pytest.approx(sum(int(mask[n].sum()) for n in there) / total)
    assert np.sum([b.x for b in bars], 0) == pytest.approx(1)
    only = names.index("q of layer 0")
    assert bars[0].x[only] == 1 and list(tile.text[only]) == ["2.00", "0.00"], "one of two layers of the same size"
    assert list(tile.x) == ["0", "1"] and set(tile.text[-1]) == {"1.00"}
    rows = [r for r in sparsity.located(some["large"], model) if r["site"] in "q k v o up down".split()]
    density = lambda rows: sum(r["chosen"] for r in rows) / sum(r["numbers"] for r in rows)
    mine = [density([r for r in rows if r["layer"] == k]) / density(rows) for k in (0, 1)]
    assert [float(v) for v in tile.text[1]] == pytest.approx(mine, abs=0.006)
    assert list(tile.z[1]) == pytest.approx(np.log2(mine), abs=1e-6)


def test_sites_that_no_mask_reaches_are_no_part_of_the_even_spread(some, model):
    both = {"all": {n: torch.ones_like(model.get_parameter(n)).bool() for n in masks.places(model)}} | some
    *bars, tile = mp.located(both, model).data
    assert {b.name for b in bars} == {*mp.SITES} and list(tile.x) == ["embed", "0", "1"]
    assert set(tile.text[0]) == {"1.00"} and tile.text[1][0] == "0.00"


# Costs --------------------------------------------------------------------------------------------


def test_what_is_held_while_looking_stands_apart():
    part = lambda t, *n: dict(zip(("title", *mp.PARTS, "looking"), (t, *n), strict=True))
    rows = [part("full fine-tuning", 4.0, 4.0, 8.0, 20.0, None), part("diff pruning", 4.0, 0.1, 0.2, 22.0, 70.0)]
    figure = mp.memory(rows)
    *parts, looking = figure.data
    assert {b.name: list(b.x) for b in parts} == {k: [r[k] for r in rows] for k in mp.PARTS}
    assert list(looking.x) == [None, 70.0] and looking.base == 0 and figure.layout.barmode == "stack"
    assert all(b.base is None and b.offset + b.width <= looking.offset for b in parts), "not one above the other"
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 36.0
    assert not mp.memory(rows[1:]).layout.shapes and mp.memory(rows[1:]).layout.xaxis.title.text == "MB"


# Studies ------------------------------------------------------------------------------------------


def interval(values):
    """Student's t for three values."""
    return np.mean(values), 4.302653 * np.std(values, ddof=1) / 3**0.5


def test_the_steps_of_sam():
    draw = np.random.default_rng(0)
    rows = [
        dict(seed=s, choice=c, p=0.005, reference=float(draw.random()), seeds=float(draw.random()))
        for c in ("reference", "1 batch")
        for s in range(3)
    ]
    figure = sp.sam_steps(rows)
    assert list(figure.layout.yaxis.ticktext) == ["reference", "1 batch"]
    means, dots = figure.data[::2], figure.data[1::2]
    for what, mean, dot in zip(("reference", "seeds"), means, dots, strict=True):
        assert list(dot.x) == [r[what] for r in rows] and list(np.round(dot.y)) == [0, 0, 0, 1, 1, 1]
        for i in (0, 1):
            wanted = interval([r[what] for r in rows[3 * i : 3 * i + 3]])
            assert (mean.x[i], mean.error_x.array[i]) == pytest.approx(wanted)
    assert figure.layout.shapes[0].x0 == pytest.approx(0.005 / 1.995)


def test_the_loss_of_rows_that_were_left_out():
    draw = np.random.default_rng(0)
    rows = [
        dict(seed=s, mask=m, p=p, left_out=float(draw.random()), reordered=float(draw.random()))
        for m in ("random-mask", "sam")
        for p in (0.1, 0.001)
        for s in range(3)
    ]
    figure = sp.left_out(rows)
    assert [t.name for t in figure.data] == [
        f"{m}, {w}" for m in ("random-mask", "sam") for w in ("rows left out", "reordered")
    ]
    for t in figure.data:
        mask, what = t.name.split(", ")
        what = what.replace("rows left out", "left_out")
        assert (t.line.dash == "dash") == (what == "reordered") and list(t.text) == ["0.1 %", "10 %"]
        for i, p in enumerate((0.001, 0.1)):
            wanted = interval([r[what] for r in rows if (r["mask"], r["p"]) == (mask, p)])
            assert (t.y[i], t.error_y.array[i]) == pytest.approx(wanted)
            assert t.x[i] == pytest.approx(p, rel=0.15)
    assert figure.layout.yaxis.range[1] >= max(max(np.add(t.y, t.error_y.array)) for t in figure.data)
    single = sp.left_out(rows[::3])
    assert all(h == 0 for t in single.data for h in t.error_y.array), "one seed has no interval"


def jumping(p, seed, low=0.1):
    step = [1, 10, 20, 21, 30, 40, 41, 50, 60]
    return dict(seed=seed, p=p, every=20, step=step, loss=[1.0, 0.5, low, 0.9 + seed / 10, 0.5, low, 0.7, 0.4, low])


def test_projections_are_marked_and_told():
    rows = [jumping(0.5, 0, 0.2), jumping(0.5, 1, 0.2), jumping(0.05, 0), jumping(0.05, 1)]
    figure = sp.jumps(rows)
    assert [f.name for f in figure.frames] == ["5 %", "50 %"]
    assert [s.x0 for s in figure.layout.shapes] == [20.5, 40.5], "nothing follows the last projection"
    for frame, low in zip(figure.frames, (0.1, 0.2), strict=True):
        each, mean, after = frame.data
        assert list(mean.y) == pytest.approx([1, 0.5, low, 0.95, 0.5, low, 0.7, 0.4, low])
        assert list(after.x) == [21, 41] and list(after.y) == pytest.approx([0.95, 0.7])
        assert each.y.count(None) == 2 and len(each.y) == 2 * 10
        assert f"2 seeds: loss {low:.3f} before a projection, 0.825 after it" in frame.layout.title.text
    assert figure.layout.title.text == figure.frames[0].layout.title.text
    assert list(figure.data[1].y) == list(figure.frames[0].data[1].y)
    low, high = figure.layout.yaxis.range
    assert 10**low < 0.1 and 10**high > 1


def test_the_studies_make_what_the_figures_draw():
    jump = dict(p=0.5, every=2, steps=4) | dict(seed=0)
    figure = sp.jumps([jump | sparse_studies.jumps(task="entail", **jump)])
    assert list(figure.data[2].x) == [3]
    case = dict(seed=0, mask="random-mask", p=0.01)
    assert len(sp.left_out([case | sparse_studies.stability(**case, size=16, left=2, steps=1)]).data) == 2
    case = dict(seed=0, choice="1 batch", p=0.005)
    assert len(sp.sam_steps([case | sparse_studies.sam(**case)]).data) == 4


# All ----------------------------------------------------------------------------------------------


def test_drawing_needs_no_torch():
    code = (
        "import sys, peftlab.mask_plots as p; p.density(); "
        "p.memory([dict.fromkeys(('weights', 'gradients', 'optimizer', 'saved', 'looking'), 1.0) | dict(title='a')]); "
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_drawn_is_told(model):
    with pytest.raises(pl.PeftlabError, match="no rows to draw"):
        sp.sam_steps([])
    with pytest.raises(pl.PeftlabError, match="no p and no reference; they have seed, choice, seeds"):
        sp.sam_steps([dict(seed=0, choice="reference", seeds=1.0)])
    with pytest.raises(pl.PeftlabError, match="several `every`"):
        sp.jumps([jumping(0.5, 0), jumping(0.5, 0) | dict(every=10)])
    with pytest.raises(pl.PeftlabError, match="'nothing' has no entry"):
        mp.located({"nothing": {}}, model)
    with pytest.raises(pl.PeftlabError, match="no rows to draw"):
        mp.overlap({})
