"""torch.compile makes one graph of a model with deltas, and gradient checkpointing changes nothing.

`test_gpu` asks the same of a GPU, with the compiler's own kernels.
"""

import copy
import math

import pytest
import tiny
import torch
from test_laws import ALL
from torch import _dynamo as dynamo

import peftlab as pl

SOME = [(f, m) for f, m in ALL if f in ("roberta", "gpt2", "t5")]
CLAIMED = [name for name, method in pl.METHODS.items() if method.compiles]
EQUATIONS = {getattr(pl.METHODS[name].cls, "forward", None): name for name in reversed(CLAIMED)}  # one name for each


@pytest.fixture
def one_layer(monkeypatch):
    """What is compiled is half as long."""
    config = tiny.CONFIGS["roberta"]()
    config.num_hidden_layers = 1
    monkeypatch.setitem(tiny.CONFIGS, "roberta", lambda: copy.deepcopy(config))


def prepared(method, family="roberta", device="cpu"):
    """A model in train mode that carries the method's deltas, and these."""
    m = tiny.model(family)
    m.config.problem_type = "single_label_classification"  # else transformers notes it in the first step
    m.to(device).tie_weights()  # a device that `elsewhere` pretends unties them
    undo = pl.attach(m, method)
    return m.train(), undo.deltas


def steps(m, deltas, call, n=3):
    """The losses and gradients of n steps of training, dropout and all that the deltas do in them included."""
    optimizer, seen = torch.optim.SGD(pl.trainable(m), 1e-2), []
    torch.manual_seed(0)
    for step in range(1, n + 1):
        loss = call(**{k: t.to(m.device) for k, t in tiny.batch(m, seed=step).items()}).loss
        sum((d.penalty() for d in deltas if hasattr(d, "penalty")), loss).backward()
        grads = {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}
        seen.append(dict(loss=loss.detach()) | grads)
        optimizer.step()
        for d in deltas:
            if hasattr(d, "after_step"):
                d.after_step(step, n)
        optimizer.zero_grad()
    return seen


def plain(*what, **where):
    m, deltas = prepared(*what, **where)
    return steps(m, deltas, m)


def compiled(backend, *what, **where):
    """As `plain`, of one graph without a break, which stands for all steps."""
    m, deltas = prepared(*what, **where)
    dynamo.reset()
    with dynamo.config.patch(error_on_recompile=True):
        return steps(m, deltas, torch.compile(m, fullgraph=True, backend=backend))


def checkpointed(*what, **where):
    m, deltas = prepared(*what, **where)
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # renamed in v5
    getattr(m, new if hasattr(m, new) else old)()
    return steps(m, deltas, m)


def learns_under_autocast(method, half, device):
    m, deltas = prepared(method, device=device)
    before = [p.detach().clone() for p in pl.trainable(m)]
    with torch.autocast(device, half):
        losses = [step["loss"] for step in steps(m, deltas, m)]
    assert all(map(math.isfinite, losses))
    assert any(not torch.equal(p, was) for p, was in zip(pl.trainable(m), before, strict=True))


OTHERS = [("gpt2", "prompt"), ("t5", "prefix")]


@pytest.mark.parametrize("family, method", [*(("roberta", m) for m in EQUATIONS.values()), *OTHERS])
def test_one_graph_stands_for_all_steps(family, method, one_layer):
    """Of methods with the same equation the first is asked here; `test_gpu` asks all."""
    torch.testing.assert_close(compiled("eager", method, family), plain(method, family), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["increlora", "prompt"])
def test_the_way_back_is_one_graph_too(method, one_layer):
    torch.testing.assert_close(compiled("aot_eager", method), plain(method), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", sorted({*pl.METHODS} - {*CLAIMED}))
def test_what_does_not_claim_it_cannot(method, one_layer):
    with pytest.raises((dynamo.exc.Unsupported, dynamo.exc.RecompileError)):
        compiled("eager", method)


@pytest.mark.parametrize("family, method", [(f, m) for f, m in SOME if m in ("lora", "ia3", "prefix", "prompt", "lst")])
def test_checkpointing_changes_neither_loss_nor_gradients(family, method):
    torch.testing.assert_close(checkpointed(method, family), plain(method, family), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", EQUATIONS.values())
def test_every_equation_learns_under_autocast(method):
    learns_under_autocast(method, torch.bfloat16, "cpu")
