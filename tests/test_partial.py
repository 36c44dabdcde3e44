"""The partial family: what is chosen, that nothing else changes, what looking does, and what it costs."""

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from looking import (
    ALL,
    BIASES,
    NO_LOOK,
    WEIGHTS,
    attached,
    best_of,
    chosen,
    differs,
    flat,
    graded,
    looked,
    still,
    stream,
    values,
)
from safetensors.torch import load_file
from torch import nn

import peftlab as pl
from peftlab.masks import SELECTIONS, select
from peftlab.methods import dense_first
from peftlab.training import fit, schedule

# Only ⌊p·m⌋ entries change -------------------------------------------------------------------------


class Watch:
    """Which of the changes ever got a gradient."""

    def __init__(self, undo):
        self.first, self.seen = chosen(undo), 0

    def after_step(self, step, steps):
        self.seen = self.seen + self.first.v.grad.abs()


@pytest.mark.parametrize("what", ALL)
def test_only_the_chosen_entries_change_and_only_they_are_stored(what, tmp_path):
    """With weight decay, after a look that lets all weights learn: the rest is θ⁰ bit for bit."""
    p, tensor = (0.5, "bias") if what in BIASES else (0.05, "weight")
    m = tiny.model()
    pl.set_head(m, "frozen")
    before, report = values(m), {}
    undo = attached(m, what, p=p)
    watch, batch = Watch(undo), tiny.batch(m)
    assert list(fit(m, stream(batch), [*undo.deltas, watch], lr=1e-2, steps=3, weight_decay=0.5, report=report))
    first, k = chosen(undo), math.floor(p * sum(getattr(place, tensor).numel() for _, place in undo.placed))
    names = {id(place): n for n, place in m.named_modules()}
    now = differs(m, before)
    assert set(now) <= {f"{names[id(place)]}.{tensor}" for _, place in undo.placed}
    entries = [now.get(f"{names[id(place)]}.{tensor}", torch.zeros(W.shape).bool())
               for (_, place), W in zip(undo.placed, first.weights(), strict=True)]  # fmt: skip
    changed, I = set(flat(entries).nonzero()[:, 0].tolist()), first.I.long()
    assert len(I) == len(set(I.tolist())) == k and changed <= set(I.tolist())
    assert changed >= set(I[watch.seen > 0].tolist()) and len(changed) > 0.9 * k
    assert tensor == "bias" or len(changed) == k, "a bias of keys has no gradient, every weight has one"
    # the optimizer knows two moments of each change and one count of steps
    assert (report["gradient_bytes"], report["optimizer_bytes"]) == (4 * k, 8 * k + 4)
    assert ("looking_bytes" in report) == (what not in NO_LOOK)
    pl.save(m, undo, tmp_path)
    stored = {n: t for n, t in load_file(tmp_path / "delta.safetensors").items() if not n.startswith("head.")}
    assert {n: (t.dtype, t.shape) for n, t in stored.items()} == {
        "delta.0.I": (torch.int32, (k,)),
        "delta.0.v": (torch.float32, (k,)),
    }
    undo()
    assert not differs(m, before)


@pytest.mark.parametrize("how", SELECTIONS)
def test_a_recipe_selects_as_its_setting_says(how):
    m = tiny.model()
    where = "q o" if how == "head" else WEIGHTS
    W = [s.weight.detach().clone().abs() for s in pl.sites(m, where)]
    undo = pl.attach(m, pl.recipe("magnitude-mask", p=0.25, select=how, where=where))
    assert chosen(undo).I.tolist() == select(W, 0.25, how, pl.sites(m, where)).tolist()
    looked_at = pl.attach(m, pl.recipe("sam", p=0.25, select=how, where=where, n=1))
    g = [t.grad.abs() for t in graded(tiny.model(), where)]
    assert chosen(looked(m, looked_at)).I.tolist() == select(g, 0.25, how, pl.sites(m, where)).tolist()


# Looking: by hand ---------------------------------------------------------------------------------


def by_hand(m, tensors, lr, steps, clip=1.0):
    """`fit` written out: AdamW without decay, a warm-up, all gradients clipped together; the head learns as well."""
    tensors = [t.requires_grad_() for t in tensors]
    learn = [*tensors, *pl.head_parameters(m).values()]
    before, total = [t.detach().clone() for t in tensors], [torch.zeros_like(t) for t in tensors]
    optimizer, batches = torch.optim.AdamW(learn, weight_decay=0.0), stream(tiny.batch(m), tiny.batch(m, seed=2))
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = lr * schedule(step, steps)
        m(**next(batches)).loss.backward()
        nn.utils.clip_grad_norm_(learn, clip)
        optimizer.step()
        total = [a + ((t - b) * t.grad).abs() for a, t, b in zip(total, tensors, before, strict=True)]
        optimizer.zero_grad()
    return [(t - b).detach() for t, b in zip(tensors, before, strict=True)], [t.detach() for t in total]


@pytest.mark.parametrize("what", ["lt-sft", "mask moved once"])
def test_a_lottery_ticket_is_what_moves_most(what):
    twin = still(tiny.model())
    changes, _ = by_hand(twin, [s.weight for s in pl.sites(twin, WEIGHTS)], pl.get("full").lr, 8)
    m = still(tiny.model())
    first = chosen(looked(m, attached(m, what, before=8)))
    assert best_of(flat(changes).abs(), first.I) and not best_of(flat(changes).abs(), first.I + 1)
    assert len(first.history) >= 2 and not first.v.any()


@pytest.mark.parametrize("what", BIASES)
def test_sparse_bitfit_takes_the_important_biases(what):
    """Σ |Δb·∂L/∂b| by hand; S-BitFit takes whole vectors, those with the largest mean."""
    where = pl.get("bitfit").where
    twin = still(tiny.model())
    held = [s for s in pl.sites(twin, where) if getattr(s, "bias", None) is not None]
    _, total = by_hand(twin, [s.bias for s in held], pl.get("bitfit").lr, 8)
    m = still(tiny.model())
    I = chosen(looked(m, attached(m, what, before=8, p=0.3))).I
    if what == "s-bitfit":
        total = [t.mean().expand(t.shape) for t in total]
        sizes = torch.tensor([len(t) for t in total])
        inside = torch.zeros(sizes.sum()).index_fill(0, I.long(), 1.0).split(sizes.tolist())
        assert sum(0 < float(t.mean()) < 1 for t in inside) <= 1 < sum(float(t.mean()) == 1 for t in inside)
    assert best_of(flat(total), I) and len(I) == math.floor(0.3 * len(flat(total)))


@pytest.mark.parametrize("what", ["lt-sft", *BIASES, "mask moved once", "sam", "fish", "diff-pruning"])
def test_all_is_rewound_after_a_look(what):
    """Weights, embeddings and head are θ⁰ bit for bit; only diff pruning keeps values and goes on with its head."""
    m = tiny.model()
    before, undo = values(m), attached(m, what)
    looked(m, undo)
    goes_on = what == "diff-pruning"
    assert chosen(undo).v.any() == goes_on
    undo.toggle(False)
    assert set(differs(m, before)) == (set(pl.head_parameters(m)) if goes_on else set())
    assert {n for n, p in m.named_parameters() if p.requires_grad} == {
        *pl.head_parameters(m),
        *(n for n, p in m.named_parameters() if p is chosen(undo).v),
    }


# Schedules ----------------------------------------------------------------------------------------


@pytest.fixture
def rounds(monkeypatch):
    """What the projections of a look leave: for each round how many entries are kept, and the changes after it."""
    found, project = [], dense_first.project

    def spy(weights, changes, kept):
        start = [W.detach() - D for W, D in zip(weights, changes, strict=True)]
        project(weights, changes, kept)
        left = flat(W.detach() - b for W, b in zip(weights, start, strict=True))
        found.append(SimpleNamespace(kept=kept, left=left, changes=flat(changes)))

    monkeypatch.setattr(dense_first, "project", spy)
    return found


@pytest.mark.parametrize("plan", ["gradual", "re-projected"])
def test_the_density_of_each_round(plan, rounds):
    m = still(tiny.model())
    first = chosen(looked(m, attached(m, "child-pruning", p=0.01, plan=plan, before=9, period=3)))
    n = sum(W.numel() for W in first.weights())
    shares = [0.01 ** (1 / 3), 0.01 ** (2 / 3), 0.01] if plan == "gradual" else [0.01] * 3
    assert [len(r.kept) for r in rounds] == [math.floor(n * p) for p in shares]
    for r in rounds:
        inside = torch.zeros(n).index_fill(0, r.kept, 1.0).bool()
        assert best_of(r.changes.abs(), r.kept), "the largest changes are kept"
        assert r.left[inside].equal(r.changes[inside]) or torch.allclose(r.left, r.changes * inside, atol=1e-6)
        assert r.left[~inside].abs().max() < 1e-6 < r.left[inside].abs().min()
    assert first.I.tolist() == rounds[-1].kept.tolist()
    assert first.v.equal(rounds[-1].changes[rounds[-1].kept]), "the changes that are left are kept"


def test_the_loss_jumps_where_the_mask_is_projected():
    """The less is kept the more; the head, which is not projected, is frozen here."""
    jumps = {}
    for p in (0.002, 0.1, 1.0):
        m = still(tiny.model())
        pl.set_head(m, "frozen")
        history = chosen(looked(m, attached(m, "child-pruning", p=p, before=30, period=10))).history
        starts, ends = ([r["loss"] for r in history if r["step"] == s] for s in (1, 10))
        assert len(history) == 6 and len(starts) == len(ends) == 3, "three rounds of 10 steps, two rows each"
        jumps[p] = [start - end for start, end in zip(starts[1:], ends, strict=False)]
    assert min(jumps[0.002]) > max(jumps[0.1]) > min(jumps[0.1]) > max(jumps[1.0])
    assert min(jumps[0.002]) > 0.3 and max(jumps[1.0]) < 0


# Diff pruning -------------------------------------------------------------------------------------


def test_the_gates_are_hard_concrete():
    """P(z > 0) = σ(α), z is between 0 and 1, and without noise z is its median."""
    torch.manual_seed(0)
    gate = pl.METHODS["diff-pruning"].cls.gate
    for alpha in (-2.0, -0.3, 0.0, 1.0, 3.0):
        z = gate(SimpleNamespace(training=True), torch.full((20000,), alpha))
        open_ = 1 / (1 + math.exp(-alpha))
        assert float((z > 0).float().mean()) == pytest.approx(open_, abs=4 * (open_ * (1 - open_) / 20000) ** 0.5)
        assert z.min() == 0 and z.max() == 1 and ((z > 0) & (z < 1)).any()
        assert float(gate(SimpleNamespace(training=False), torch.tensor(alpha))) == pytest.approx(
            float(z.median()), abs=0.05
        )


def test_looking_is_not_cheap():
    """Who lets all weights learn holds more than a step of full fine-tuning, and no more than any mask later on."""

    def report(name, **settings):
        m, held = tiny.model(), {}
        pl.set_head(m, "frozen")
        undo = pl.attach(m, pl.recipe(name, where=WEIGHTS, **settings))
        list(fit(m, stream(tiny.batch(m)), undo.deltas, lr=1e-3, steps=2, report=held))
        return SimpleNamespace(**held)

    full, random, sam = report("full"), report("random-mask"), report("sam", n=1)
    ticket, pruned = report("lt-sft", before=2), report("diff-pruning", before=2)
    step = lambda r: r.saved_bytes + r.weight_bytes + r.gradient_bytes + r.optimizer_bytes
    assert step(random) < sam.looking_bytes < step(full) < ticket.looking_bytes < pruned.looking_bytes
    assert not hasattr(random, "looking_bytes")
    for r in (sam, ticket, pruned):
        assert step(r) == step(random) < step(full) and r.gradient_bytes < full.gradient_bytes / 100
