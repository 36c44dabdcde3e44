"""Several tasks: experts behind a gate, deltas that add, and a search for the weights of a new task."""

import pytest
import tiny
import torch

import peftlab as pl
from peftlab.checkpoint import kept_state
from peftlab.methods.multitask import alternate


def product(state, i):
    return state[f"{i}.B"] @ state[f"{i}.A"]


def drawn(attached, seed):
    """A state as training might leave it."""
    torch.manual_seed(seed)
    return {n: torch.randn_like(t) * 0.3 if n[-1] in "AB" else t for n, t in kept_state(attached).items()}


def learnt(name, task, steps=60):
    """A tiny model whose delta has learnt to answer `task` to everything, its attachment and the delta's state."""
    m = tiny.model("roberta").eval()
    undo = pl.attach(m, name)
    batch = tiny.batch(m) | dict(labels=torch.full((len(tiny.batch(m)["labels"]),), task))
    pl.set_head(m, "frozen")
    list(pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=1e-2, steps=steps))
    return m, undo, kept_state(undo)


def test_the_gate_of_moelora_lets_one_delta_do_two_tasks():
    """The same sentences with opposite labels: only the task tells them apart, and the head is frozen."""
    m = tiny.model("roberta").eval()
    undo = pl.attach(m, pl.recipe("moelora", n=4, tasks=2))
    pl.set_head(m, "frozen")
    batch = tiny.batch(m)
    other = batch | dict(labels=1 - batch["labels"])
    both = alternate(undo.deltas, iter(lambda: batch, None), iter(lambda: other, None))
    list(pl.fit(m, both, undo.deltas, lr=2e-2, steps=150))
    right = []
    for t, rows in enumerate((batch, other)):
        for d in undo.deltas:
            d.task = t
        right.append(float((m(**rows).logits.argmax(1) == rows["labels"]).float().mean()))
    assert min(right) > 0.9, right
    heard = [torch.softmax(undo.deltas[0].G @ e, 0) for e in undo.deltas[0].E]
    assert (heard[0] - heard[1]).abs().max() > 0.1, "the tasks listen to different experts"


def test_l_lora_is_linear_and_so_the_function_of_lora_fa():
    m = tiny.model("roberta").eval()
    undo = pl.attach(m, "l-lora")
    d, layer = undo.placed[0]
    x, y, s = torch.randn(3, 32), torch.zeros(3, layer.out_features), 2.0
    with torch.no_grad():
        d.A.normal_(), d.B.normal_()
        one = d(x, y)
        d.A.sub_(d.A0).mul_(s).add_(d.A0), d.B.mul_(s)
        assert torch.allclose(d(x, y), s * one, atol=1e-5) and torch.allclose(
            d(x, y), d.s * (x @ d.A0.T) @ d.B.T, atol=1e-5
        )


def test_mixing_lora_is_not_averaging_what_it_does():
    undo = pl.attach(tiny.model("roberta"), "lora")
    states, w = [drawn(undo, s) for s in (1, 2)], (0.7, -0.4)
    pl.mix(undo, states, w)
    now, n = kept_state(undo), 0
    crossed = sum(a * b * states[i][f"{n}.B"] @ states[j][f"{n}.A"] for i, a in enumerate(w) for j, b in enumerate(w))
    assert torch.allclose(product(now, n), crossed, atol=1e-5)
    plain = sum(a * product(s, n) for a, s in zip(w, states, strict=True))
    assert (product(now, n) - plain).norm() > 0.5 * plain.norm()


def test_task_arithmetic_is_exact_for_l_lora():
    m = tiny.model("roberta").eval()
    undo = pl.attach(m, "l-lora")
    start = kept_state(undo)
    states = [start] + [drawn(undo, s) | {n: t for n, t in start.items() if n[-2:] in ("A0", "B0")} for s in (1, 2)]
    d, layer = undo.placed[0]
    x, y = torch.randn(3, 32), torch.zeros(3, layer.out_features)
    outs = []
    for i in (1, 2):
        pl.mix(undo, [states[i]], [1.0])
        outs.append(d(x, y).detach())
    pl.mix(undo, states, [-1.0, 1.0, 1.0])
    assert torch.allclose(d(x, y), outs[0] + outs[1], atol=1e-4)


def test_lorahub_finds_the_module_that_fits_the_new_task():
    """Two modules, one of them of the very task: it gets the greater weight, and the loss is far below no module's."""
    (m, undo, zero), (_, _, one) = learnt("lora", 0), learnt("lora", 1)
    batch = tiny.batch(m) | dict(labels=torch.ones(len(tiny.batch(m)["labels"]), dtype=torch.long))
    loss = lambda: m(**batch).loss
    w = pl.lorahub(undo, [zero, one], loss)
    mixed = float(loss())
    undo.toggle(False)
    assert mixed < 0.5 * float(loss()) and w[1] > w[0] and all(abs(x) <= 1.5 for x in w)


def test_what_does_not_mix_is_refused_and_nothing_changes():
    m = tiny.model("roberta")
    undo = pl.attach(m, "l-lora")
    before = kept_state(undo)
    with pytest.raises(pl.PeftlabError, match="1 weights do not fit 2 deltas"):
        pl.mix(undo, [before, before], [1.0])
    with pytest.raises(pl.PeftlabError, match="different recipes"):
        pl.mix(undo, [before, {"0.A": before["0.A"]}], [1.0, 1.0])
    with pytest.raises(pl.PeftlabError, match="A0 is not learnt"):
        pl.mix(undo, [before, before | {"0.A0": before["0.A0"] + 1}], [1.0, 1.0])
    assert all(torch.equal(before[n], t) for n, t in kept_state(undo).items())
    with pytest.raises(pl.PeftlabError, match="rank 8 cannot be divided among 3"):
        pl.attach(m, pl.recipe("moelora", n=3))
