"""What the tests of the figures of additive deltas share: models that have moved, and what a figure holds."""

import re

import torch

import peftlab as pl
from peftlab import listening


def shaken(attached, std=0.5, seed=0):
    """Every number of the deltas drawn anew, as if they had learned something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for d in attached.deltas:
            for p in d.parameters():
                p.copy_(std * torch.randn(p.shape, generator=draw))
    return attached


def noisy(model):
    """In training, with dropout."""
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.5
    return model.train()


def loaded(name="nano-encoder", task="reviews"):
    task = pl.task(task)
    return pl.backbone(name, head=task.kind, labels=len(task.labels or "x")), task


def one_by_one(model, task, rows):
    """Each row alone, so that nothing is padded."""
    with torch.no_grad():
        for batch in listening.some(task, rows).batches(model.tokenizer, "test", 1):
            model(**batch)
            yield batch


def numbers(text):
    return [float(v) for v in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)]
