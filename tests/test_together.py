"""Many runs in one pass: each is what it would be alone."""

import weakref

import pytest
import torch
from small import home  # noqa: F401

import peftlab as pl
from peftlab.together import Pass, laid_out, levelled, run_together, shape, start

NANO = dict(task="entail", backbone="nano-encoder", steps=5, size=64, batch=8, every=2)


def specs(method="lora", n=3, **more):
    """Runs that differ in seed and rate, and in each setting that has a list."""
    of = lambda i: {k: v[i] if isinstance(v, list) else v for k, v in (NANO | more).items()}
    return [pl.spec(method, seed=i, lr=(i + 1) * 1e-3, **of(i)) for i in range(n)]


def agrees(runs):
    starts = [start(one, i) for i, one in enumerate(runs)]
    if None in starts or not levelled(starts):
        return None
    with laid_out(runs[0]) as (model, _, undo, accelerator):
        if starts[0].sparse:
            undo()
        return Pass(model.train(), undo, runs, starts, accelerator).agrees()


def test_ranks_rates_and_seeds_give_what_they_give_alone(home):  # noqa: F811
    runs = specs(r=[4, 1, 8], alpha=8)
    alone = [pl.run(one) for one in runs]
    seen = []
    found = run_together(runs, each=lambda i, row: seen.append((i, row["step"])))
    for one, other in zip(alone, found, strict=True):
        assert (one.hash, one.metric, one.counts, one.baselines["majority"]) == (
            other.hash,
            other.metric,
            other.counts,
            other.baselines["majority"],
        )
        assert [r["step"] for r in one.rows] == [r["step"] for r in other.rows]
        assert ["validation" in r for r in one.rows] == ["validation" in r for r in other.rows]
        for key in ("loss", "lr"):
            assert [r[key] for r in one.rows] == pytest.approx([r[key] for r in other.rows], abs=1e-5)
        assert (one.score, one.validation) == pytest.approx((other.score, other.validation), abs=0.01)
    assert "3 runs in one pass" in found[0].device and seen[:4] == [(0, 1), (1, 1), (2, 1), (0, 2)]


@pytest.mark.parametrize(
    ("method", "backbone", "task"),
    [
        ("dora", "nano-encoder", "reviews"),
        ("krona", "nano-encoder", "reviews"),
        ("loha", "nano-encoder", "reviews"),
        ("prefix", "nano-encoder", "entail"),
        ("random-mask", "nano-encoder", "entail"),
        ("sam", "nano-encoder", "reviews"),
        ("bitfit", "nano-encoder", "similarity"),
        ("lora-plus", "nano-decoder", "reviews"),
        ("prompt", "nano-decoder", "describe"),
        ("parallel-adapter", "nano-seq2seq", "translate"),
        ("mam", "nano-seq2seq", "translate"),
    ],
)
def test_a_step_is_what_it_is_alone_in_every_kind_of_task(method, backbone, task, home):  # noqa: F811
    assert agrees(specs(method, 2, backbone=backbone, task=task))


@pytest.mark.parametrize("method", ["compacter", "compacter++", "propetl-lora", "p-tuning"])
def test_what_the_runs_cannot_have_apart_is_found_by_trying(method, home):  # noqa: F811
    assert agrees([one | dict(seed=0) for one in specs(method, 2)]) is False, "the same start, other rates"


@pytest.mark.parametrize(
    "more",
    [dict(method="adalora"), dict(method="full"), dict(head="shared"), dict(accumulate=2), dict(pretrained=False)],
    ids=str,
)
def test_some_runs_have_to_be_alone(more, home):  # noqa: F811
    assert run_together(specs(n=2, **more)) is None


def test_prompts_of_unlike_lengths_do_not_go_together(home):  # noqa: F811
    of = lambda *lengths: [pl.spec("prompt", n=n, **NANO) for n in lengths]
    assert agrees(of(6, 6)) and agrees(of(2, 6)) is False


def test_one_that_diverges_leaves_the_others_alone(home):  # noqa: F811
    runs = specs(n=2)
    runs[1]["lr"] = 1e30
    good, bad = run_together(runs)
    assert bad.score == bad.validation == 0 and len(bad.rows) < len(good.rows)
    assert good.rows[-1]["loss"] == pytest.approx(pl.run(runs[0]).rows[-1]["loss"], abs=1e-5)


def interrupted(i, row):
    if row["step"] > 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["stop", "each", "Ctrl-C"])
def test_stop_ends_all(how, home):  # noqa: F811
    asked = []
    halt = dict(stop=lambda: len(asked) > 1 or asked.append(0), each=lambda i, row: row["step"] > 1)
    found = run_together(specs(n=2), **({how: halt[how]} if how in halt else dict(each=interrupted)))
    assert all(r.stopped and r.score is None and r.rows[-1]["step"] < 5 for r in found)


def test_a_sweep_makes_what_it_can_in_one_pass_and_the_rest_alone(home):  # noqa: F811
    runs = [*specs(n=2), pl.spec("adalora", **NANO), pl.spec("adapter", **NANO)]
    found = pl.run_many([runs[2], runs[0], runs[3], runs[1]], jobs=1, together=True)
    assert ["one pass" in r.device for r in found] == [False, True, False, True]
    assert [r.spec for r in found] == [runs[2], runs[0], runs[3], runs[1]] and all(r.score for r in found)
    assert all(pl.run(one).cached for one in runs), "the ledger has all of them"


def test_a_pass_that_does_not_fit_is_halved_and_what_fits_in_none_runs_alone(home, monkeypatch):  # noqa: F811
    gradient, tried, alive = Pass.gradient, [], []

    def full(common, *given):
        if len(common.specs) > 2:
            tried.append(len(common.specs)), alive.append(weakref.ref(common.model))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert all(model() is None for model in alive), "what did not fit is gone before the next begins"
        return gradient(common, *given)

    monkeypatch.setattr(Pass, "gradient", full)
    runs = specs(n=5)
    found = pl.run_many(runs, jobs=1, together=True)
    assert tried == [5, 3] and ["2 runs in one pass" in r.device for r in found] == [True, True, False, True, True]
    monkeypatch.undo()
    for one, result in zip(runs, found, strict=True):
        assert result.score == pl.run(one, fresh=True).score


def test_a_sweep_that_is_stopped_in_a_pass_begins_nothing_more(home):  # noqa: F811
    runs = [*specs(n=2), pl.spec("adalora", **NANO)]
    found = pl.run_many(runs, jobs=1, together=True, each=lambda one, row: row["step"] > 1)
    assert all(r.stopped for r in found) and [bool(r.rows) for r in found] == [True, True, False]
    assert not pl.run_many(runs[:1], jobs=1)[0].cached


def test_runs_of_one_shape_differ_in_numbers_only():
    lora = pl.spec("lora", r=2, **NANO)
    assert shape(lora) == shape(pl.spec("lora", r=8, lr=0.1, **NANO | dict(seed=3)))
    others = [pl.spec("lora", **NANO | dict(steps=6)), pl.spec("lora", "q", **NANO), pl.spec("dora", **NANO)]
    assert len({shape(lora), *map(shape, others)}) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; the others here are its twins on the CPU")
def test_on_a_gpu(home):  # noqa: F811
    found = run_together(specs(n=8))
    assert len(found) == 8 and all(r.device.startswith("cuda") and r.score is not None for r in found)
    assert all(r.score is not None for r in run_together(specs(n=2, precision="bf16")))
