"""Pruned deltas: how many numbers stay, which, that the others are nothing, and that all begins as it was drawn."""

import copy
import itertools
import math

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

import peftlab as pl
from peftlab.methods import get
from peftlab.methods.pruned import PRUNERS, Pruned
from peftlab.training import fit, look, machine

FAMILIES = "roberta", "gpt2", "t5"
MAM = "u-mam", "s-mam"
QUICK = {"sparse-adapter": dict(r=4, n=2), "u-mam": dict(n=3, r=4, before=4), "s-mam": dict(n=3, r=4, before=4)}
SMALL = {s: ("sparse-adapter", dict(score=s)) for s in PRUNERS} | {name: (name, {}) for name in MAM}
each = pytest.mark.parametrize("what", SMALL)
everywhere = pytest.mark.parametrize("family", FAMILIES)


def attached(what, family="roberta", **settings):
    """(model without dropout, attachment, the delta that has the list)"""
    m, (name, own) = tiny.model(family), SMALL[what]
    for d in m.modules():
        d.p = 0.0 if isinstance(d, nn.Dropout) else getattr(d, "p", None)
    undo = pl.attach(m, pl.recipe(name, **QUICK[name] | own | dict(p=0.3) | settings))
    return m, undo, undo.deltas[0].peers[0]


def seen(m):
    return tiny.batch(m), tiny.batch(m, seed=2)


def looked(m, undo):
    """Only the look at the data."""
    with machine() as accelerator:
        look(m, itertools.cycle(seen(m)), undo.deltas, accelerator)


def trained(m, deltas, steps=3, lr=1e-2, **more):
    with machine() as accelerator:
        return list(fit(m, itertools.cycle(seen(m)), deltas, lr, steps, accelerator=accelerator, **more))


class Watch:
    """Σ |Δv·∂L/∂v| over the steps, from where v was, and Σ |∂L/∂v|."""

    def __init__(self, v):
        self.v, self.before, self.total, self.felt = v, v.detach().clone(), 0, 0

    def after_step(self, step, steps):
        self.total = self.total + ((self.v - self.before) * self.v.grad).detach().abs()
        self.felt = self.felt + self.v.grad.abs()


def numbers(first):
    """All that the list is about, end to end, with its zeros; `forward` of a prefix reads less."""
    return torch.cat([Pruned.matrix(d, name).detach().flatten() for d, name in first.held()])


def drawn(what, family="roberta", **settings):
    """A model where everything stays: its v are all numbers, as they were drawn."""
    return attached(what, family, **settings | dict(p=1.0))


def best(scores, k):
    return scores.argsort(descending=True, stable=True)[:k].sort().values


# How many, and what becomes of the others -----------------------------------------------------------


@everywhere
@each
def test_only_the_numbers_that_stay_are_trained_and_stored(what, family, tmp_path):
    m, undo, first = attached(what, family)
    pl.set_head(m, "frozen")
    whole = drawn(what, family)[2].v
    k, biases = math.floor(0.3 * len(whole)), sum(d.c.numel() + d.e.numel() for d in undo.deltas if "c" in d.own())
    assert pl.counts(m)["delta"] == k + biases and (what in MAM) == (biases == 0)
    report = {}
    looked(m, undo)
    I, start = first.I.long(), numbers(first)
    assert len(I) == len(I.unique()) == len(first.v) == k
    assert start[I].equal(whole[I]) and start.count_nonzero() == whole[I].count_nonzero(), "they start as drawn"
    trained(m, [*undo.deltas, watch := Watch(first.v)], weight_decay=0.5, report=report)
    end = numbers(first)
    assert not end.index_fill(0, I, 0.0).any(), "and the others are 0 after training"
    assert (end != start)[I][watch.felt > 0].all() and (watch.felt > 0).float().mean() > 0.3
    assert report["gradient_bytes"] == 4 * (k + biases)
    pl.save(m, undo, tmp_path)
    stored = {n: t for n, t in load_file(tmp_path / "delta.safetensors").items() if not n.startswith("head.")}
    assert sum(t.numel() for n, t in stored.items() if not n.endswith(".I")) == k + biases
    assert stored["delta.0.I"].dtype == torch.int32 and stored["delta.0.I"].equal(first.I)


@each
def test_what_was_found_outlives_copies_and_files(what, tmp_path):
    m, undo, first = attached(what)
    blind = first.I.clone()
    trained(m, undo.deltas)
    assert first.I.equal(blind) == (what in ("random", "magnitude", "synflow")), "those need no data"
    y = tiny.logits(m)
    twin = copy.deepcopy(m)
    assert tiny.logits(twin).equal(y)
    pl.save(m, undo, tmp_path)
    fresh = tiny.model()
    again = pl.load(fresh, tmp_path)
    assert tiny.logits(fresh).equal(y)
    looked(fresh, again)
    assert tiny.logits(fresh).equal(y), "a list from a file is not looked for again"
    trained(twin, [d for d in twin.modules() if isinstance(d, Pruned)])
    assert not tiny.logits(twin).equal(y) and tiny.logits(m).equal(y)


def test_a_wider_adapter_that_is_sparser_has_as_many_entries():
    """Large-Sparse: what differs is c, which is as long as the bottleneck is wide."""
    found = []
    for times in (1, 2, 3):
        m, undo, first = attached("snip", r=4 * times, p=0.6 / times)
        found.append((len(first.v), pl.counts(m)["delta"] - sum(d.c.numel() for d in undo.deltas)))
    assert max(found) == min(found) == (math.floor(0.6 * 4 * 2 * 4 * 32), found[0][0] + 4 * 32)


@pytest.mark.parametrize("how", ["tensor", "row", "n-of-m", "layer"])
def test_among_what_is_chosen(how):
    _, _, first = attached("magnitude", "t5", select=how, p=0.25)
    there = [d.matrix(name) != 0 for d, name in first.held()]
    if how == "layer":
        layers = {d.at[0].layer: [] for d in first.peers}
        for (d, _), t in zip(first.held(), there, strict=True):
            layers[d.at[0].layer].append(t.flatten())
        shares = [torch.cat(t).float().mean() for t in layers.values()]
        assert sorted(shares)[:-2] == [0.0] * (len(shares) - 2) and sum(shares) > 0
    else:
        cut = {"tensor": lambda t: t.view(1, -1), "row": lambda t: t, "n-of-m": lambda t: t.view(-1, 4)}[how]
        assert all((cut(t).float().mean(1) == 0.25).all() for t in there)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(pl.PeftlabError, match="density p = 0.001 picks 0 of the"):
        attached("snip", r=1, p=0.001)


# Which numbers: the scores --------------------------------------------------------------------------


def test_scores_choose_differently():
    chosen = {}
    for score in PRUNERS:
        m, undo, first = attached(score)
        looked(m, undo)
        chosen[score] = set(first.I.tolist())
    k = len(chosen["random"])
    assert all(len(a & b) < 0.95 * k for a, b in itertools.combinations(chosen.values(), 2))


def loss_of(m, first, batches):
    """The sum of the losses as a function of all numbers."""
    (name,) = (n for n, p in m.named_parameters() if p is first.v)
    state = {n: p.detach() for n, p in m.named_parameters()}
    return lambda v: sum(torch.func.functional_call(m, state | {name: v}, kwargs=b).loss for b in batches)


@everywhere
@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_snip_and_grasp_are_their_formulas(score, family):
    m, _, first = drawn(score, family)
    v, loss = first.v.detach(), loss_of(m, first, seen(m))
    g = torch.func.grad(loss)(v)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        Hg = torch.autograd.functional.hvp(loss, v, g)[1]
        step = 1e-3 / g.norm()
        norm = lambda v: torch.func.grad(loss)(v).square().sum() / 2
        slope = (norm(v * (1 + step)) - norm(v * (1 - step))) / (2 * step)  # all entries a little larger
    wanted = dict(snip=(v * g).abs(), grasp=v * Hg)[score]
    assert score == "snip" or wanted.sum() == pytest.approx(float(slope), rel=0.1)
    m, undo, first = attached(score, family)
    looked(m, undo)
    I = first.I.long()
    left = torch.ones(len(v), dtype=torch.bool).index_fill(0, I, False)
    assert wanted[I].min() >= wanted[left].max() - 1e-6 * wanted.abs().max()
    assert len(set(I.tolist()) & set(best(wanted, len(I)).tolist())) >= len(I) - 2


def test_synflow_is_what_flows_through_each_adapter():
    """By autograd on ones, all weights positive; what enters an entry of the bottleneck leaves it."""
    _, undo, first = drawn("synflow")
    with torch.no_grad():
        first.v.abs_()
    ones = torch.ones(1, 1, 32)
    (grad,) = torch.autograd.grad(sum((d(ones, ones) - ones).sum() for d in undo.deltas), [first.v])
    scores = first.v.detach() * grad
    D, U = scores[:256].view(2, 4, 32)[0], scores[128:256].view(32, 4)
    assert torch.allclose(D.sum(1), U.sum(0)) and D.std() > 0
    found = attached("synflow")[2].I.long()
    assert found.equal(best(scores, len(found)))


# Which numbers: after all have learnt ---------------------------------------------------------------


def units(first):
    """unit -> its positions: a row of P_k and P_v; a row of D, a column of U and an entry of c; e."""
    found, position = {}, itertools.count()
    for i, d in enumerate(first.peers):
        for name in d.matrices:
            for at in itertools.product(*map(range, d.parts[name][3])):
                unit = (i, "e") if name == "e" else (i, at[-1] if name == "U" else at[0])
                found.setdefault(unit, []).append(next(position))
    return list(found.values())


@everywhere
@pytest.mark.parametrize("what", MAM)
def test_what_was_important_while_all_learnt_stays(what, family):
    """The dense training is done again with a list of everything; then entries, or units by their mean."""
    m, undo, whole = drawn(what, family)
    watch, steps = Watch(whole.v), QUICK[what]["before"]
    trained(m, [watch], steps, get("mam").lr)
    scores = watch.total
    m, undo, first = attached(what, family)
    blind = first.I.clone()
    looked(m, undo)
    I = first.I.long()
    assert first.history[-1]["step"] == steps and not first.I.equal(blind) and not any(d.waits for d in undo.deltas)
    if what == "u-mam":
        left = torch.ones(len(scores), dtype=torch.bool).index_fill(0, I, False)
        assert scores[I].min() >= 0.99 * scores[left].max() > 0
        kinds = {type(d).__name__ for d in undo.deltas if any(a < b for a, b, *_ in d.parts.values())}
        assert kinds == {"PrunedPrefix", "PrunedParallel"}, "they share the budget"
    else:
        ranked = sorted(units(first), key=lambda unit: -scores[unit].mean())
        assert I.tolist() == sorted(sum(ranked, [])[: len(I)])


@everywhere
def test_units_stay_or_go_as_a_whole(family):
    """Of the last one what the budget leaves; entries do not care."""
    split = {}
    for what in MAM:
        m, undo, first = attached(what, family)
        looked(m, undo)
        kept = set(first.I.tolist())
        split[what] = sum(0 < len(kept & set(unit)) < len(unit) for unit in units(first))
    assert split["s-mam"] <= 1 < split["u-mam"]


def only(first, *names):
    """Let numbers of these matrices alone stay, the first ones."""
    sizes = [d.parts[name][3].numel() for d, name in first.held()]
    starts = [0, *itertools.accumulate(sizes)]
    free = [range(a, a + n) for (_, name), a, n in zip(first.held(), starts, sizes, strict=False) if name in names]
    first.settle(torch.tensor(list(itertools.chain(*free))[: len(first.I)]))


@everywhere
def test_a_prefix_of_which_nothing_is_left_takes_no_attention(family):
    m, undo, first = attached("s-mam", family)
    y = tiny.logits(tiny.model(family))
    assert not torch.allclose(tiny.logits(m), y, atol=1e-5)
    only(first, "D", "c", "U", "e")
    assert tiny.logits(m).equal(y), "and U is 0 at the start"
    only(first, "P_v", "D", "c", "U", "e")
    lengths = [len(d.P_k) for d in undo.deltas if "P_k" in d.matrices]
    assert lengths[0] == 3 and not torch.allclose(tiny.logits(m), y, atol=1e-5)


@pytest.mark.parametrize("what", MAM)
def test_all_is_rewound(what):
    """Also the head, and what learns beside it; a look that was broken off has changed nothing."""
    m, undo, first = attached(what)
    pl.attach(m, "bitfit")
    pl.set_head(m, "trained")
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in m.named_parameters()}
    kept = lambda: {n for n, p in m.named_parameters() if p.equal(before[n][0]) and p.requires_grad == before[n][1]}
    with pytest.raises(RuntimeError), machine() as accelerator:
        look(m, iter(seen(m)), undo.deltas, accelerator)  # two batches, where more are wanted
    assert first.waits and kept() == set(before)
    looked(m, undo)
    (own,) = (n for n, p in m.named_parameters() if p is first.v)
    assert not first.waits and kept() == set(before) - {own} and first.v.requires_grad
    assert first.history[0]["loss"] != first.history[-1]["loss"], "all had learnt"


def test_only_what_is_pruned_alike_has_one_list():
    m = tiny.model()
    rows = pl.recipe("u-mam", p=0.3)
    undo = pl.attach(m, [*rows, *pl.recipe("pruned-prefix", p=0.1)])
    lists = [d for d in undo.deltas if "v" in d.own()]
    assert [len(d.peers) for d in lists] == [4, 2] and {d.row for d in lists[0].peers} == {0, 1}
    assert [len(d.v) for d in lists] == [math.floor(0.3 * (2 * 2 * 8 * 32 + 2 * 552)), math.floor(0.1 * 1024)]
