"""What the tests of soft prompts share."""

import tiny
import torch

import peftlab as pl

HEAD = dict(gpt2="lm", opt="lm", llama="lm", qwen3="lm", gemma="lm", mistral="lm", t5="seq2seq")
PREFIXES = ["prefix", "prefix-mlp", "p-tuning-v2"]


def built(family, name, **settings):
    """A tiny model with a delta that is off its start."""
    m = tiny.model(family, HEAD.get(family, "classification")).eval()
    return m, scattered(pl.attach(m, pl.recipe(name, **settings)))


@torch.no_grad()
def scattered(undo):
    g = torch.Generator().manual_seed(5)
    for p in (p for d in undo.deltas for p in d.parameters()):
        p.add_(0.5 * torch.randn(p.shape, generator=g))
    return undo


def split(t, width):  # (b t h·d) -> (b h t d)
    return t.unflatten(-1, (-1, width)).transpose(1, 2)


def given(d):
    """The keys and values that a delta puts first (1 h n d), 8 wide in every tiny model."""
    P = d.prefix() if hasattr(d, "prefix") else (d.P_k, d.P_v)
    return [split(p.detach()[None], 8) for p in P]
