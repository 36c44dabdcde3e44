"""A mask from a file, in a run, in two processes: it is looked for once, and chosen as one model chooses it."""

import copy
import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
from looking import ALL, BIASES, LOOKS, attached, chosen, differs, looked, still, stream, values
from small import backbone, home, sentences, write  # noqa: F401

import peftlab as pl
from peftlab import masks, runs, sparsity
from peftlab.training import fit

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
