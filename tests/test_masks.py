"""Which entries change: the masks of methods, what two of them share, and the map of them."""

import threading

import pytest
import torch
from small import home  # noqa: F401

import peftlab as pl
from peftlab import masks, plots
from peftlab.runs import mask_file, run
from peftlab.training import BUSY
from peftlab.widgets import Entries, panel


@pytest.fixture(scope="module")
def model():
    return pl.backbone("nano-encoder")


def quick(method):
    """Settings with which a mask is found soon."""
    return {k: v for k, v in dict(n=1, before=2, period=1).items() if k in method.knobs}


def test_every_method_changes_what_it_says_and_leaves_the_backbone_as_it_was(model, home):
    before = {n: p.clone() for n, p in model.named_parameters()}
    for name, method in pl.METHODS.items():
        try:
            found = pl.changes(model, name)
        except masks.Blind:
            found = pl.mask(name, backbone="nano-encoder", task="reviews", size=64, batch=8, **quick(method))
        rows = pl.recipe(name)
        assert bool(found) == any(pl.get(row["method"]).merges and bool(row["where"]) for row in rows), name
        if method.where != "model" and "bias" not in method.review:
            where = {site for row in rows for site in row["where"].split()}
            wanted = {n for n, (_, site) in masks.places(model).items() if site in where}
            assert set(found) <= wanted, name
    assert all(p.equal(before[n]) for n, p in model.named_parameters())


def test_a_mask_has_its_density_and_its_seed(model):
    at = lambda p, seed: pl.changes(model, pl.recipe("random-mask", p=p), seed)
    one, again, other = at(0.1, 0), at(0.1, 0), at(0.1, 1)
    chosen, numbers = sum(int(m.sum()) for m in one.values()), sum(m.numel() for m in one.values())
    assert chosen == numbers // 10
    assert all(one[n].equal(again[n]) for n in one)
    for n in one:  # two independent masks of density p share p² of the entries
        assert masks.share(one[n], one[n]) == 1.0
        assert masks.share(one[n], other[n]) == pytest.approx(0.01 / 0.19, abs=0.03)


def test_biases_alone(model):
    found = pl.changes(model, "bitfit")
    assert found and all(n.endswith("bias") for n in found)
    assert all(masks.share(m) == 1.0 for m in found.values())


def test_shares_and_blocks():
    a, b = torch.tensor([[1, 1], [0, 0]]).bool(), torch.tensor([[1, 0], [0, 0]]).bool()
    assert masks.share(a) == 0.5 and masks.share(a, b) == 0.5 and masks.share(a & ~a, b & ~b) is None
    assert masks.blocks(a) == [[1.0, 1.0], [0.0, 0.0]] and masks.blocks(a, 1) == [[0.5]]
    assert masks.blocks(torch.ones(100, 7).bool(), 48)[0] == [1.0] * 7
    assert masks.blocks(torch.tensor([True, False])) == [[1.0, 0.0]]


def test_the_map_zooms_from_model_to_layer_to_tensor(model):
    heat, mask = Entries(), pl.changes(model, pl.recipe("magnitude-mask", p=0.05, where="q down", select="tensor"))
    heat.show(model, mask)
    assert heat.view["rows"] == ["embed", "layer 0", "layer 1"]
    column = heat.view["columns"].index("q")
    assert [line[column] for line in heat.view["values"][1:]] == pytest.approx([0.05] * 2, abs=0.002)  # bias beside W
    heat.path = ["layer 1"]
    shares = dict(zip(heat.view["rows"], heat.view["values"], strict=True))
    assert shares["q weight"] == pytest.approx([0.05], abs=1e-3) and shares["k weight"] == [0.0]
    heat.path = ["layer 1", "q weight"]
    (q,) = (m for n, m in mask.items() if masks.places(model)[n] == (1, "q") and n.endswith("weight"))
    assert heat.view["values"] == masks.blocks(q) and masks.share(q) == pytest.approx(0.05, abs=1e-3)
    assert [len(line) for line in heat.view["values"]] == [48] * 48 and not heat.view["opens"]
    assert "64 × 64" in heat.view["title"]
    heat.path = ["layer 9"]
    assert heat.path == [] and heat.view["opens"] == "row"


def test_the_panel_draws_it_when_it_is_opened_and_compares(home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    board = panel("random-mask", p=0.2, steps=2, backbone="nano-encoder", size=32)
    shown = board.entries
    assert shown.map is None, "nothing is sent before it is wanted"
    shown.toggle.value = True
    view = shown.map.view
    assert view["values"][1][view["columns"].index("k")] == pytest.approx(0.2, abs=0.01)  # the bias is not in the mask
    shown.against.value = shown.SEED
    assert "changed by both" in shown.map.view["title"]
    board.run()
    assert any(o.startswith("run 1: random-mask") for o in shown.against.options)
    shown.against.value = shown.against.options[-1]
    assert shown.map.view["title"].startswith("100.000%")
    board.set(p=0.5)
    assert not shown.map.view["title"].startswith("100.000%")
    board.clear()
    assert shown.against.value == shown.ALONE
    board.set(method="adapter")
    assert shown.map.view["title"].startswith("0.000%")


def test_a_mask_that_needs_the_data_is_looked_for_when_asked(home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    board = panel("sam", p=0.01, steps=2, backbone="nano-encoder", size=32)
    shown = board.entries
    shown.toggle.value = True
    assert shown.map not in shown.children and "chooses its entries by the data" in shown.asks.value
    shown.look.click()
    assert shown.map in shown.children and shown.look not in shown.children
    assert shown.map.mask.keys() == pl.mask(board.spec).keys()
    assert sum(int(m.sum()) for m in shown.map.mask.values()) == int(0.01 * 98304)
    board.set(select="tensor")
    assert shown.look in shown.children, "another mask"
    board.run()
    assert shown.map in shown.children, "the run has found it"


def test_looking_waits_for_no_run(home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    board = panel("sam", p=0.01, steps=2, backbone="nano-encoder", size=32)
    board.entries.toggle.value = True
    started, done = threading.Event(), threading.Event()

    def other():
        with BUSY:
            started.set()
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    board.entries.look.click()
    assert "A run is on" in board.entries.asks.value
    done.set()
    thread.join()
    board.entries.look.click()
    assert board.entries.map in board.entries.children


def test_choices_are_lists_in_the_panel_and_words_in_a_spec(home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    board = panel("mask", backbone="nano-encoder", size=32)
    board.controls.knobs["score"].value = "magnitude"
    assert board.spec["recipe"][0]["settings"]["score"] == "magnitude"
    board.set(select="row", plan="gradual")
    assert board.spec["recipe"][0]["settings"]["select"] == "row"
    with pytest.raises(pl.PeftlabError, match=r"unknown score \(score\) 'gradeint'; the nearest are gradient"):
        board.set(score="gradeint")
    assert "score=magnitude" in plots.name_of(board.spec)


def test_a_run_that_was_stopped_keeps_no_mask(home):
    spec = pl.spec("lt-sft", p=0.01, backbone="nano-encoder", task="reviews", size=32, steps=20)
    assert run(spec, stop=lambda: True).stopped
    assert not mask_file(spec).exists(), "its search ended early"
    run(spec | dict(steps=2))
    assert mask_file(spec).exists()


def test_what_was_interrupted_is_looked_for_again(home):
    model, task = pl.backbone("nano-encoder"), pl.task("reviews", size=32)
    undo = pl.attach(model, pl.recipe("sam", p=0.01))
    batch = next(task.batches(model.tokenizer, "train", 32, seed=0))
    broken = iter([batch])  # one batch, where sixteen are wanted
    with pytest.raises((RuntimeError, StopIteration)):
        list(pl.fit(model, broken, undo.deltas, steps=1))
    assert masks.blind(undo)
    list(pl.fit(model, task.batches(model.tokenizer, "train", 32, seed=0), undo.deltas, steps=1))
    assert not masks.blind(undo)


def test_the_one_that_is_unknown_is_named(home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    board = panel("sam", p=0.01, steps=2, backbone="nano-encoder", size=32)
    board.entries.toggle.value = True
    board.run()
    board.set(method="random-mask")
    mask_file(board.results[0].spec).unlink()
    board.entries.against.value = board.entries.against.options[-1]
    assert board.entries.asks.value.startswith("SAM") and board.entries.look in board.entries.children
