"""A step's gradient from slices of its batch: each thread has its own, and short texts are not padded for long ones.

Threads that share every product of one batch wait for each other: much of a step is too small to be shared. With two
threads a step in slices takes 0.88 of that time on mini-encoder, 1.1 on nano-encoder. On a GPU a batch is one slice.
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import torch

from .objectives import SKIP

PARTS = 8  # a slice is some eighths of a batch: its shapes come again, and the kernels compiled for them with them
LARGE = 1500  # about the cost of 64 texts of 20 words: a thread has one slice until its share costs more


def cost(rows, length):
    """What a slice costs, in tokens: its padded tokens, and attention, which grows with the square of the length."""
    return rows * length * (1 + length / 200)


def cuts(lengths, n):
    """Where n slices of rows with rising lengths end, so that the dearest slice is as cheap as can be."""
    places = range(-(-len(lengths) // PARTS), len(lengths), -(-len(lengths) // PARTS))
    ways = ((*inner, len(lengths)) for inner in itertools.combinations(places, min(n - 1, len(places))))
    return min(ways, key=lambda ends: max(cost(b - a, lengths[b - 1]) for a, b in itertools.pairwise((0, *ends))))


class Slices:
    """`gradient(batch)` of an objective's loss, by `threads` threads; as many threads give the same bits."""

    def __init__(self, model, objective, context, threads=1):
        self.model, self.objective, self.context, self.threads = model, objective, context, threads
        self.pool = ThreadPoolExecutor(threads, "slice", torch.set_num_threads, (1,))

    def cut(self, batch):
        """The batch as smaller ones, dearest first: the last thread to end then has little left to do."""
        if batch["input_ids"].device.type != "cpu":
            return [batch]
        lengths, order = batch["attention_mask"].sum(1).sort(stable=True)
        n = self.threads * math.ceil(cost(len(order), lengths[-1].item()) / self.threads / LARGE)
        ends = cuts(lengths.tolist(), n)
        return [self.objective.rows(batch, order[a:b]) for a, b in itertools.pairwise((0, *ends))][::-1]

    def one(self, batch, share, parameters):
        """(`share` of a slice's loss, its gradients)."""
        with self.context():
            loss = self.objective.loss(self.model, batch) * share
        return loss.detach(), torch.autograd.grad(loss, parameters)

    def gradient(self, batch):
        """Put the loss's gradient into the parameters' `grad`; returns the loss. Summed in the order of the slices."""
        slices, parameters = self.cut(batch), list(self.model.parameters())
        counts = [(s["labels"] != SKIP).sum() for s in slices]
        shares = [count / sum(counts) for count in counts]
        (loss, gradient), *others = self.pool.map(self.one, slices, shares, itertools.repeat(parameters))
        for also, more in others:
            loss += also
            torch._foreach_add_(gradient, more)
        for p, g in zip(parameters, gradient, strict=True):
            p.grad = g
        return loss
