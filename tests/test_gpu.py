"""What only a GPU can show; the twins that need none are in `test_compile`, `test_run`, `test_quantized`,
`test_memory` and `test_widgets`, which pretends one, as `test_elsewhere` does for every method."""

import json
import subprocess
import sys

import pytest
import test_compile as ways
import torch
from small import home  # noqa: F401
from torch._inductor import config as inductor

import peftlab as pl
from peftlab import memory, quantized
from peftlab.widgets import panel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA GPU; twins: test_compile, test_elsewhere, test_run, test_quantized, test_widgets",
    ),
]
SMALL = dict(task="reviews", backbone="nano-encoder", size=64)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "adapter", "full", "prefix", "prompt", "qlora"])
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


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", pl.METHODS)
def test_every_method_learns_under_autocast(method, half):
    ways.learns_under_autocast(method, half, "cuda")


@pytest.mark.parametrize("family, method", ways.SOME)
def test_checkpointing_changes_neither_loss_nor_gradients(family, method):
    once, again = (way(method, family, "cuda") for way in (ways.plain, ways.checkpointed))
    torch.testing.assert_close(again, once, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ways.CLAIMED)
def test_one_graph_stands_for_all_steps(method):
    """The compiler's own kernels, with the random numbers of the plain ones."""
    with inductor.patch(fallback_random=True):
        got = ways.compiled("inductor", method, device="cuda")
    torch.testing.assert_close(got, ways.plain(method, device="cuda"), rtol=1e-3, atol=1e-4)


def test_qlora_unpacks_with_the_kernels_of_bitsandbytes(monkeypatch):
    """They are asked, and give what our own code gives; a step of training differs as little."""
    kernels = pytest.importorskip("bitsandbytes.functional", reason="needs: pip install bitsandbytes")
    asked, unpack = [], kernels.dequantize_4bit
    monkeypatch.setattr(kernels, "dequantize_4bit", lambda *args: asked.append(args) or unpack(*args))
    theirs = ways.plain("qlora", device="cuda")
    assert asked
    asked.clear()
    monkeypatch.setattr(quantized, "bitsandbytes", lambda: None)
    torch.testing.assert_close(theirs, ways.plain("qlora", device="cuda"), rtol=1e-3, atol=1e-4)
    assert not asked


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs; its twin over gloo is in test_run")
def test_two_gpus_train_like_one(home):
    """One run in two processes of Accelerate: the first loss, before any update, is the mean of both halves."""
    spec = [f"--{k}={v}" for k, v in (SMALL | dict(method="lora", steps=4, every=1)).items()]
    call = ["-m", "peftlab", "run", *spec, "--fresh", "--json"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two, one = (
        json.loads(subprocess.run([sys.executable, *how, *call], capture_output=True, check=True).stdout)
        for how in (launch, [])
    )
    assert two["device"].endswith("× 2") and two["peak"]["saved_bytes"] < one["peak"]["saved_bytes"]
    assert two["rows"][0]["loss"] == pytest.approx(one["rows"][0]["loss"], abs=0.05)
