"""Definitions 1 and 2 on live models: hand-checked counts, what breaks them, and the figures."""

import pytest
import torch

import peftlab as pl
from peftlab import masks, sparse_plots
from peftlab import sparse_view as sv
from peftlab.studies import learner

SOME = "full head adapter prefix prompt bitfit random-mask sam mixout lora lora-fa delta-lora qlora".split()


@pytest.fixture(scope="module")
def rows():
    return {r["method"]: r for r in sv.sparse_models(SOME, steps=2)}


@pytest.fixture(scope="module")
def model():
    return pl.backbone("nano-encoder")


@pytest.fixture(scope="module")
def found():
    return sv.traps(steps=3, burn_in=10, after=20)


def own(model):
    """Entries of the backbone, its head left out, and of the weights at all the six sites."""
    head = sum(p.numel() for p in pl.head_parameters(model).values())
    return sum(p.numel() for p in model.parameters()) - head, sum(m.weight.numel() for m in pl.sites(model, sv.WHERE))


# The definitions ----------------------------------------------------------------------------------


def test_lora_is_sparse_in_the_equivalent_model_and_dense_in_the_weights_it_joins(rows, model):
    layers, r = pl.sites(model, "q v"), 8
    added = sum(r * (m.in_features + m.out_features) for m in layers)
    row, (size, _) = rows["lora"], own(model)
    assert added == len(layers) * 2 * r * 64 and row["changed"] == added and row["size"] == size + added
    assert row["share"] == added / (size + added)
    assert row["own_changed"] == pytest.approx(sum(m.weight.numel() for m in layers), rel=1e-3)
    assert row["own_size"] == size and row["own_share"] == row["own_changed"] / size
    assert rows["lora-fa"]["changed"] == added // 2, "A stays as it was drawn"
    assert rows["lora-fa"]["size"] == row["size"], "a frozen A is a number of the model as well"


@pytest.mark.parametrize("name", ["random-mask", "sam"])
def test_a_mask_changes_exactly_its_share(rows, model, name):
    size, weights = own(model)
    k = int(0.005 * weights)
    row = rows[name]
    assert row["changed"] == row["own_changed"] == k
    assert row["size"] == size + k and row["own_share"] == k / size


def test_what_changes_is_what_the_recipe_can_change(rows, model):
    size, weights = own(model)
    can = lambda name: sum(int(m.sum()) for m in masks.changes(model, name).values())
    assert rows["bitfit"]["own_changed"] <= can("bitfit")
    assert rows["bitfit"]["own_changed"] == pytest.approx(can("bitfit"), rel=1e-2)
    assert rows["random-mask"]["own_changed"] == can("random-mask")
    assert can("full") == size and rows["full"]["changed"] == rows["full"]["own_changed"] <= size
    assert rows["mixout"]["size"] == size + weights, "D is as large as the weights"


def test_full_fine_tuning_changes_all_but_the_words_that_it_never_saw():
    model, task, _ = learner("head", sv.TASK, 0, 0, backbone=sv.BACKBONE)
    batches = task.batches(model.tokenizer, "train", sv.BATCH, seed=0)
    seen = torch.cat([next(batches)["input_ids"].flatten() for _ in range(3)]).unique()
    undo = pl.attach(model, "full")
    before = sv.copied(sv.numbers(model, undo))
    sv.learn(model, task, undo, 5e-4, 3, 0)
    changed = {n: sv.numbers(model, undo)[n] != t for n, t in before.items()}
    tables = {n: changed.pop(n) for n in list(changed) if n.endswith("_embeddings.weight")}
    assert sum(int(c.sum()) for c in changed.values()) > 0.99 * sum(c.numel() for c in changed.values())
    (words,) = (c for n, c in tables.items() if "word" in n)
    assert words.any(1).nonzero()[:, 0].tolist() == [i for i in seen.tolist() if i != model.config.pad_token_id]


def test_the_head_is_not_a_part_of_the_model_that_is_compared(rows, model):
    row = rows["head"]
    assert row["changed"] == row["own_changed"] == 0 and row["size"] == row["own_size"] == own(model)[0]


def test_changes_that_a_method_makes_itself_are_counted(rows, model):
    layers = pl.sites(model, "q v")
    added = sum(8 * (m.in_features + m.out_features) for m in layers)
    weights = sum(m.weight.numel() for m in layers)
    assert rows["delta-lora"]["size"] == own(model)[0] + added + weights, "its D is a number for each weight"
    assert rows["delta-lora"]["changed"] == pytest.approx(added + weights, rel=1e-2)


def test_packed_weights_count_as_weights_and_not_as_bytes(rows, model):
    size, weights = own(model)
    added = sum(8 * (m.in_features + m.out_features) for m in pl.sites(model, sv.WHERE))
    assert rows["qlora"]["size"] == size + added and rows["qlora"]["changed"] == added
    assert 0.99 * weights < rows["qlora"]["own_changed"] <= weights


def test_who_is_an_equivalent_model_at_the_start(rows):
    fail = {n for n, r in rows.items() if not r["equivalent"]}
    assert fail == {"prefix", "prompt", "qlora"}
    for r in rows.values():
        assert r["equivalent"] == (r["apart"] <= r["tolerance"]) and r["tolerance"] < 1e-4
        assert not r["equivalent"] or r["apart"] < 1e-5
    assert all(rows[n]["apart"] > 100 * rows[n]["tolerance"] for n in fail)


def test_rows_carry_the_facts_of_the_registry(rows):
    assert [*rows] == SOME
    for name, row in rows.items():
        method = pl.get(name)
        assert (row["title"], row["review"], row["sparse_view"]) == (method.title, method.review, method.sparse_view)
        assert row["merges"] == method.merges == (row["own_share"] is not None) and row["reason"] is None


def test_what_cannot_be_done_says_why():
    refused, done = sv.sparse_models(["bitfit", "lora"], backbone="nano-seq2seq", steps=1)
    assert refused["share"] is None and refused["equivalent"] is None and "trains biases" in refused["reason"]
    assert done["share"] > 0 and done["reason"] is None
    with pytest.raises(pl.PeftlabError, match="unknown method 'lorra'; the nearest .*lora"):
        sv.sparse_models(["lorra"])


def test_the_same_seed_gives_the_same_rows(rows):
    again, other = (sv.sparse_models(["lora", "qlora"], steps=2, seed=s) for s in (0, 1))
    assert again == [rows["lora"], rows["qlora"]] and other[1]["apart"] != again[1]["apart"]


# What breaks them ---------------------------------------------------------------------------------


def test_weight_decay_moves_what_a_gradient_mask_should_hold(found, model):
    _, weights = own(model)
    by = {(r["how"], r["weight_decay"]): r["changed"] for r in found["decayed"]}
    zeros = sum(int((m.weight == 0).sum()) for m in pl.sites(model, sv.WHERE))
    assert {r["allowed"] for r in found["decayed"]} == {int(0.005 * weights)}
    assert by["gradients masked", 0.0] == int(0.005 * weights)
    assert weights - zeros <= by["gradients masked", 0.01] <= weights
    values = [n for (how, _), n in by.items() if how != "gradients masked"]
    assert len(values) == 4 and {*values} == {int(0.005 * weights)}


def test_decay_shrinks_a_masked_entry_by_its_own_factor():
    trap = sv.MaskedGradients(0.005, lr=1e-2, weight_decay=0.1)
    *_, after = trap.steps(5)
    still = ~trap.keep
    assert torch.allclose(after[still], trap.before[still] * (1 - 1e-3) ** 5, rtol=1e-5)
    assert int(trap.keep.sum()) == trap.allowed == int(0.005 * len(after))


def test_old_moments_move_masked_entries_and_a_new_optimizer_stops_it(found):
    kept, new = found["momentum"]
    assert kept["mean"][-1] > kept["mean"][0] > 0
    assert kept["moving"] > 0.99 and kept["most"] >= kept["mean"][-1] > 0.5
    assert new["mean"] == [0.0] * 20 and new["most"] == new["moving"] == 0
    assert kept["changed"] > 0.99 and new["changed"] > 0.99, "the burn-in has moved everything before"


def test_a_steady_gradient_drifts_as_far_as_the_docstring_says():
    w, lr = torch.nn.Parameter(torch.zeros(())), 1e-3
    optimizer = torch.optim.AdamW([w], lr, weight_decay=0)
    for steps, gradient in ((6000, 1.0), (150, 0.0)):
        start = w.item()
        for _ in range(steps):
            w.grad = torch.tensor(gradient)
            optimizer.step()
    assert (start - w.item()) / lr == pytest.approx(0.9 / (0.999**0.5 - 0.9), rel=0.02)


def test_zeros_make_the_equivalent_model(found):
    attached, anew = found["redrawn"]
    assert attached["equivalent"] and attached["apart"] < 1e-5 and attached["relative"] == 0
    assert not anew["equivalent"] and anew["apart"] > 100 * anew["tolerance"] and 0.01 < anew["relative"] < 1
    ia3 = sv.redrawn(dict(method="ia3"))
    assert ia3[0]["apart"] == ia3[1]["apart"], "it has no zeros to draw"
    with pytest.raises(pl.PeftlabError, match="adapter cannot be merged"):
        sv.redrawn(dict(method="adapter"))


# The figures --------------------------------------------------------------------------------------


def marks(figure):
    return {t.name: t for t in figure.data if t.type == "scatter" and t.mode == "markers"}


def test_the_figure_has_a_line_for_each_method_under_its_category(rows):
    figure = sparse_plots.definitions([*rows.values()])
    names = list(figure.layout.yaxis.ticktext)
    titles = [r["title"] for r in rows.values()]
    assert sorted(n for n in names if "<b>" not in n) == sorted(titles)
    assert [n for n in names if "<b>" in n] == [
        f"<b>{g}</b>" for g in "baseline additive partial reparameterized".split()
    ]
    of = marks(figure)
    tilde, broken, merged = of.values()
    assert len(tilde.y) + len(broken.y) == len(rows) and {names[y] for y in broken.y} == {
        rows[n]["title"] for n in ("prefix", "prompt", "qlora")
    }
    at = {names[y]: x for t in (tilde, broken) for x, y in zip(t.x, t.y, strict=True)}
    assert at["LoRA"] == rows["lora"]["share"]
    assert dict(zip((names[y] for y in merged.y), merged.x, strict=True))["LoRA"] == rows["lora"]["own_share"]
    zero = figure.layout.xaxis.tickvals[list(figure.layout.xaxis.ticktext).index("0")]
    assert at["head only"] == zero < min(x for n, x in at.items() if n != "head only")


def test_a_method_that_could_not_be_measured_is_in_the_figure(rows):
    lost = dict.fromkeys(sv.FOUND) | dict(method="other", title="other", review="–", merges=True, reason="two tasks")
    figure = sparse_plots.definitions([rows["lora"], lost])
    (note,) = figure.layout.annotations
    assert figure.layout.yaxis.ticktext[int(note.y)] == "other" and note.hovertext == "two tasks"
    assert figure.layout.yaxis.ticktext[-2:] == ("<b>beyond the review</b>", "other")
    assert "0" not in figure.layout.xaxis.ticktext, "no share is 0"


def test_the_figure_of_the_traps_shows_what_was_found(found):
    figure = sparse_plots.traps(found)
    none, some = marks(figure)["weight decay 0"], marks(figure)["weight decay 0.01"]
    share = 491 / 98304
    assert [*none.x] == pytest.approx([share] * 3) and [*some.x] == pytest.approx([1, share, share], rel=1e-3)
    drift = [t for t in figure.data if t.type == "scatter" and t.mode == "lines"]
    assert [list(t.y) for t in drift] == [[0, *r["mean"]] for r in found["momentum"]]
    assert [t.y[0] for t in figure.data if t.type == "bar"] == [r["apart"] for r in found["redrawn"]]
