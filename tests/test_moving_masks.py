"""Masks that move while all learns: gates, random shares, mixtures with the start, thresholds."""

import pytest
import tiny
import torch
from looking import WEIGHTS, attached, best_of, chosen, differs, flat, graded, looked, still, stream, values

import peftlab as pl
from peftlab.training import fit


def test_a_penalty_closes_gates(monkeypatch):
    cls, shares = pl.METHODS["diff-pruning"].cls, {}
    penalty = cls.penalty

    def spy(self):
        cost = penalty(self)
        if self.D is not None:
            seen.append(float((torch.sigmoid(self.a) * torch.sigmoid(self.b)).detach().mean()))
            assert float(cost.detach()) == pytest.approx(self.weight * seen[-1] / len(self.peers))
        return cost

    monkeypatch.setattr(cls, "penalty", spy)
    for weight in (0.0, 10.0):
        m, seen = still(tiny.model()), []
        first = chosen(looked(m, attached(m, "diff-pruning", before=100, penalty=weight)))
        n = len(first.peers)
        shares[weight] = sum(seen[:n]) / n, sum(seen[-n:]) / n
        assert first.D is first.a is first.b is None and first.history[-1]["loss"] < first.history[0]["loss"]
    assert shares[0.0][0] == shares[10.0][0] > 0.98
    assert shares[10.0][1] < 0.8 < 0.98 < shares[0.0][1]


def test_diff_pruning_keeps_its_largest_changes(monkeypatch):
    cls, found = pl.METHODS["diff-pruning"].cls, []
    settle = cls.settle
    monkeypatch.setattr(cls, "settle", lambda self, I, values: found.append(values) or settle(self, I, values))
    m = still(tiny.model())
    first = chosen(looked(m, attached(m, "diff-pruning", before=10)))
    changes = flat(found[0])
    assert best_of(changes.abs(), first.I) and first.v.equal(changes[first.I.long()])
    assert first.v.min() < 0 < first.v.max(), "by their size, not their sign"


# What is not sparse -------------------------------------------------------------------------------


def gradients(m, undo, draws):
    """∂L/∂D of the same batch again and again (n …), all layers end to end."""
    found = []
    for _ in range(draws):
        loss = m(**tiny.batch(m)).loss
        found.append(flat(torch.autograd.grad(loss, [d.D for d in undo.deltas])))
    return torch.stack(found)


def test_child_tuning_f_lets_a_random_share_learn():
    """Every step M/p ⊙ g with M drawn anew, so that its mean is g; the output knows nothing of M."""
    m, p, n = still(tiny.model()), 0.3, 100
    g = flat(t.grad for t in graded(tiny.model()))
    undo = pl.attach(m, pl.recipe("child-tuning-f", p=p))
    y = tiny.logits(m)
    torch.manual_seed(0)
    found = gradients(m.train(), undo, n)
    assert tiny.logits(m).equal(y)
    on = found.abs() > 0.5 * g.abs()
    assert torch.allclose(found, on * g / p, rtol=1e-3, atol=1e-6)
    sure = g.abs() > 1e-5  # elsewhere rounding decides
    share = float(on[:, sure].float().mean())
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / n / int(sure.sum())) ** 0.5)
    assert not (on[1:] == on[:-1]).all(1).any(), "no mask comes twice"
    error = (found.mean(0) - g)[sure] / (g[sure].abs() * ((1 - p) / p / n) ** 0.5)
    assert error.abs().max() < 6 and error.square().mean() == pytest.approx(1.0, abs=0.1)
    list(fit(m, stream(tiny.batch(m)), undo.deltas, lr=1e-3, steps=20))
    assert (flat(d.D for d in undo.deltas) != 0).float().mean() > 0.95, "in the end every entry has moved"


def test_mixout_mixes_and_its_mean_is_the_change():
    m, p, n = still(tiny.model()), 0.7, 400
    undo = pl.attach(m, pl.recipe("mixout", p=p))
    d, place = undo.placed[0]
    W = place.parametrizations.weight.original
    torch.manual_seed(0)
    with torch.no_grad():
        d.D.normal_()
        m.train()
        drawn = torch.stack([place.weight.clone() for _ in range(n)]) - W
        m.eval()
        assert place.weight.equal(W + d.D)
        at_W = drawn == 0
        assert at_W.float().mean() == pytest.approx(p, abs=4 * (p * (1 - p) / at_W.numel()) ** 0.5)
        assert torch.allclose(drawn, ~at_W * d.D / (1 - p), atol=1e-5)
        error = (drawn.mean(0) - d.D) / (d.D.abs() * (p / (1 - p) / n) ** 0.5)
        assert error.abs().max() < 6 and error.square().mean() == pytest.approx(1.0, abs=0.15)
    undo()
    undo = pl.attach(m.train(), pl.recipe("mixout", p=0.0))
    with torch.no_grad():
        [d.D.normal_() for d in undo.deltas]
        assert torch.allclose(place.weight, W + undo.deltas[0].D), "nothing is reset"


def test_threshold_masks_switch_off_and_change_nothing_else():
    m = tiny.model()
    before = values(m)
    undo = pl.attach(m, "threshold-mask")
    assert not differs(m, before), "all are on"
    list(fit(m, stream(tiny.batch(m)), undo.deltas, lr=5e-3, steps=30, weight_decay=0.1))
    now = values(m)
    off = {n: t == 0 for n, t in now.items() if n.endswith("weight") and n in differs(m, before)}
    weights = {f"{n}.weight" for n, s in m.named_modules() if getattr(s, "site", None) in WEIGHTS.split()}
    head = set(pl.head_parameters(m))
    assert set(differs(m, before)) <= weights | head
    assert 0.02 < flat(off[n] for n in weights).float().mean() < 0.98
    for n in weights:
        assert now[n][~off[n]].equal(before[n][~off[n]])


def test_a_part_of_the_modules_learns_and_nothing_else():
    """The last layers, or modules chosen at random: all of their tensors, and the head."""
    sites = "q k v o up down norm1 norm2"
    for name, settings in (("last-layer", dict(n=1)), ("selective", dict(p=0.2))):
        m = tiny.model()
        before, names = values(m), {id(s): n for n, s in m.named_modules()}
        undo = pl.attach(m, pl.recipe(name, **settings))
        list(fit(m, stream(tiny.batch(m)), undo.deltas, lr=1e-3, steps=3))
        head = set(pl.head_parameters(m))
        free = {names[id(s)] for d, s in undo.placed if d.places}
        last = {names[id(s)] for s in pl.sites(m, sites, layers=[1])}
        wanted = last if name == "last-layer" else free
        assert {n.rpartition(".")[0] for n in set(differs(m, before)) - head} == wanted
        assert len(wanted) == (len(last) if name == "last-layer" else round(0.2 * len(pl.sites(m, sites))))
        undo()
        assert set(differs(m, before)) == head
