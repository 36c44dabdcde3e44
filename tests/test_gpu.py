"""What only a GPU can show; `test_widgets` and `test_memory` have the twins that pretend one."""

import pytest
import torch
from small import home  # noqa: F401

import peftlab as pl
from peftlab import memory
from peftlab.widgets import panel

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU; its twins with a pretended one are in test_widgets"
)
SMALL = dict(task="reviews", backbone="nano-encoder", size=64)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "adapter", "full", "prefix"])
def test_a_run_happens_on_the_gpu_in_every_precision(method, precision, home):
    run = pl.run(pl.spec(method, steps=40, precision=precision, **SMALL))
    assert run.device.startswith("cuda") and run.peak["allocated_bytes"] > 0
    assert run.rows[-1]["loss"] < run.rows[0]["loss"]


@pytest.mark.parametrize("method", pl.METHODS)
def test_every_method_takes_a_step_on_the_gpu(method, home):
    run = pl.run(pl.spec(method, steps=1, **SMALL))
    assert run.device.startswith("cuda")
    assert run.peak["gradient_bytes"] == 4 * (run.counts["delta"] + run.counts["head"])


def test_the_gpu_learns_what_the_cpu_learns(home, monkeypatch):
    spec = pl.spec("lora", task="topic", backbone="micro-encoder")
    there = pl.run(spec, fresh=True).score
    monkeypatch.setenv("PEFTLAB_DEVICE", "cpu")
    assert there == pytest.approx(pl.run(spec, fresh=True).score, abs=0.03)


def test_the_panel_tells_the_gpu_and_refuses_what_does_not_fit(home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    board = panel("lora", steps=20, **SMALL)
    assert "free on cuda" in board.text["memory"].value
    assert board.run().device.startswith("cuda")
    monkeypatch.setattr(memory, "free", lambda device="cpu": 2**10)
    with pytest.raises(pl.PeftlabError, match="free on cuda; take"):
        board.run()
