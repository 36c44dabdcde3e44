"""Nothing of a method stays on the CPU when its backbone is on another device: a twin of `test_gpu` that needs none."""

import pytest
import tiny
import torch
from elsewhere import ELSEWHERE, elsewhere
from small import home  # noqa: F401
from test_compile import plain
from test_laws import ALL

import peftlab as pl
from peftlab.runs import laid_out
from peftlab.scoring import evaluate
from peftlab.together import run_together

DERIVED = {"l-lora"}  # torch.func cannot look through these tensors


@pytest.mark.parametrize("family, method", [(f, m) for f, m in ALL if f in ("roberta", "t5") and m not in DERIVED])
def test_every_method_learns_elsewhere_what_it_learns_here(family, method):
    with elsewhere():
        there = plain(method, family, ELSEWHERE)
        assert {t.device for step in there for t in step.values()} == {ELSEWHERE}
        there = [{n: t.cpu() for n, t in step.items()} for step in there]
    torch.testing.assert_close(there, plain(method, family))


@pytest.mark.parametrize("method", ["lora", "fish", "galore"])
def test_a_whole_run_gives_elsewhere_what_it_gives_here(method, home):  # noqa: F811
    spec = pl.spec(method, task="similarity", backbone="nano-encoder", size=64, steps=4, every=2)
    with elsewhere():
        there = pl.run(spec, fresh=True)
    here = pl.run(spec, fresh=True)
    assert there.device == ELSEWHERE.type and there.peak == here.peak
    assert (losses(there), there.score) == (pytest.approx(losses(here)), pytest.approx(here.score))


@pytest.mark.parametrize("backbone, task", [("nano-seq2seq", "translate"), ("nano-decoder", "describe")])
def test_text_is_generated_elsewhere(backbone, task, home):  # noqa: F811
    def score():
        with laid_out(pl.spec("lora", task=task, backbone=backbone, size=64)) as (model, data, _, accelerator):
            assert next(model.parameters()).device == accelerator.device
            return evaluate(model, data, "test", 1000, 4, accelerator)

    with elsewhere():
        there = score()
    assert there == pytest.approx(score())


def test_many_runs_go_in_one_pass_elsewhere(home):  # noqa: F811
    specs = [pl.spec("lora", task="reviews", backbone="nano-encoder", size=64, steps=4, seed=s) for s in (0, 1)]
    with elsewhere():
        there = run_together(specs)
    for a, b in zip(there, run_together(specs), strict=True):
        assert a.device == f"{ELSEWHERE.type}, 2 runs in one pass"
        assert (losses(a), a.score) == (pytest.approx(losses(b)), pytest.approx(b.score))


def losses(result):
    return [row["loss"] for row in result.rows]


def test_what_was_left_behind_is_refused():
    with elsewhere():
        m = tiny.model().to(ELSEWHERE)
        batch = {k: t.to(ELSEWHERE) for k, t in tiny.batch(m, seed=0).items()}
        assert m(**batch).logits.device == ELSEWHERE
        with pytest.raises(AssertionError, match="on the CPU"):
            m(**batch | dict(input_ids=batch["input_ids"].cpu()))
        with pytest.raises(AssertionError, match="generator of the CPU"):
            torch.rand(2, device=ELSEWHERE, generator=torch.Generator())
        m.classifier.out_proj.bias = torch.nn.Parameter(torch.zeros(2))
        with pytest.raises(AssertionError, match="on the CPU"):
            m(**batch)
