"""AdaMix: routes, their consistency, the mean that stays. ProPETL: one prototype, masks of it, what a file holds."""

import copy
import json

import pytest
import small
import tiny
import torch
from small import home  # noqa: F401
from torch import nn

import peftlab as pl
from peftlab.checkpoint import kept_state
from peftlab.methods.unified import apart
from peftlab.overlaps import overlap
from peftlab.routing import routes

FAMILIES, MIXED, PRO = ("roberta", "gpt2", "t5"), ("adamix", "adamix-lora"), ("adapter", "prefix", "lora")
families = pytest.mark.parametrize("family", FAMILIES)
mixed = pytest.mark.parametrize("name", MIXED)
pro = pytest.mark.parametrize("name", [f"propetl-{n}" for n in PRO])


def built(name, family="roberta", head="classification", seed=0, **settings):
    """A tiny model without dropout and what is attached to it, and the first delta."""
    m = tiny.model(family, head)
    for d in m.modules():
        if isinstance(d, nn.Dropout):
            d.p = 0.0
        for key in ("dropout", "attention_dropout"):
            if isinstance(getattr(d, key, None), float):
                setattr(d, key, 0.0)
    undo = pl.attach(m, pl.recipe(name, **settings), seed=seed)
    return m, undo, undo.deltas[0]


def learn(m, undo, steps=8, lr=1e-2):
    """As a run learns: in training mode, with all verbs."""
    torch.manual_seed(0)
    batch = tiny.batch(m)
    return [row["loss"] for row in pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=lr, steps=steps, every=1)]


@torch.no_grad()
def scatter(undo, std):
    """Copies that all differ."""
    torch.manual_seed(3)
    for p in (p for d in undo.deltas for p in d.parameters()):
        p.add_(std * torch.randn(p.shape))


def sizes(folder):
    """Bytes of the tensors in a kept delta, without the header of the file; and {name: dtype}."""
    data = (folder / "delta.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return len(data) - start, {n: t["dtype"] for n, t in header.items() if n != "__metadata__"}


# AdaMix: routes


@families
@mixed
def test_each_pass_of_training_takes_a_route_and_each_place_its_own(family, name):
    m, undo, _ = built(name, family, copies=2)
    m.train()
    torch.manual_seed(0)
    seen = []
    for _ in range(25):
        tiny.logits(m)
        seen.append([tuple(d.taken.flatten().tolist()) for d in undo.deltas])
    assert all({way[k] for way in seen} == {(0, 0), (0, 1), (1, 0), (1, 1)} for k in range(len(seen[0])))
    assert len({way[0] == way[1] for way in seen}) == 2, "two places do not always agree"
    m.eval()
    assert torch.equal(tiny.logits(m), tiny.logits(m))


@families
@mixed
def test_copies_start_near_each_other_and_learn_apart(family, name):
    m, undo, d = built(name, family)
    reads, writes = ("D", "U") if name == "adamix" else ("A", "B")
    spread = lambda t: float(((t - t.mean(0)).norm(dim=(1, 2)) / t.norm(dim=(1, 2))).min())
    start = {n: getattr(d, n).detach().clone() for n in (reads, writes)}
    assert 0.05 < spread(start[reads]) < 0.15 and not start[writes].any()
    learn(m, undo)
    moved = {n: getattr(d, n).detach() - t for n, t in start.items()}
    assert all(spread(t) > 0.2 for t in moved.values()), "with one gradient for all, they would move alike"
    m.train()
    torch.manual_seed(1)
    with torch.no_grad():
        a, b = m(**tiny.batch(m)).logits, m(**tiny.batch(m)).logits
    assert (a - b).abs().max() > 1e-3, "two passes in training do not say the same"


def test_a_route_is_the_module_of_its_two_copies():
    _, undo, d = built("adamix", copies=3, r=4)
    _, lora, e = built("adamix-lora", copies=3, r=4, alpha=8)
    y = torch.randn(2, 5, 32)
    with torch.no_grad():
        for p in (*d.parameters(), *e.parameters()):
            p.normal_()
        d.route = e.route = torch.tensor([[2], [1]])
        want = y + torch.relu(y @ d.D[2].T + d.c[2]) @ d.U[1].T + d.e[1]
        assert torch.allclose(d(None, y), want, atol=1e-5)
        assert torch.allclose(e(y, y), y + 2 * (y @ e.A[2].T) @ e.B[1].T, atol=1e-4)
        d.route = e.route = None
        want = y + torch.relu(y @ d.D.mean(0).T + d.c.mean(0)) @ d.U.mean(0).T + d.e.mean(0)
        assert torch.allclose(d.eval()(None, y), want, atol=1e-5)
        assert torch.allclose(e.eval()(y, y), y + 2 * (y @ e.A.mean(0).T) @ e.B.mean(0).T, atol=1e-4)


@mixed
def test_the_same_seed_takes_the_same_routes(name):
    def run(seed):
        m, undo, _ = built(name, seed=seed)
        return learn(m, undo, 4), kept_state(undo)

    (a, one), (b, two), (c, _) = run(3), run(3), run(4)
    assert a == b != c and all(torch.equal(one[n], two[n]) for n in one)


# AdaMix: the mean that stays


@families
@mixed
def test_what_stays_is_one_module_at_the_cost_of_one(family, name, tmp_path):
    m, undo, d = built(name, family, copies=3)
    plain, alone, _ = built(d.one, family, where=undo.recipe[0]["where"])
    several = pl.counts(m)
    learn(m, undo)
    y = tiny.logits(m)
    assert not torch.equal(y, tiny.logits(tiny.model(family)))
    assert several["delta"] == 3 * pl.counts(plain)["delta"] and several["stored_bits"] == 32 * several["delta"]
    pl.save(m, undo, tmp_path / "copies")
    one = pl.flatten(m, undo)
    assert torch.equal(tiny.logits(m), y) and [r["method"] for r in one.recipe] == [d.one]
    assert pl.counts(m) == pl.counts(plain)
    pl.save(m, one, tmp_path / "one"), pl.save(plain, alone, tmp_path / "plain")
    head = 4 * pl.counts(m)["head"]
    assert sizes(tmp_path / "one") == sizes(tmp_path / "plain")
    assert sizes(tmp_path / "copies")[0] - head == 3 * (sizes(tmp_path / "one")[0] - head)


def test_the_mean_of_loras_merges_and_that_of_adapters_does_not():
    assert pl.METHODS["adamix-lora"].merges and not pl.METHODS["adamix"].merges
    m, undo, _ = built("adamix-lora")
    learn(m, undo)
    y = tiny.logits(m)
    pl.merge(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)


# AdaMix: consistency


def test_the_distance_of_two_passes():
    torch.manual_seed(0)
    a, b, numbers = torch.randn(4, 3), torch.randn(4, 3), (torch.randn(4, 1), torch.randn(4, 1))
    kl = lambda a, b: nn.functional.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="batchmean")
    assert torch.allclose(apart(a, b, torch.zeros(4)), (kl(a, b) + kl(b, a)) / 2, atol=1e-6)
    assert apart(a, a, torch.zeros(4)) == 0 and apart(a, b, torch.zeros(4)) == apart(b, a, torch.zeros(4))
    assert torch.allclose(apart(*numbers, torch.zeros(4)), (numbers[0] - numbers[1]).square().mean())
    a, b = torch.randn(2, 2, 5, 3).unbind()
    labels = torch.tensor([[-100, -100, 1, 2, -100], [-100, 0, -100, -100, -100]])
    where = labels != -100
    assert torch.allclose(apart(a, b, labels), apart(a[where], b[where], torch.zeros(3)), atol=1e-6)
    early = torch.cat([where[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)  # a decoder says a word one place before
    assert torch.allclose(apart(a, b, labels, True), apart(a[early], b[early], torch.zeros(3)), atol=1e-6)


@pytest.mark.parametrize("family, head", [("roberta", "classification"), ("gpt2", "lm"), ("t5", "seq2seq")])
@mixed
def test_a_second_pass_through_other_routes_is_compared(family, head, name):
    m, undo, d = built(name, family, head, weight=2.0)
    learn(m, undo)
    batch = tiny.batch(m)
    assert d.compare(m, batch, m(**batch)) == 0, "not outside of training"
    m.train()
    torch.manual_seed(0)
    first = m(**batch)
    state, ways = torch.get_rng_state(), d.taken.clone()
    found = d.compare(m, batch, first)
    torch.set_rng_state(state)
    assert torch.allclose(found, 2 * apart(first.logits, m(**batch).logits, batch["labels"], family == "gpt2"))
    assert found > 0 and not torch.equal(ways, d.taken)
    found.backward()
    assert all(p.grad.any() for e in undo.deltas for p in e.parameters())
    assert [e.compare(m, batch, first) for e in undo.deltas[1:]] == [0.0] * (len(undo.deltas) - 1)
    undo.toggle(False)
    assert d.compare(m, batch, first) == 0


def test_consistency_brings_the_routes_together():
    far = []
    for weight in (0.0, 20.0):
        m, undo, _ = built("adamix-lora", weight=weight)
        scatter(undo, 0.1)
        learn(m, undo, 20)
        m.train()
        torch.manual_seed(7)
        far.append(sum(float(apart(tiny.logits(m), tiny.logits(m), torch.zeros(4))) for _ in range(8)))
    assert far[1] < 0.6 * far[0], far


def test_two_forms_in_one_recipe_are_compared_once():
    m = tiny.model()
    undo = pl.attach(m, ["adamix", "adamix-lora"])
    assert len({d.group for d in undo.deltas}) == 1 and len(undo.deltas[0].group) == 6
    calls = []
    m.register_forward_hook(lambda *_: calls.append(1))
    learn(m, undo, 3)
    assert len(calls) == 2 * 3


# AdaMix: routes, average, ensemble


def test_routes_average_and_ensemble(home):
    task = pl.task(small.write(home / "words.jsonl", small.sentences(120)))
    model = pl.backbone(small.backbone(home / "tiny"), labels=2)
    undo = pl.attach(model, "adamix")
    scatter(undo, 1.0)
    found = routes(model, undo, task, "train", n=6)
    assert len(found["routes"]) == 6 and len({*found["routes"]}) > 1
    assert found == routes(model, undo, task, "train", n=6)
    assert all(d.route is None for d in undo.deltas)
    assert found["averaged"] == pl.evaluate(model, task, "train")
    one = routes(model, undo, task, n=1, seed=3)
    assert one["routes"] == [one["ensemble"]]
    pl.flatten(model, undo)
    assert pl.evaluate(model, task, "train") == found["averaged"]
    with pytest.raises(pl.PeftlabError, match="none of these deltas has routes; attach adamix"):
        routes(model, pl.attach(model, "lora"), task)


def test_an_ensemble_is_the_mean_of_probabilities():
    from peftlab.routing import Routed, together

    z = torch.randn(3, 4, 2)
    assert torch.allclose(together(z).softmax(-1), z.softmax(-1).mean(0), atol=1e-6)
    assert torch.equal(together(z[..., :1]), z[..., :1].mean(0))
    m, undo, _ = built("adamix")
    learn(m, undo)
    ways = [[torch.tensor([[i], [j]])] * len(undo.deltas) for i, j in ((0, 1), (2, 3), (1, 1))]
    batch, said = tiny.batch(m), []
    with torch.no_grad():
        for way in ways:
            for d in undo.deltas:
                d.route = way[0]
            said.append(m(**batch).logits.softmax(-1))
        got = Routed(m, undo.deltas, ways)(**batch).logits.softmax(-1)
    assert torch.allclose(got, torch.stack(said).mean(0), atol=1e-6) and (said[0] - said[1]).abs().max() > 1e-4


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
