"""What the tests of AdaMix and ProPETL share."""

import json

import pytest
import tiny
import torch
from torch import nn

import peftlab as pl

FAMILIES, MIXED, PRO = ("roberta", "gpt2", "t5"), ("adamix", "adamix-lora"), ("adapter", "prefix", "lora")
families = pytest.mark.parametrize("family", FAMILIES)
mixed = pytest.mark.parametrize("name", MIXED)
pro = pytest.mark.parametrize("name", [f"propetl-{n}" for n in PRO])


def built(name, family="roberta", head="classification", seed=0, **settings):
    """A tiny model without dropout and what is attached to it, and the first delta."""
    m = tiny.model(family, head)
    for d in m.modules():
        if isinstance(d, nn.Dropout):
            d.p = 0.0
        for key in ("dropout", "attention_dropout"):
            if isinstance(getattr(d, key, None), float):
                setattr(d, key, 0.0)
    undo = pl.attach(m, pl.recipe(name, **settings), seed=seed)
    return m, undo, undo.deltas[0]


def learn(m, undo, steps=8, lr=1e-2):
    """As a run learns: in training mode, with all verbs."""
    torch.manual_seed(0)
    batch = tiny.batch(m)
    return [row["loss"] for row in pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=lr, steps=steps, every=1)]


@torch.no_grad()
def scatter(undo, std):
    """Copies that all differ."""
    torch.manual_seed(3)
    for p in (p for d in undo.deltas for p in d.parameters()):
        p.add_(std * torch.randn(p.shape))


def sizes(folder):
    """Bytes of the tensors in a kept delta, without the header of the file; and {name: dtype}."""
    data = (folder / "delta.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return len(data) - start, {n: t["dtype"] for n, t in header.items() if n != "__metadata__"}
