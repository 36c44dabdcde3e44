"""Deltas in use: checkpointed gradients, half precision, copies, generation, one graph, beside HF PEFT."""

import copy

import pytest
import tiny
import torch
from torch import nn

import peftlab as pl


@pytest.mark.parametrize("family", ["gpt2", "roberta", "t5", "llama"])
@pytest.mark.parametrize("name", ["lora", "adapter", "prefix", "random-mask"])
def test_gradient_checkpointing_gives_the_same_gradients(family, name):
    grads = []
    for on in (False, True):
        m = tiny.model(family).train()
        for d in m.modules():
            if isinstance(d, nn.Dropout):
                d.p = 0.0
        m.config.dropout_rate = 0.0
        for a in m.modules():
            for key in ("dropout", "attention_dropout", "dropout_prob"):
                if isinstance(getattr(a, key, None), float):
                    setattr(a, key, 0.0)
        undo = pl.attach(m, name)
        tiny.scatter(undo)
        if on:
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # renamed in v5
            getattr(m, new if hasattr(m, new) else old)()
        m(**tiny.batch(m)).loss.backward()
        grads.append([p.grad.clone() for d in undo.deltas for p in d.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in pl.METHODS if n != "head"])
def test_new_parameters_follow_a_bf16_backbone(name):
    m = tiny.model().to(torch.bfloat16)
    undo = pl.attach(m, name)
    assert {p.dtype for d in undo.deltas for p in d.own().values() if p.is_floating_point()} == {torch.bfloat16}
    m(**tiny.batch(m)).loss.backward()


def test_a_deep_copy_calls_its_own_deltas():
    m = tiny.model()
    undo = pl.attach(m, "lora")
    twin = copy.deepcopy(m)
    y = tiny.logits(m)
    tiny.scatter(undo)
    assert torch.equal(tiny.logits(twin), y) and not torch.equal(tiny.logits(m), y)


def test_hooks_keep_the_module_what_it_was():
    """T5's feed-forward reads `self.wo.weight`: a site must stay a Linear with its attributes."""
    m = tiny.model("t5")
    pl.attach(m, "adapter")
    assert all(type(s) is nn.Linear and s.weight.shape == (32, 48) for s in pl.sites(m, "down"))


@pytest.mark.parametrize("family, head", [("gpt2", "lm"), ("llama", "lm"), ("t5", "seq2seq")])
@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "p-tuning"])
def test_generation(family, head, name):
    """Greedy generation equals the argmax of full forward passes, cache or not."""
    m = tiny.model(family, head)
    tiny.scatter(pl.attach(m, name))
    ids = tiny.batch(m, pad=False, labels=False)["input_ids"][:, :6]
    how = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))
    out = m.generate(ids, use_cache=True, **how)
    assert torch.equal(out, m.generate(ids, use_cache=False, **how))
    grown = out[:, :1] if family == "t5" else ids
    for _ in range(4):
        with torch.no_grad():
            z = m(input_ids=ids, decoder_input_ids=grown).logits if family == "t5" else m(input_ids=grown).logits
        z[..., m.config.eos_token_id] = -torch.inf  # min_new_tokens forbids the end
        grown = torch.cat([grown, z[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, grown)


@pytest.mark.parametrize("name", ["lora", "adapter", "random-mask", "prefix"])
def test_no_graph_breaks(name):
    m = tiny.model()
    pl.attach(m, name)
    torch._dynamo.reset()
    assert torch._dynamo.explain(m)(**tiny.batch(m)).graph_break_count == 0


# an oracle


@pytest.mark.parametrize("family", ["roberta", "llama", "t5"])
def test_lora_is_hf_pefts_lora(family):
    from peft import LoraConfig, get_peft_model

    m = tiny.model(family)
    theirs = copy.deepcopy(m)
    names = {n.rsplit(".", 1)[-1] for n, s in m.named_modules() if getattr(s, "site", None) in ("q", "v")}
    undo = pl.attach(m, pl.recipe("lora", r=4, alpha=8))
    tiny.scatter(undo)
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=sorted(names)))
    hf = [s for s in theirs.modules() if hasattr(s, "lora_A")]
    with torch.no_grad():
        for d, s in zip(undo.deltas, hf, strict=True):
            s.lora_A["default"].weight.copy_(d.A)
            s.lora_B["default"].weight.copy_(d.B)
    b = tiny.batch(m, labels=False)
    with torch.no_grad():
        assert torch.allclose(m(**b).logits, theirs(**b).logits, atol=1e-5)
    assert pl.counts(m)["delta"] == sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
