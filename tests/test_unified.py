"""AdaMix: routes, their consistency, the mean that stays."""

import pytest
import small
import tiny
import torch
from mixtures import built, families, learn, mixed, scatter, sizes
from small import home  # noqa: F401
from torch import nn

import peftlab as pl
from peftlab.checkpoint import kept_state
from peftlab.methods.unified import apart
from peftlab.routing import routes

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
