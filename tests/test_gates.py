"""S³Delta: the search keeps to its budget, finds what matters, and comes out the same again."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from gated import BEFORE, FAMILIES, GATES, attached, kept, same, searched, still, stored, stream
from torch import nn

import peftlab as pl
from peftlab.methods import gates
from peftlab.structures import structure

# The budget ----------------------------------------------------------------------------------------


def test_the_shift_holds_the_expected_number_at_the_budget():
    torch.manual_seed(0)
    for most in (3, 100, 900):
        a, sizes = 5 * torch.randn(40), torch.randint(1, 60, (40,))
        p = torch.sigmoid(a - gates.shift(a, sizes, most))
        assert float((sizes * p).sum()) == pytest.approx(most, rel=1e-4)
        assert p.argsort().equal(a.argsort()), "a shift keeps the order"


def test_candidates_are_taken_by_score_as_long_as_they_fit():
    scores, sizes = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), [5, 9, 4, 3, 1]
    assert gates.fitting(scores, sizes, 12).tolist() == [True, False, True, True, False]
    assert gates.fitting(scores, sizes, 22).all() and not gates.fitting(scores, sizes, 0).any()
    assert gates.fitting(torch.zeros(5), sizes, 5).nonzero().tolist() == [[0]], "of equal ones the first"


@pytest.mark.parametrize("budget", [500, 0.1, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_structure_fills_the_budget_before_and_after_the_search(family, budget):
    m = tiny.model(family)
    undo, all_of_them = attached(m, budget=budget), 0
    for after in (False, True):
        rows = structure(m, searched(m, undo) if after else undo)
        all_of_them = sum(r["numbers"] for r in rows)
        most = budget if budget > 1 else int(budget * all_of_them)
        left = most - sum(r["numbers"] for r in rows if r["kept"])
        assert 0 <= left < min(r["numbers"] for r in rows if not r["kept"]), "no other candidate fits"
        assert pl.counts(m)["delta"] == most
        assert sum(r["p"] * r["numbers"] for r in rows) == pytest.approx(most, rel=1e-3)
        assert len({round(r["p"], 6) for r in rows}) == 1 if not after else len({r["p"] for r in rows}) > len(rows) / 2
    best = max(rows, key=lambda r: r["p"])
    assert best["kept"] and best["p"] > most / all_of_them, "the gates have moved, and the likeliest is kept"


@pytest.mark.parametrize("budget", [3, 0.001, 10**6])
def test_budgets_that_no_structure_has_are_refused(budget):
    m = tiny.model()
    before = {n: t.clone() for n, t in m.state_dict().items()}
    with pytest.raises(pl.PeftlabError, match="of the 32 candidates the smallest has 32, all together have 5040; ta"):
        attached(m, budget=budget)
    assert same(before, m.state_dict())


def test_two_budgets_are_two_searches():
    m = tiny.model()
    rows = [dict(method="gate-bias", settings=dict(budget=b, before=3)) for b in (64, 128)]
    undo = searched(m, pl.attach(m, rows))
    one, two = ([d for d in undo.deltas if d.budget == b] for b in (64, 128))
    assert sum(d.size for d in one if d.kept) <= 64 < sum(d.size for d in two if d.kept) <= 128
    assert set(one[0].peers) == {*one} and set(two[0].peers) == {*two} and one[0].group == two[0].group


# The gates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", GATES)
def test_a_gate_scales_what_its_delta_changes(what):
    """Between closed, y, and open, what the ungated delta gives."""
    torch.manual_seed(0)
    m = nn.LayerNorm(8) if what == "gate-norm" else nn.Linear(8, 8)
    own = dict(r=2) if "r" in pl.METHODS[what].knobs else {}
    d = pl.METHODS[what].cls(m, budget=1.0, before=1, **own)
    for p in d.parameters():
        nn.init.normal_(p)
    given = (torch.randn(8),) if what == "gate-norm" else (torch.randn(3, 8), torch.randn(3, 8))
    y, whole = given[-1], d(*given)
    assert not torch.allclose(whole, y)
    for z in (0.0, 0.3, 1.0):
        d.z = torch.tensor([z])
        torch.testing.assert_close(d(*given), y + z * (whole - y))


def draws(a, most=40, many=600):
    first = SimpleNamespace(v=torch.zeros(most), peers=[SimpleNamespace(size=s) for s in (20, 40, 10, 30)])
    search = gates.Search(first, None)
    with torch.no_grad():
        search.a.copy_(torch.tensor(a))
    return search, torch.stack([search.draw().detach() for _ in range(many)])


def test_gates_are_open_as_often_as_their_chance_says():
    torch.manual_seed(0)
    search, z = draws([0.0, 1.0, -2.0, 3.0])
    assert torch.allclose((z > 0.5).float().mean(0), search.chances(), atol=0.06) and 0 < z.min() and z.max() < 1
    assert search.first.z.equal(z[-1]) and z.std(0).min() > 0.1


def test_one_chance_rises_only_if_others_fall():
    search, _ = draws([0.0, 1.0, -2.0, 3.0], many=1)
    for i in range(4):
        (g,) = torch.autograd.grad(search.chances()[i], search.a)
        assert g[i] > 0 and (g[[j for j in range(4) if j != i]] < 0).all()
    (g,) = torch.autograd.grad(search.chances().sum(), search.a)
    assert g.abs().max() < 1e-6


# The search ----------------------------------------------------------------------------------------


def planted(family, site, what, kind, seed=0, signs=(1.0, 1.0), steps=20):
    """Search where the loss looks at one place alone, and asks there for what a delta of this kind did.

    signs: of the loss in the batches of the deltas, and in those of the gates.
    """
    m, seen = still(tiny.model(family)), {}
    pl.set_head(m, "frozen")
    (place,) = pl.sites(m, site, layers=[0])
    whole, see = m.forward, lambda m, args, y: seen.update(y=y)
    teacher = pl.attach(m, dict(method=kind, where=site, layers=[0]), seed=9)
    eye, g = place.register_forward_hook(see), torch.Generator().manual_seed(3)
    batches = [tiny.batch(m, seed=i, labels=False) for i in range(2 * steps)]
    with torch.no_grad():
        for p in teacher.deltas[0].own().values():
            p.add_(0.5 * torch.randn(p.shape, generator=g))
        for i, batch in enumerate(batches):
            whole(**batch)
            batch |= dict(labels=seen["y"], sign=torch.full((4,), signs[i % 2]))
    teacher()
    eye.remove()
    undo = attached(m, what, seed=seed, before=steps)
    place.register_forward_hook(see)  # the last hook sees what the deltas make of it

    def forward(labels, sign, **batch):
        whole(**batch)
        return SimpleNamespace(loss=((seen["y"] - labels).square().mean((1, 2)) * sign).mean())

    m.forward = forward
    searched(m, undo, seed, iter(batches))
    return sorted(structure(m, undo), key=lambda r: -r["p"]), undo.deltas[0].history


@pytest.mark.parametrize(
    "family, site, what, kind, found",
    [
        ("roberta", "v", "s3delta", "lora", {"lora", "bias"}),  # the first layer's v reads no other candidate's work
        ("roberta", "v", "gate-lora gate-norm", "lora", {"lora"}),
        ("roberta", "q", "gate-bias gate-norm", "added-bias", {"bias"}),
        ("roberta", "o", "gate-adapter gate-norm", "adapter", {"adapter"}),
        ("gpt2", "norm1", "s3delta", "full", {"norm"}),
        ("t5", "q", "gate-lora gate-bias", "lora", {"lora", "bias"}),
    ],
)
def test_the_candidates_that_matter_are_found(family, site, what, kind, found):
    for seed in (0, 1):
        rows, history = planted(family, site, what, kind, seed)
        best, rest = rows[: len(found)], rows[len(found) :]
        assert {(r["kind"], r["site"], r["layer"], r["kept"]) for r in best} == {(k, site, 0, True) for k in found}
        assert len({round(r["p"], 5) for r in rest}) == 1, "the gates of the others never move"
        assert min(r["p"] for r in best) > 0.4 > 0.26 > rest[0]["p"] and history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("signs", [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
def test_deltas_learn_on_one_batch_and_gates_on_the_next(signs):
    """What helps in the batches of both is let in; what helps in those of the deltas alone is shut out."""
    rows, _ = planted("roberta", "v", "gate-lora", "lora", signs=signs)
    found = rows[0 if signs[0] == signs[1] else -1]
    assert (found["site"], found["layer"]) == ("v", 0)
    assert found["p"] > 0.5 if signs[0] == signs[1] else found["p"] < 0.1 and not found["kept"]


def test_a_step_of_the_gates_leaves_the_deltas_where_they_are(monkeypatch):
    m, still_there, moved, asked = tiny.model(), [], [], []

    class Spy(gates.Search):
        def after_step(self, step, steps):
            now, a = [p.detach().clone() for p in m.parameters()], self.a.detach().clone()
            super().after_step(step, steps)
            still_there.append(all(p.equal(was) for p, was in zip(m.parameters(), now, strict=True)))
            moved.append(not self.a.equal(a))

    monkeypatch.setattr(gates, "Search", Spy)
    searched(m, attached(m), batches=(asked.append(batch) or batch for batch in stream(m)))
    assert still_there == moved == [True] * BEFORE and len(asked) == 2 * BEFORE


def test_same_seed_same_structure():
    found = {}
    for run, (seed, noise) in enumerate([(0, 0), (0, 0), (0, 1), (1, 0)]):
        m = tiny.model()
        undo = attached(m, seed=seed)
        first = kept(undo)
        searched(m, undo, seed=noise)
        found[run] = first, [r["p"] for r in structure(m, undo)], stored(undo)
    assert found[0][:2] == found[1][:2] and same(found[0][2], found[1][2])
    assert found[0][0] == found[2][0] != found[3][0], "before the data the seed alone decides"
    assert found[0][1] != found[2][1] and found[0][1] != found[3][1]


def test_a_batch_in_parts_gives_the_same_structure():
    found, report = [], {}
    for accumulate in (1, 2):
        m = still(tiny.model())
        undo = searched(m, attached(m, before=3), accumulate=accumulate, report=report)
        found.append(torch.tensor([r["p"] for r in structure(m, undo)]))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)
    assert report["looking_bytes"] > 0
