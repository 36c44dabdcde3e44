"""Hybrids are recipes: their rows, their names, groups of layers, and that each part acts."""

import itertools

import pytest
import tiny
import torch

import peftlab as pl
from peftlab import grouping
from peftlab.backbones import layer_of
from peftlab.bench.elsewhere import saved_by
from peftlab.recipes import name_of, title_of
from peftlab.results import Result
from peftlab.widgets import report
from peftlab.widgets.controls import Controls

HYBRIDS = [n for n, m in pl.METHODS.items() if not isinstance(m.cls, type)]


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_the_recipe_of_its_rows(name):
    rows = pl.recipe(name)
    assert rows == pl.recipe(rows) and pl.spec(name)["recipe"] == rows
    assert name_of(rows) == name and title_of(rows) == pl.get(name).title
    assert {row["method"] for row in rows}.isdisjoint(HYBRIDS)
    assert pl.get(name).json()["sites"] == list(dict.fromkeys(" ".join(row["where"] for row in rows).split()))


def test_names_of_recipes():
    assert name_of(pl.recipe("mam", n=3, r=2, layers=[1])) == "mam"
    assert name_of(pl.recipe("lora")) == "lora"
    both = pl.recipe([dict(method="lora"), dict(method="bitfit")])
    assert (name_of(both), title_of(both)) == ("lora + bitfit", "LoRA + BitFit")
    assert name_of(pl.recipe("autopeft", parallel=0)) == "pfeiffer + prefix"
    elsewhere = [row | dict(layers=row["layers"].replace("spindle", "uniform")) for row in pl.recipe("s4")]
    assert name_of(pl.recipe(elsewhere)) == "adapter + lora + prefix + added-bias"


def test_layers_of_a_hybrid():
    assert [row["layers"] for row in pl.recipe("mam", layers="0-1")] == [[0, 1], [0, 1]]
    with pytest.raises(pl.PeftlabError, match=r"s4 is a recipe, and its rows say in which layers they are"):
        pl.recipe("s4", layers=[0])
    with pytest.raises(pl.PeftlabError, match=r"mam is a recipe, and its rows say where they are"):
        pl.recipe("mam", where="q")
    with pytest.raises(pl.PeftlabError, match="the recipe is empty"):
        pl.recipe("autopeft", serial=0, parallel=0, n=0)


# groups of layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", grouping.PATTERNS)
def test_groups_cover_all_layers_and_keep_their_shape(pattern):
    for L in range(1, 40):
        sizes = grouping.sizes(pattern, L)
        assert sum(sizes) == L and (L < 4 or min(sizes) > 0)
    steps = itertools.pairwise(grouping.sizes(pattern, 20))
    signs = [(b > a) - (b < a) for a, b in steps]
    wanted = dict(increasing=[1, 1, 1], uniform=[0, 0, 0], decreasing=[-1, -1, -1])
    assert signs == wanted.get(pattern, [1, 0, -1] if pattern == "spindle" else [-1, 0, 1])


def test_groups_of_a_model():
    m = tiny.model("t5")  # two stacks of two layers
    assert [grouping.layers_of(m, f"spindle {g}") for g in (1, 2, 3, 4)] == [[], [0, 2], [1, 3], []]
    micro = pl.backbone("micro-encoder")
    assert [grouping.layers_of(micro, f"uniform {g}") for g in (1, 2, 3, 4)] == [[0], [1], [2], [3]]
    deep = pl.backbone("deep-encoder")
    assert [len(grouping.layers_of(deep, f"spindle {g}")) for g in (1, 2, 3, 4)] == [2, 4, 4, 2]
    with pytest.raises(pl.PeftlabError, match="unknown grouping of layers 'spindel'; the nearest is spindle"):
        pl.recipe("lora", layers="spindel 1")
    with pytest.raises(pl.PeftlabError, match="written like 'spindle 2', from 1 to 4, not 'spindle 5'"):
        pl.recipe("lora", layers="spindle 5")


def test_s4_has_the_strategies_of_its_groups():
    undo = pl.attach(pl.backbone("deep-encoder"), "s4")
    found = {}
    for d, m in undo.placed:
        found.setdefault(layer_of(m), set()).add(undo.recipe[d.row]["method"])
    A, P, B, L = "adapter", "prefix", "added-bias", "lora"
    wanted = [{A, L}] * 2 + [{A, P}] * 4 + [{A, P, B}] * 4 + [{P, B, L}] * 2
    assert [found[i] for i in range(12)] == wanted


# Compacter --------------------------------------------------------------------------------------------


def test_compacter_is_a_sum_of_kronecker_products():
    m = tiny.model("roberta")
    undo = pl.attach(m, "compacter", seed=1)
    rules = {id(d.group[d.first].A) for d in undo.deltas}
    assert len(rules) == 1 and sum(d.A is not None for d in undo.deltas) == 1
    d = undo.deltas[-1]
    A = undo.deltas[0].A
    torch.nn.init.normal_(d.v)
    D = sum(torch.kron(A[i], torch.outer(d.s[i], d.t[i])) for i in range(4))
    U = sum(torch.kron(A[i], torch.outer(d.u[i], d.v[i])) for i in range(4))
    assert torch.allclose(d.D, D, atol=1e-6) and torch.allclose(d.U, U, atol=1e-6)
    assert torch.linalg.matrix_rank(D) == 8  # full, though each product has rank 4 at most


def test_compacter_keeps_products_of_rank_1_for_the_backward_pass():
    """Not Aᵢ ⊗ uᵢ, which has n³/r times as many numbers."""
    d = pl.attach(tiny.model("roberta"), "compacter").deltas[0]
    assert saved_by(lambda: (d.D, d.U), d)[0] == 2 * 4 * d.s.numel() * d.t.shape[1]


def test_a_gate_keeps_the_text_and_no_second_set_of_keys():
    kept = {}
    for name in ("prefix", "gated-prefix"):
        m = tiny.model("roberta").train()
        undo, batch = pl.attach(m, pl.recipe(name, n=8)), tiny.batch(m, pad=False)
        kept[name] = saved_by(lambda m=m, batch=batch: m(**batch).loss, m)[0]
    b, t = batch["input_ids"].shape
    keys = 4 * b * (8 + t) * 32  # bytes of [P_k; k]
    assert 0 < kept["gated-prefix"] - kept["prefix"] < len(undo.deltas) * 2 * keys


def test_compacter_counts_as_its_formula_says():
    for r, n in ((8, 4), (16, 8), (4, 2)):
        m = pl.backbone("micro-encoder")
        pl.attach(m, "compacter", seed=0) if (r, n) == (8, 4) else pl.attach(m, pl.recipe("compacter", r=r, n=n))
        assert pl.counts(m)["delta"] == n**3 + 8 * (2 * (r + 128) + r + 128)  # two adapters in each of four layers


@pytest.mark.parametrize("settings, said", [(dict(n=3), "bottleneck 8"), (dict(r=12, n=3), "width 32")])
def test_compacter_needs_a_divisor(settings, said):
    with pytest.raises(pl.PeftlabError, match=f"{said} is no sum of 3 Kronecker products"):
        pl.attach(tiny.model("roberta"), pl.recipe("compacter", **settings))


# UniPELT ----------------------------------------------------------------------------------------------


def gates(undo):
    return torch.stack([d.heard.detach() for d in undo.deltas])  # (deltas b)


def test_gates_of_unipelt_move_and_differ_by_layer():
    m = tiny.model("roberta")
    undo = pl.attach(m, "unipelt")
    tiny.logits(m)
    before = gates(undo)
    tiny.train(m, 20, lr=2e-2)
    tiny.logits(m)
    after = gates(undo)
    assert (after - before).abs().amax(1).min() > 1e-3  # every gate has moved
    layers = torch.tensor([layer_of(m) for _, m in undo.placed])
    kinds = [type(d) for d in undo.deltas]
    for kind in {*kinds}:
        mine = after[[k is kind for k in kinds]]
        of = layers[[k is kind for k in kinds]]
        assert (mine[of == 0].mean() - mine[of == 1].mean()).abs() > 1e-3
    assert (after.max(1).values - after.min(1).values).max() > 1e-4  # and they differ between texts


def test_a_closed_gate_is_no_delta():
    m = tiny.model("roberta")
    y = tiny.logits(m)
    undo = pl.attach(m, "unipelt")
    tiny.train(m, 5)
    moved = tiny.logits(m)
    for d in undo.deltas:
        d.b.data.fill_(-1e4)
    shut = tiny.logits(m)
    undo()
    prefix = pl.attach(m, pl.recipe("gated-prefix"))  # a prefix of zeros still takes attention
    for d in prefix.deltas:
        d.b.data.fill_(-1e4)
    assert not torch.allclose(moved, y, atol=1e-2) and torch.allclose(shut, tiny.logits(m), atol=1e-5)


def test_a_gate_is_the_mean_over_the_real_tokens():
    m = tiny.model("roberta")
    undo = pl.attach(m, pl.recipe("gated-lora", where="q"))
    seen = {}
    at = next(m for _, m in undo.placed)
    at.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    b = tiny.batch(m, labels=False)
    with torch.no_grad():
        m(**b)
    d, mask = undo.deltas[0], b["attention_mask"].bool()
    for i in range(len(mask)):
        wanted = torch.sigmoid(seen["x"][i][mask[i]] @ d.w + d.b).mean()
        assert torch.allclose(d.heard[i], wanted, atol=1e-6)
    assert not mask.all()


def test_a_group_is_told_as_it_is_written():
    said = report.code(pl.spec(dict(method="lora", layers="spindle 2")))
    assert "layers=&#x27;spindle 2&#x27;" in said
    done = Result(pl.spec("s4"), "", "entail", "accuracy", counts=dict(delta=1, head=0), score=0.5)
    assert "o down (spindle 1) + q v (spindle 1)" in report.table([done], None, [], "accuracy")


def test_controls_of_a_hybrid_say_where_it_sits():
    controls = Controls(tiny.model("roberta"), lambda: None)
    controls.set(method="mam", n=2)
    assert "a recipe, whose rows say where it sits" in controls.note.value
    assert controls.recipe() == pl.recipe("mam", n=2)
    with pytest.raises(pl.PeftlabError, match="mam has no cells here; for some layers take pl.run"):
        controls.set(layers=[0])
    controls.set(method="head")
    assert "nothing is attached" in controls.note.value
