"""A run that is stopped, fails, diverges or is asked for what cannot be: one sentence, and nothing is lost."""

import copy

import pytest
import torch
from running import R, place, tiny_spec  # noqa: F401
from small import backbone, home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, ledger
from peftlab.runs import run
from peftlab.specs import spec


def broken(monkeypatch, at, act, keep):
    """Let the model of the next run do `act` in its forward number `at`; `keep` gets the model and its state before."""
    load = R.load_backbone

    def loaded(*args, **kw):
        model = load(*args, **kw)
        keep.append((model, copy.deepcopy(model.state_dict())))
        calls = []

        def before(module, inputs):
            calls.append(1)
            if len(calls) == at:
                act()

        model.base_model.register_forward_pre_hook(before)
        return model

    monkeypatch.setattr(R, "load_backbone", loaded)


def untouched(keep):
    model, before = keep[0]
    after = model.state_dict()
    return set(before) == set(after) and all(torch.equal(before[k], after[k]) for k in before if "classifier" not in k)


def act_raise(error):
    def act():
        raise error

    return act


def test_an_interrupt_in_a_step_keeps_the_rows_and_restores_the_backbone(place, home, monkeypatch):
    keep = []
    broken(monkeypatch, 5, act_raise(KeyboardInterrupt()), keep)
    result = run(tiny_spec(place, every=2))
    assert result.stopped and [r["step"] for r in result.rows] == [1, 2, 4] and result.score is None
    assert untouched(keep) and ledger.records(ledger.own()) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_exhausted_memory_is_one_sentence(place, home, monkeypatch, error):
    keep = []
    broken(monkeypatch, 3, act_raise(error), keep)
    with pytest.raises(PeftlabError, match="out of memory at step 3; use a smaller batch, or accumulate=2") as told:
        run(tiny_spec(place, every=2))
    assert untouched(keep) and [r["step"] for r in told.value.rows] == [1, 2] and "\n" not in str(told.value)


def test_another_error_of_a_model_is_not_dressed_up(place, home, monkeypatch):
    keep = []
    broken(monkeypatch, 3, act_raise(RuntimeError("shapes differ")), keep)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(tiny_spec(place))
    assert untouched(keep)


def test_a_loss_that_is_not_finite_stops_the_run_by_step(place, home, monkeypatch):
    keep = []
    broken(monkeypatch, 5, lambda: spoil(keep[0][0]), keep)
    with pytest.raises(
        PeftlabError, match="the loss is not finite at step 4; the run stopped with the last good state restored"
    ) as told:
        run(tiny_spec(place, every=2, steps=10))
    assert untouched(keep) and [r["step"] for r in told.value.rows] == [1, 2]
    assert ledger.records(ledger.own()) == []


def spoil(model):
    with torch.no_grad():
        pl.trainable(model)[0].fill_(float("nan"))


def test_a_full_disk_returns_the_result_with_one_sentence(place, home, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger, "append", full)
    result = run(tiny_spec(place))
    told = [line for line in capsys.readouterr().err.splitlines() if "not kept" in line]
    assert result.score is not None and len(told) == 1
    assert "the result is returned but not kept in the ledger: No space left on device" in told[0]


BAD = {
    "rank 0": (dict(r=0), "at least 1, not 0"),
    "negative rank": (dict(r=-2), "at least 1, not -2"),
    "half a rank": (dict(r=2.5), "must be a whole number, not 2.5"),
    "rank above the width": (dict(r=33), "above the width 32"),
    "unknown setting": (dict(rank=8), "unknown setting of lora 'rank'"),
    "unknown site": (dict(where="q w"), "unknown site for lora 'w'"),
    "unknown layer": (dict(layers=[7]), "layer 7 does not exist"),
    "unknown backbone": (dict(backbone="micro-encodr"), "unknown backbone"),
    "unknown task": (dict(task="reveiws"), "unknown task"),
    "steps": (dict(steps=0), "steps must be a whole number from 1, not 0"),
    "batch": (dict(batch=2.5), "batch must be a whole number from 1, not 2.5"),
    "lr": (dict(lr=-1), "lr must be a number above 0, not -1"),
    "lr nan": (dict(lr=float("nan")), "lr must be a number above 0, not nan"),
    "seed": (dict(seed="one"), "seed must be a whole number from 0, not 'one'"),
    "accumulate": (dict(accumulate=3), "batch 16 cannot be worked off in 3 equal parts"),
    "head": (dict(head="trian"), "unknown head policy 'trian'; the nearest"),
    "precision": (dict(precision="fp8"), "unknown precision 'fp8'; the nearest"),
    "size": (dict(size=10**6), "size must be a whole number from 2 to 160"),
    "knob": (dict(task_knobs=dict(txt="a")), "unknown task setting 'txt'; the nearest"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_loses_nothing(place, home, case):
    change, sentence = BAD[case]
    with pytest.raises(PeftlabError) as told:
        run(tiny_spec(place, **change))
    assert sentence in str(told.value) and "\n" not in str(told.value)
    assert ledger.records(ledger.own()) == []


def test_unknown_methods_and_keys_offer_the_nearest(place):
    with pytest.raises(PeftlabError, match="unknown method 'lroa'; the nearest"):
        spec("lroa")
    with pytest.raises(PeftlabError, match="unknown key of a spec 'step'; the nearest (is|are) steps"):
        run(dict(recipe="lora", step=5))
