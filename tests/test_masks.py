"""Which entries change: the masks of methods, what two of them share, and the map of them."""

import pytest
import torch
from small import home  # noqa: F401

import peftlab as pl
from peftlab import masks
from peftlab.widgets import Entries, panel


@pytest.fixture(scope="module")
def model():
    return pl.backbone("nano-encoder")


def test_every_method_changes_what_it_says_and_leaves_the_backbone_as_it_was(model):
    before = {n: p.clone() for n, p in model.named_parameters()}
    for name, method in pl.METHODS.items():
        found = pl.changes(model, name)
        assert bool(found) == (method.merges and bool(method.where)), name
        if method.where != "model" and name != "bitfit":
            wanted = {n for n, (_, site) in masks.places(model).items() if site in method.where.split()}
            assert set(found) <= wanted, name
    assert all(p.equal(before[n]) for n, p in model.named_parameters())


def test_a_mask_has_its_density_and_its_seed(model):
    at = lambda p, seed: pl.changes(model, pl.recipe("random-mask", p=p), seed)
    one, again, other = at(0.1, 0), at(0.1, 0), at(0.1, 1)
    assert all(masks.share(m) == pytest.approx(0.1, abs=1e-3) for m in one.values())
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
    heat, mask = Entries(), pl.changes(model, pl.recipe("magnitude-mask", p=0.05, where="q down"))
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
