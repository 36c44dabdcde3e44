"""What the tests of gates share: a search of a few steps, and what it kept."""

import itertools

import tiny
import torch
from torch import nn

import peftlab as pl
from peftlab.training import look, machine

FAMILIES = ("roberta", "gpt2", "t5")
GATES = ("gate-lora", "gate-adapter", "gate-bias", "gate-norm")
BEFORE = 6


def still(m):
    """A model without dropout."""
    for d in m.modules():
        if isinstance(d, nn.Dropout):
            d.p = 0.0
    return m


def attached(m, what="s3delta", seed=0, **settings):
    rows = [dict(method=name, settings=dict(before=BEFORE) | settings) for name in what.split()]
    return pl.attach(m, rows, seed=seed)


def stream(m):
    """Always another batch."""
    return (tiny.batch(m, seed=i) for i in itertools.count())


def searched(m, undo, seed=0, batches=None, accumulate=1, report=None):
    """Only the search, no training."""
    with machine(accumulate=accumulate) as accelerator:
        torch.manual_seed(seed)
        look(m, batches or stream(m), undo.deltas, accelerator, report)
    return undo


def kept(undo):
    return [d.kept for d in undo.deltas]


def stored(undo):
    return {f"{i}.{n}": t.detach().clone() for i, d in enumerate(undo.deltas) for n, t in d.own().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
