"""The partial family: what is chosen, that nothing else changes, what looking does, and what it costs."""

import copy
import json
import math
import operator
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from small import backbone, home, sentences, write  # noqa: F401
from torch import nn

import peftlab as pl
from peftlab import masks, runs, sparsity
from peftlab.masks import SELECTIONS, select
from peftlab.methods import dense_first
from peftlab.methods.dense_first import PLANS
from peftlab.scores import SCORES
from peftlab.training import fit, look, machine, schedule

WEIGHTS = "q k v o up down"
BIASES = "u-bitfit", "s-bitfit"
LOOKS = {  # settings with which a mask is found soon
    "random-mask": {},
    "magnitude-mask": {},
    "sam": dict(n=2),
    "fish": dict(n=1),
    "child-tuning-d": dict(n=2),
    "lt-sft": dict(before=4),
    "child-pruning": dict(before=4, period=2),
    "diff-pruning": dict(before=4),
    **dict.fromkeys(BIASES, dict(before=4)),
}
OWN = {f"mask {s} {p}": dict(score=s, plan=p, n=1, before=4, period=2) for s in SCORES for p in PLANS}
ALL = LOOKS | OWN
NO_LOOK = "random-mask", "magnitude-mask", "mask random once", "mask magnitude once"


def still(m):
    """A model without dropout, so that its training can be repeated by hand."""
    for d in m.modules():
        if isinstance(d, nn.Dropout):
            d.p = 0.0
    return m


def stream(*batches):
    """The same batches again and again."""
    while True:
        yield from batches


def attached(m, what, seed=0, **settings):
    return pl.attach(m, pl.recipe(what.split()[0], **dict(p=0.05) | ALL.get(what, {}) | settings), seed=seed)


def looked(m, undo, accumulate=1, seed=0, report=None):
    """Only the look at the data, two batches of it, and no training."""
    with machine(accumulate=accumulate) as accelerator:
        torch.manual_seed(seed)
        look(m, stream(tiny.batch(m), tiny.batch(m, seed=2)), undo.deltas, accelerator, report)
    return undo


def values(m):
    """{name: tensor as the model uses it} of a model without deltas, whatever is on it now."""
    return {n: operator.attrgetter(n)(m).detach().clone() for n in dict(tiny.model().named_parameters())}


def differs(m, before):
    return {n: t != before[n] for n, t in values(m).items() if not t.equal(before[n])}


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def chosen(undo):
    """All that the masks of an attachment know: positions and changes."""
    (first,) = (d for d in undo.deltas if d is d.peers[0])
    return first


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


def graded(m, where=WEIGHTS, tensor="weight"):
    """Tensors with the gradient of the first batch."""
    tensors = [getattr(s, tensor).requires_grad_() for s in pl.sites(m, where)]
    m.eval()(**tiny.batch(m)).loss.backward()
    return tensors


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


def best_of(scores, I):
    """Whether no other entry has a larger score, up to the rounding of two ways to compute it."""
    inside = torch.zeros(len(scores)).index_fill(0, I.long(), 1.0).bool()
    return float(scores[inside].min()) >= (1 - 1e-3) * float(scores[~inside].max())


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


# A look is repeatable -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["sam", "fish", "child-tuning-d", "mask curvature once", "lt-sft", "u-bitfit"])
def test_a_batch_in_parts_gives_the_same_mask(what):
    """Up to ties and rounding, which Adam enlarges where all learn."""
    found = []
    for parts in (1, 2):
        m = still(tiny.model())
        found.append(set(chosen(looked(m, attached(m, what), accumulate=parts)).I.tolist()))
    assert len(found[0] & found[1]) / len(found[0] | found[1]) > 0.97


@pytest.mark.parametrize("what", ["sam", "fish", "lt-sft", "child-pruning", "diff-pruning", "s-bitfit"])
def test_a_mask_from_a_file_is_not_looked_for_again(what, tmp_path):
    m = tiny.model()
    undo = looked(m, attached(m, what))
    pl.save(m, undo, tmp_path)
    again = pl.load(fresh := tiny.model(), tmp_path)
    before, other = chosen(again).I.clone(), tiny.batch(m, seed=7)
    assert before.equal(chosen(undo).I) and chosen(again).v.equal(chosen(undo).v) and not masks.blind(again)
    assert tiny.logits(fresh).equal(tiny.logits(m))
    twin, report = copy.deepcopy(fresh), {}
    list(fit(fresh, stream(other), again.deltas, lr=1e-2, steps=2, report=report))
    assert chosen(again).I.equal(before) and "looking_bytes" not in report
    assert tiny.logits(twin).equal(tiny.logits(m)), "a copy has a mask of its own"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny backbone and a task on disk."""
    folder = tmp_path_factory.mktemp("partial")
    return dict(backbone=backbone(folder / "tiny"), task=write(folder / "task.tsv", sentences(64)), batch=8)


SEEN = ["sam", "lt-sft", "child-pruning", "diff-pruning", "mask fisher gradual", "u-bitfit"]


@pytest.mark.parametrize("what", SEEN)
def test_a_mask_is_what_a_run_of_its_spec_trains(what, place, home, monkeypatch):
    """Whatever was drawn before, and asked for before the run or after it."""
    settings = dict(p=0.3 if what in BIASES else 0.05) | ALL[what]
    spec = pl.spec(pl.recipe(what.split()[0], **settings), **place, steps=3)
    trained, train = {}, runs.train

    def spy(model, task, deltas, *more):
        names = {id(m): n for n, m in model.named_modules()}
        train(model, task, deltas, *more)
        for m in (d.at[0] for d in deltas):
            W = m.parametrizations[deltas[0].tensor].original
            trained[f"{names[id(m)]}.{deltas[0].tensor}"] = getattr(m, deltas[0].tensor) != W

    monkeypatch.setattr(runs, "train", spy)
    torch.manual_seed(123)
    before = pl.mask(spec)
    (kept,) = (home / "masks").iterdir()
    assert all(sparsity.kept(kept)[n].equal(t) for n, t in before.items())
    kept.unlink()
    torch.manual_seed(321)
    assert pl.run(spec).score is not None
    trained = {n: t for n, t in trained.items() if t.any()}
    after = pl.mask(spec | dict(steps=9, lr=0.5))
    assert [*(home / "masks").iterdir()] == [kept], "the run has kept it; steps and rate do not matter to it"
    assert before.keys() == after.keys() and all(t.equal(after[n]) for n, t in before.items())
    assert trained.keys() <= before.keys() and all((trained[n] & ~before[n]).sum() == 0 for n in trained)
    share = sum(int(t.sum()) for t in trained.values()) / sum(int(t.sum()) for t in before.values())
    assert share == 1.0 if what not in BIASES else share > 0.9


@pytest.mark.parametrize("what", SEEN)
def test_changes_cannot_know_a_mask_that_needs_the_data(what):
    m = tiny.model()
    before = values(m)
    with pytest.raises(masks.Blind, match="chooses its entries by the data; peftlab.mask.* finds them") as told:
        pl.changes(m, pl.recipe(what.split()[0], **dict(p=0.3) | ALL[what]))
    assert isinstance(told.value, pl.PeftlabError) and "\n" not in str(told.value) and not differs(m, before)


def test_a_mask_of_ones_own_that_needs_no_data_is_known_at_once():
    m = tiny.model()
    one = pl.changes(m, pl.recipe("mask", score="magnitude"))
    other = pl.changes(m, "magnitude-mask")
    assert one.keys() == other.keys() and all(one[n].equal(other[n]) for n in one)


WORKER = """
import json, sys
import tiny, torch
import peftlab as pl
from peftlab.training import look, machine

for name, settings in json.loads(sys.argv[1]).items():
    with machine() as accelerator:
        m, rank = tiny.model(), accelerator.process_index
        undo, batch = pl.attach(m, pl.recipe(name, p=0.05, **settings)), tiny.batch(m)
        torch.manual_seed(rank)  # each process drops out at random by itself
        look(m, iter(lambda: batch, None), undo.deltas, accelerator)
        torch.save((undo.deltas[0].I, undo.deltas[0].v.detach()), f"{sys.argv[2]}/{name}.{rank}")
"""


def test_two_processes_choose_the_same_mask(root, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    names = {n: LOOKS[n] for n in ("sam", "lt-sft", "diff-pruning")}
    env = os.environ | dict(PEFTLAB_DEVICE="cpu", ACCELERATE_USE_CPU="true", PYTHONPATH=f"{root}:{root / 'tests'}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call = [*launch, str(tmp_path / "worker.py"), json.dumps(names), str(tmp_path)]
    subprocess.run(call, env=env, capture_output=True, check=True)
    for name in names:
        (I, v), (J, w) = (torch.load(tmp_path / f"{name}.{rank}") for rank in (0, 1))
        assert I.equal(J) and v.equal(w) and len(I), name


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
