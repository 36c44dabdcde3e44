"""S³Delta: the search keeps to its budget, finds what matters, leaves nothing behind, and its structure travels."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

import peftlab as pl
from peftlab.methods import gates
from peftlab.structures import structure
from peftlab.training import fit, look, machine

FAMILIES = ("roberta", "gpt2", "t5")
GATES = ("gate-lora", "gate-adapter", "gate-bias", "gate-norm")
BEFORE = 6


def still(m):
    """A model without dropout."""
    for d in m.modules():
        if isinstance(d, nn.Dropout):
            d.p = 0.0
    return m


def attached(m, what="s3delta", seed=0, **settings):
    rows = [dict(method=name, settings=dict(before=BEFORE) | settings) for name in what.split()]
    return pl.attach(m, rows, seed=seed)


def stream(m):
    """Always another batch."""
    return (tiny.batch(m, seed=i) for i in itertools.count())


def searched(m, undo, seed=0, batches=None, accumulate=1, report=None):
    """Only the search, no training."""
    with machine(accumulate=accumulate) as accelerator:
        torch.manual_seed(seed)
        look(m, batches or stream(m), undo.deltas, accelerator, report)
    return undo


def kept(undo):
    return [d.kept for d in undo.deltas]


def stored(undo):
    return {f"{i}.{n}": t.detach().clone() for i, d in enumerate(undo.deltas) for n, t in d.own().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


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


# After the search ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_rewound_and_the_backbone_untouched(family):
    m = tiny.model(family)
    before, y = {n: t.clone() for n, t in m.state_dict().items()}, tiny.logits(m)
    undo = attached(m)
    drawn = [{n: t.clone() for n, t in d.start.items()} for d in undo.deltas]
    searched(m, undo)
    assert torch.equal(tiny.logits(m), y), "the head too is where it was"
    for d, first in zip(undo.deltas, drawn, strict=True):
        assert d.start is None and d.z is None
        for n, t in first.items() if d.kept else ():
            assert torch.equal(getattr(d, n), t), "kept ones begin as they were drawn"
    undo()
    assert same(before, m.state_dict())


def test_only_what_is_kept_learns_is_stored_and_acts():
    m = tiny.model()
    pl.set_head(m, "frozen")
    undo = attached(m)
    losses = [
        row["loss"] for row in fit(m, repeated(m), undo.deltas, lr=1e-2, steps=30, every=1, weight_decay=0.1)
    ]
    first, given = undo.deltas[0], torch.randn(2, 32)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]) and {*kept(undo)} == {True, False}
    assert set(stored(undo)) == {"0.v", "0.structure"} and pl.trainable(m) == [first.v]
    parts = [range(len(first.v))[part] for d in undo.deltas for part in d.part.values()]
    used = [i for part in parts for i in part]
    assert used == [*range(sum(d.size for d in undo.deltas if d.kept))], "no number is anyone else's"
    assert not first.v[len(used) :].any(), "what is left of the budget stays 0"
    y = tiny.logits(m.eval())
    for d in undo.deltas:
        assert d.kept or (d(given) is given and not any(hasattr(d, n) for n in "A B D U b d".split()))
        d.on = False
        felt = not torch.allclose(tiny.logits(m), y, atol=1e-6)
        assert felt == d.kept or isinstance(d, gates.GateBias), "a bias of all keys is never felt"
        d.on = True


def repeated(m):
    return itertools.repeat(tiny.batch(m))


def test_training_looks_once():
    m = tiny.model()
    undo, looks = attached(m), []
    for _ in range(2):
        list(fit(m, repeated(m), undo.deltas, lr=1e-2, steps=2))
        looks.append((kept(undo), len(undo.deltas[0].history)))
    assert looks[0] == looks[1] and looks[0][1] == 2


def test_an_interrupted_search_leaves_the_random_structure_and_is_made_again():
    m = tiny.model()
    undo = attached(m)
    before, random = stored(undo), kept(undo)

    def stopping():
        yield from itertools.islice(stream(m), 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(m, undo, batches=stopping())
    assert same(before, stored(undo)) and kept(undo) == random and undo.deltas[0].v.requires_grad
    assert len([*undo.deltas[0].parameters()]) == 1 and sum(1 for d in undo.deltas for _ in d.parameters()) == 1
    tiny.train(m, 2)
    searched(m, undo)
    assert kept(undo) != random


# Files and copies ----------------------------------------------------------------------------------


def trained(family, seed=0):
    m = tiny.model(family)
    undo = searched(m, attached(m, seed=seed))
    tiny.train(m, 4)
    return m.eval(), undo


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_brings_its_structure_with_it(family, tmp_path):
    m, undo = trained(family)
    y, found = tiny.logits(m), kept(undo)
    pl.save(m, undo, tmp_path)
    fresh = tiny.model(family)
    assert kept(attached(tiny.model(family))) != found, "the random one is another"
    again = pl.load(fresh, tmp_path)
    assert torch.equal(tiny.logits(fresh), y) and kept(again) == found and same(stored(undo), stored(again))
    assert {r["p"] for r in structure(fresh, again)} == {None}
    searched(fresh, again)
    assert torch.equal(tiny.logits(fresh), y), "it is not looked for again"
    other = tiny.model(family)
    there = attached(other, seed=4)
    other.load_state_dict(m.state_dict())
    assert torch.equal(tiny.logits(other), y) and kept(there) == found


def test_a_copy_searches_and_learns_by_itself():
    m = tiny.model()
    undo = attached(m)
    twin, y, was = copy.deepcopy(m), tiny.logits(m), stored(undo)
    copies = [d for d in twin.modules() if isinstance(d, gates.Gate)]
    searched(twin, SimpleNamespace(deltas=copies[0].peers))
    tiny.train(twin, 4)
    assert same(was, stored(undo)) and torch.equal(tiny.logits(m), y)
    assert kept(undo) != [d.kept for d in copies[0].peers]
    assert torch.equal(tiny.logits(copy.deepcopy(twin)), tiny.logits(twin)) and not torch.equal(tiny.logits(twin), y)


def test_what_is_merged_keeps_its_structure():
    m = tiny.model().eval()
    undo = searched(m, attached(m, "gate-lora gate-norm"))
    tiny.train(m, 4)
    y, found = tiny.logits(m), kept(undo)
    unmerge = pl.merge(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-5) and not any(isinstance(d, pl.Delta) for d in m.modules())
    again = unmerge()
    assert torch.allclose(tiny.logits(m), y, atol=1e-5) and kept(again) == found


# What a lab asks -----------------------------------------------------------------------------------


def test_the_rows_of_a_structure():
    m = tiny.model("t5")
    rows = structure(m, attached(m))
    assert len(rows) == len({(r["name"], r["kind"]) for r in rows}) == 85
    assert {(r["kind"], r["site"]) for r in rows} == {
        *((kind, site) for kind in ("lora", "bias") for site in "q k v o up down".split()),
        *(("adapter", site) for site in ("o", "down")),
        *(("norm", site) for site in ("norm1", "norm2")),
    }
    for r in rows:
        place = m.get_submodule(r["name"])
        wide = sum(place.weight.shape)
        n = dict(lora=4 * wide, bias=len(place.weight), norm=len(place.weight), adapter=(2 * 4 + 1) * 32 + 4)
        assert r["numbers"] == n[r["kind"]] and (r["layer"], r["site"]) == (place.layer, place.site)
    m = tiny.model()
    with pytest.raises(pl.PeftlabError, match="none of these deltas has a gate that chooses it; attach s3delta first"):
        structure(m, pl.attach(m, "lora"))
