"""The widgets without a browser: traits are set as a page would set them."""

import pytest
import tiny
from boards import headless, home, places  # noqa: F401

import peftlab as pl
from peftlab.errors import PeftlabError
from peftlab.methods import METHODS, Choice, Knob
from peftlab.recipes import name_of
from peftlab.widgets import MaskGrid, panel
from peftlab.widgets.controls import Controls, scale
from peftlab.widgets.curve import STATIC


@pytest.fixture
def board(places, home):
    return panel("lora", r=4, steps=20, **places)


def test_every_label_fits_beside_its_slider():
    """112 px hold 14 characters; a longer one is cut off with dots."""
    assert not {n: k.label for m in METHODS.values() for n, k in m.knobs.items() if len(k.label) > 14}


@pytest.mark.parametrize("file", sorted(STATIC.glob("*.js")), ids=lambda p: p.name)
def test_scripts_are_small_and_load_nothing(file):
    text = file.read_text(encoding="utf-8")
    assert len(text) < 20_000 and "http" not in text and "import(" not in text and "import " not in text


def test_grid_rows_group_layers_with_the_same_sites():
    grid = MaskGrid()
    grid.shape(["layer 0", "layer 1", "layer 2"], ["q", "k", "v"], on=("q", "v"))
    assert grid.rows() == [("q v", None)]
    grid.mask = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert grid.rows() == [("q v", [0, 2]), ("k", [1])]
    grid.paint("k q", [1])
    assert grid.mask == [[0, 0, 0], [1, 1, 0], [0, 0, 0]] and grid.rows() == [("q k", [1])]
    grid.paint("v")
    assert grid.rows() == [("v", None)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_sliders_offer_only_values_that_the_method_takes(method):
    for name, knob in method.knobs.items():
        if not isinstance(knob, Choice | Knob):
            assert [knob.checked(name, v) for v in (knob.default, f" {knob.example}")] == [knob.default, knob.example]
            continue
        values = list(knob.options) if isinstance(knob, Choice) else scale(knob)
        ordered = len(set(values)) == len(values) if isinstance(knob, Choice) else values == sorted(set(values))
        assert knob.default in values and ordered and 2 <= len(values) <= 40
        assert [knob.checked(name, v) for v in values] == values


@pytest.mark.parametrize("name", METHODS)
def test_counts_before_anything_runs(board, name):
    board.set(method=name)
    model = pl.backbone(board.fixed["backbone"])
    undo = pl.attach(model, name)
    n = pl.counts(model)
    undo()
    assert f'pl-trained">{n["delta"]:,}<' in board.text["counts"].value
    assert f"{n['head']:,} in the head" in board.text["counts"].value
    assert board.results == [] and board.spec["recipe"] == pl.recipe(name)


def test_moving_a_slider_moves_count_and_spec(board):
    seen = []
    for r in (1, 2, 8):
        board.controls.knobs["r"].value = r
        seen.append(board.text["counts"].value)
        assert board.spec["recipe"][0]["settings"]["r"] == r
    assert len(set(seen)) == 3
    board.controls.grid.mask = [[1, 0, 0, 0, 0, 0], [0] * 6]
    assert board.spec["recipe"] == [dict(method="lora", where="q", layers=[0], settings=dict(r=8, alpha=16))]
    assert 'pl-trained">512<' in board.text["counts"].value  # 8 · (32 + 32)


def test_a_rank_for_each_layer(board):
    board.controls.each.value = True
    assert board.controls.bars.values == [4, 4] and board.spec["recipe"] == pl.recipe("lora", r=4)
    board.controls.bars.values = [8, 2]
    rows = [dict(method="lora", where="q v", layers=[i], settings=dict(r=r, alpha=16)) for i, r in ((0, 8), (1, 2))]
    assert board.spec["recipe"] == rows
    assert 'pl-trained">1,280<' in board.text["counts"].value  # 2 · (8 + 2) · (32 + 32)
    assert board.run().spec["recipe"] == rows and "r=8/2" in board.text["runs"].value
    board.set(r=[2, 8])
    assert board.controls.bars.values == [2, 8] and board.spec["recipe"][0]["settings"]["r"] == 2
    board.controls.knobs["r"].value = 16  # the slider takes all bars along
    assert board.controls.bars.values == [16, 16] and board.spec["recipe"] == pl.recipe("lora", r=16)
    board.set(method="random-mask")
    assert board.controls.each.value is False and "per layer" in board.controls.each.description
    board.set(p=[0.5, 0.001])
    assert [row["settings"]["p"] for row in board.spec["recipe"]] == [0.5, 0.001]
    board.set(method="prompt")
    assert not {board.controls.each, board.controls.bars, board.controls.grid} & {*board.controls.right.children}


def test_what_a_layer_cannot_have_is_refused(board):
    before = board.spec
    for values, words in (([4], "needs 2 values, one for each layer, not 1"), ([4, -1], "must be at least 1")):
        with pytest.raises(PeftlabError, match=words):
            board.set(r=values)
    with pytest.raises(PeftlabError, match="unknown setting of lora per layer 'alpha'; the nearest is r"):
        board.set(alpha=[1, 2])
    assert board.spec == before


def test_batch_and_precision_are_settings_and_move_the_memory(board):
    said = [board.text["memory"].value]
    for change in (dict(batch=8), dict(precision="bf16"), dict(method="full")):
        board.set(**change)
        said.append(board.text["memory"].value)
    assert len(set(said)) == 4 and board.spec["batch"] == 8 and board.spec["precision"] == "bf16"
    assert "free on cpu" in said[0]
    with pytest.raises(PeftlabError, match="unknown precision 'fp8'"):
        board.set(precision="fp8")


def test_what_will_not_fit_is_refused_before_it_runs(board, monkeypatch):
    monkeypatch.setattr("peftlab.memory.free", lambda device="cpu": 2**10)
    with pytest.raises(PeftlabError, match="free on cpu; take"):
        board.run()
    assert "free on cpu; take" in board.runner.message.value and not board.results
    assert not board.runner.run_button.disabled and not board.runner.busy


def test_a_gpu_is_named_with_its_free_memory_and_refuses_what_is_too_large_for_it(board, monkeypatch):
    """A pretended one; test_gpu has the same on a real one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 * 2**30, 4 * 2**30))
    board.set(batch=8)
    assert "of 3.0 GiB free on cuda" in board.text["memory"].value
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**10, 4 * 2**30))
    with pytest.raises(PeftlabError, match="free on cuda; take"):
        board.run()
    assert "free on cuda; take" in board.runner.message.value and not board.results and not board.runner.busy


def test_an_empty_grid_is_told_in_the_panel_and_raised_by_run(board):
    board.controls.grid.mask = [[0] * 6] * 2
    assert "pl-error" in board.text["counts"].value and "at least one site" in board.text["counts"].value
    with pytest.raises(PeftlabError, match="at least one site"):
        board.runner.guard(board.runner.start)()
    assert "pl-error" in board.runner.message.value and not board.runner.busy
    board.set(where="q")
    assert board.run().score is not None


def test_a_rank_above_the_width_is_told(board):
    board.set(r=33)
    assert "rank r = 33" in board.text["counts"].value
    with pytest.raises(PeftlabError, match="rank r = 33"):
        board.run()
    assert not board.runner.busy and not board.runner.run_button.disabled


def test_set_refuses_before_it_moves(board):
    before = board.spec
    for bad in (dict(method="lorra"), dict(r=0), dict(rank=4), dict(where="head")):
        with pytest.raises(PeftlabError):
            board.set(**bad)
        assert board.spec == before and not board.controls.quiet


def test_the_code_line_repeats_the_run(board, monkeypatch):
    import html
    import re

    board.set(r=2, where="q", layers=[1], seed=3)
    line = html.unescape(re.search(r"<pre>(.*?)</pre>", board.text["code"].value).group(1))
    called = []
    monkeypatch.setattr(pl, "run", called.append, raising=False)
    eval(line, dict(pl=pl))
    assert called == [board.spec]


@pytest.mark.parametrize("family", [f for f in tiny.CONFIGS if f != "t5"])
def test_controls_fit_every_family(family):
    model, told = tiny.model(family), []
    controls = Controls(model, lambda: told.append(1))
    for name, method in METHODS.items():
        controls.set(method=name)
        here = pl.site_names(model)
        assert name_of(controls.recipe()) == name
        if controls.placed:
            assert controls.grid.sites == [s for s in here if s in method.sites]
            assert len(controls.grid.mask) == pl.n_layers(model)
    assert len(told) >= len(METHODS)
