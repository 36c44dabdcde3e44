"""Hugging Face PEFT as the oracle: the same numbers in its LoRA and in ours give the same logits."""

import copy

import pytest
import tiny
import torch

import peftlab as pl

peft = pytest.importorskip("peft")
TARGETS = dict(roberta=["query", "value"], llama=["q_proj", "v_proj"], t5=["q", "v"])
CONFIGS = {
    "lora": lambda at: peft.LoraConfig(r=8, lora_alpha=16, target_modules=at),
    "rslora": lambda at: peft.LoraConfig(r=8, lora_alpha=16, target_modules=at, use_rslora=True),
    "dora": lambda at: peft.LoraConfig(r=8, lora_alpha=16, target_modules=at, use_dora=True),
    "vera": lambda at: peft.VeraConfig(r=64, target_modules=at, save_projection=True),
}
NAMES = dict(A="lora_A", B="lora_B", m="lora_magnitude_vector", d="vera_lambda_d", b="vera_lambda_b")


def shared(theirs, delta):
    """VeRA's frozen matrices are one for the whole model there, of the largest layer's size."""
    for name in ("A", "B"):
        own = getattr(theirs, f"vera_{name}").default
        own[: len(getattr(delta, name)), : getattr(delta, name).shape[1]] = getattr(delta, name)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_same_numbers_give_the_same_logits(name, family):
    ours = tiny.model(family).double()  # so that 1e-5 is of the equations, not of single precision
    theirs = peft.get_peft_model(copy.deepcopy(ours), CONFIGS[name](TARGETS[family])).eval()
    undo = pl.attach(ours, name)
    torch.manual_seed(0)
    places = {m: n for n, m in ours.named_modules()}
    for delta, module in undo.placed:
        there = theirs.get_submodule(f"base_model.model.{places[module]}")
        for key, p in delta.named_parameters():
            p.add_(torch.randn_like(p).mul_(0.3).abs())
            target = getattr(there, NAMES[key])["default"]
            getattr(target, "weight", target).copy_(p)
        if name == "vera":
            shared(there, delta)
    y = tiny.logits(ours)
    undo.toggle(False)
    assert not torch.allclose(y, tiny.logits(ours), atol=1e-3), "the deltas do something"
    assert torch.allclose(tiny.logits(theirs), y, atol=1e-5)
