"""ProPETL: one prototype, a mask of bits for each layer and task, and the file that holds them."""

import copy
import json

import pytest
import tiny
import torch
from mixtures import FAMILIES, built, families, learn, pro, sizes

import peftlab as pl
from peftlab.checkpoint import kept_state
from peftlab.overlaps import overlap

# ProPETL: one prototype, masks of it


def matrices(d):
    """(name, prototype, this layer's mask) of each masked matrix."""
    W = d.group[d.first]
    return [(n, getattr(W, n), M) for n, M in zip(d.masked, d.masks(), strict=True)]


@pytest.mark.parametrize("p", [0.03, 0.5])
@families
@pro
def test_masks_have_exactly_their_density(family, name, p):
    m, undo, _ = built(name, family, p=p)
    learn(m, undo, 1)
    for d in undo.deltas:
        for n, W, M in matrices(d):
            assert int(M.sum()) == max(1, int(p * W.numel() + 1e-9)) and M.shape == W.shape
            assert torch.equal(d.module()[n], W * M)


@families
@pro
def test_the_prototype_is_one_for_all_layers(family, name):
    m, undo, first = built(name, family)
    whose = {d.group[d.first] for d in undo.deltas}
    assert whose == {first} and len(undo.deltas) > 1
    scores = {f"s_{n}" for n in first.masked}
    assert {*first.own()} == {*first.shapes} | scores and all({*d.own()} == scores for d in undo.deltas[1:])
    assert pl.counts(m)["delta"] == sum(p.numel() for d in undo.deltas for p in d.parameters())
    now = lambda d: {n: t.detach().clone() for n, t in d.module().items()}
    before = [now(d) for d in undo.deltas]
    with torch.no_grad():
        for n in first.shapes:
            getattr(first, n).add_(1)
    for d, was in zip(undo.deltas, before, strict=True):
        assert all(float((now(d)[n] - t).max()) == pytest.approx(1, abs=1e-5) for n, t in was.items())
    y, twin = tiny.logits(m), copy.deepcopy(m)
    with torch.no_grad():
        for n in first.shapes:
            getattr(first, n).zero_()
    assert torch.equal(tiny.logits(twin), y) and not torch.equal(tiny.logits(m), y), "a copy has its own prototype"


def test_layers_of_other_shapes_and_other_rows_have_their_own():
    m, undo, _ = built("propetl-lora", "llama")  # values are half as wide as queries there
    assert {(d.first, m.site) for d, m in undo.placed} == {(0, "q"), (1, "v")}
    undo()
    undo = pl.attach(m, [pl.recipe("propetl-lora", where=site)[0] for site in ("q", "o")])
    assert [d.first for d in undo.deltas] == [0, 0, 2, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_its_equation(family):
    """The same model with a plain adapter, prefix or LoRA in each layer that holds W ⊙ M."""
    for name, base in (("propetl-adapter", "pfeiffer"), ("propetl-prefix", "prefix"), ("propetl-lora", "lora")):
        m, undo, _ = built(name, family)
        learn(m, undo, 5)
        other, plain, _ = built(base, family)
        with torch.no_grad():
            for d, e in zip(undo.deltas, plain.deltas, strict=True):
                for n, t in d.module().items():
                    getattr(e, n).copy_(t)
            for n, p in pl.head_parameters(other).items():
                p.copy_(pl.head_parameters(m)[n])
        assert torch.allclose(tiny.logits(m), tiny.logits(other), atol=1e-6), name
        assert not torch.allclose(tiny.logits(m), tiny.logits(tiny.model(family)), atol=1e-3)


@families
@pro
def test_masks_move_and_go_apart(family, name):
    m, undo, _ = built(name, family)
    start = [[M for _, _, M in matrices(d)] for d in undo.deltas]
    losses = learn(m, undo, 20)
    assert losses[-1] < losses[0]
    now = [[M for _, _, M in matrices(d)] for d in undo.deltas]
    for was, one in zip(start, now, strict=True):
        assert all(0 < float((a != b).float().mean()) < 0.9 for a, b in zip(was, one, strict=True))
    for k, other in enumerate(now[1:], 1):
        assert all((a != b).any() for a, b in zip(now[0], other, strict=True)), k


def test_scores_get_the_gradient_of_their_mask():
    _, undo, d = built("propetl-lora", p=0.25)
    with torch.no_grad():
        d.A.normal_(), d.B.normal_()
    x, g = torch.randn(3, 5, 32), torch.randn(3, 5, 32)
    w = {n: t.detach().requires_grad_() for n, t in d.module().items()}
    ((x @ w["A"].T @ w["B"].T) * d.s * g).sum().backward()
    (d(x, torch.zeros_like(g)) * g).sum().backward()
    for n, W, M in matrices(d):
        s = getattr(d, f"s_{n}")
        assert torch.allclose(s.grad, w[n].grad * W * s.sign(), rtol=1e-4, atol=1e-5)
        assert torch.allclose(W.grad, w[n].grad * M, rtol=1e-4, atol=1e-5)
        least = s.abs()[M].min()
        assert (s.abs()[~M] <= least).all(), "the largest scores are in"


# ProPETL: tasks


@families
@pro
def test_tasks_add_their_masks_to_those_of_the_layers(family, name):
    m, undo, first = built(name, family, tasks=3, p=0.25)
    learn(m, undo, 3)
    said = []
    for task in range(3):
        for d in undo.deltas:
            d.task = task
            for n, W, M in matrices(d):
                T = first.best(n, getattr(first, f"t_{n}").detach())[task] > 0
                assert int(T.sum()) == W.numel() // 4
                assert torch.equal(d.chosen(n) > 0, M | T) and (M | T).sum() > M.sum()
        said.append(tiny.logits(m))
    assert not torch.equal(said[0], said[1]) and not torch.equal(said[1], said[2])
    assert {f"t_{n}" for n in first.masked} <= {*first.own()} and not any("t_" in n for n in undo.deltas[1].own())


def test_only_the_task_that_is_set_learns_its_mask():
    m, undo, first = built("propetl-adapter", tasks=2)
    learn(m, undo, 2)
    for d in undo.deltas:
        d.task = 1
    m(**tiny.batch(m)).loss.backward()
    assert not first.t_D.grad[0].any() and first.t_D.grad[1].any()
    lone = [~M for n, _, M in matrices(first)][0] & ~matrices(undo.deltas[1])[0][2]
    both = matrices(first)[0][2] & matrices(undo.deltas[1])[0][2]
    assert first.t_D.grad[1][lone].any() and not first.t_D.grad[1][both].any(), "what a layer has, no task can add"


def test_a_density_above_one_is_refused():
    with pytest.raises(pl.PeftlabError, match="density p = 1.5 is more than the whole prototype; take 0.5 for half"):
        built("propetl-lora", p=1.5)


# ProPETL: files


def expected(undo, tasks):
    """Bits: 32 for each number of a prototype, 1 for each entry of a mask, rounded up to bytes."""
    of = lambda d: {n: d.shapes[n].numel() for n in d.masked}
    firsts = [d for i, d in enumerate(undo.deltas) if d.first == i]
    whole = sum(32 * size.numel() for d in firsts for size in d.shapes.values())
    layers = sum(8 * -(-n // 8) for d in undo.deltas for n in of(d).values())
    return whole + layers + (tasks > 1) * sum(8 * -(-tasks * n // 8) for d in firsts for n in of(d).values())


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
@pro
def test_a_file_holds_masks_as_bits_and_gives_the_same_function(family, name, tasks, tmp_path):
    sizes_of = dict(n=3) if name == "propetl-prefix" else dict(r=3)  # no multiple of 8 entries
    m, undo, _ = built(name, family, tasks=tasks, p=0.3, **sizes_of)
    learn(m, undo, 5)
    for d in undo.deltas:
        d.task = tasks - 1
    y, bits = tiny.logits(m), pl.counts(m)["stored_bits"]
    pl.save(m, undo, tmp_path)
    size, kinds = sizes(tmp_path)
    assert bits == expected(undo, tasks) and 8 * (size - 4 * pl.counts(m)["head"]) == bits
    assert {k for n, k in kinds.items() if ".s_" in n or ".t_" in n} == {"U8"}
    fresh = tiny.model(family)
    again = pl.load(fresh, tmp_path)
    for d in again.deltas:
        d.task = tasks - 1
    assert torch.equal(tiny.logits(fresh), y)
    assert all(torch.equal(a, b) for d, e in zip(undo.deltas, again.deltas, strict=True)
               for a, b in zip(d.masks(), e.masks(), strict=True))  # fmt: skip


def test_a_file_of_one_prototype_is_smaller_than_one_of_many_modules():
    size = lambda name: (pl.attach(m := tiny.model("gpt2"), name), pl.counts(m)["stored_bits"])[1]
    assert size("propetl-adapter") == 32 * (2 * 32 * 8 + 40) + 2 * 2 * 32 * 8 < size("pfeiffer") / 1.8
    assert size("propetl-lora") < size("lora") / 3 and size("propetl-prefix") < size("prefix") / 1.8


def test_what_was_loaded_learns_on(tmp_path):
    m, undo, _ = built("propetl-adapter")
    learn(m, undo, 5)
    pl.save(m, undo, tmp_path)
    m, _, _ = built("propetl-adapter")
    pl.switch(m)
    undo = pl.load(m, tmp_path)
    before = [M for d in undo.deltas for M in d.masks()]
    losses = learn(m, undo, 20)
    after = [M for d in undo.deltas for M in d.masks()]
    assert losses[-1] < losses[0] and all((a & ~b).any() for a, b in zip(after, before, strict=True))


def test_a_file_of_another_size_is_refused(tmp_path):
    m, undo, _ = built("propetl-lora", r=4)
    pl.save(m, undo, tmp_path)
    card = json.loads((tmp_path / "delta.json").read_text())
    card["recipe"][0]["settings"]["r"] = 8
    (tmp_path / "delta.json").write_text(json.dumps(card))
    fresh = tiny.model()
    names = set(fresh.state_dict())
    with pytest.raises(pl.PeftlabError, match="the checkpoint does not fit this backbone: tensor"):
        pl.load(fresh, tmp_path)
    assert set(fresh.state_dict()) == names


def test_merged_and_back_the_scores_are_what_they_were():
    m, undo, _ = built("propetl-lora")
    learn(m, undo, 5)
    before, y = kept_state(undo), tiny.logits(m)
    again = pl.merge(m, undo)()
    after = kept_state(again)
    assert all(torch.equal(before[n], after[n]) for n in before) and torch.allclose(tiny.logits(m), y, atol=1e-6)


# ProPETL: overlaps


@families
@pro
def test_overlaps_of_masks_beside_those_of_chance(family, name):
    m, undo, first = built(name, family, p=0.4)
    found = overlap(m, undo)
    J, chance = torch.tensor(found["overlap"]), torch.tensor(found["chance"])
    assert J.shape == (len(undo.deltas),) * 2 and torch.equal(J, J.T) and (J.diagonal() == 1).all()
    assert len(found["places"]) == len(J) and all(layer < pl.n_layers(m) for layer, _ in found["places"])
    others = ~torch.eye(len(J), dtype=torch.bool)
    assert (J[others] - 0.25).abs().max() < 0.12 and (chance[others] - 0.25).abs().max() < 0.12  # p / (2 - p) = 0.25
    with torch.no_grad():
        for n in first.masked:
            getattr(undo.deltas[1], f"s_{n}").copy_(getattr(first, f"s_{n}"))
    assert overlap(m, undo)["overlap"][0][1] == 1 and overlap(m, undo)["chance"] == found["chance"]


def test_without_a_common_prototype_there_is_no_overlap():
    m, undo, _ = built("propetl-lora", "llama")
    J = overlap(m, undo)["overlap"]
    assert [[j is None for j in row] for row in J][0] == [False, True, False, True]
    with pytest.raises(pl.PeftlabError, match="none of these deltas has masks of a prototype; attach propetl-adapter"):
        overlap(m, pl.attach(m, "lora"))
