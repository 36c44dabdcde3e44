"""Experiments on sparse masks: what SAM's recipe leaves open, how stable a training is, what a projection does."""

import dataclasses
import functools

import torch

from . import masks
from .attachment import attach
from .backbones import backbone as load
from .backbones import sites
from .methods import get
from .scores import SCORES, Look
from .sparse_league import rate_at
from .studies import BACKBONE, experiment, learner
from .tasks import task as find
from .training import fit, machine
from .view import View

CHOICES = {  # beside the reference: 16 batches of 32 rows, |Σ g|, no dropout, a random head, all weights together
    "reference": {},
    "1 batch": dict(batches=1),
    "4 batches": dict(batches=4),
    "64 batches": dict(batches=64),
    "Σ g² over batches": dict(score="squares"),
    "Σ g² over rows": dict(score="fisher", batches=4),
    "clipped to norm 0.1": dict(clip=0.1),
    "dropout 0.1": dict(dropout=0.1),
    "fitted head": dict(fitted=True),
    "per tensor": dict(select="tensor"),
}


@experiment
def sam(seed, choice=tuple(CHOICES), task="entail", p=0.005):
    """Jaccard overlap of SAM's mask, one step of its recipe done otherwise: with the reference, with another seed."""
    other, again = (sam_mask(s, task, p, **CHOICES[choice]) for s in (seed, seed + 100))
    return dict(reference=masks.share(other, sam_mask(seed, task, p)), seeds=masks.share(other, again))


def sam_mask(seed, task, p, batches=16, score="gradient", clip=None, dropout=0.0, fitted=False, select="global"):
    """The entries of all weight matrices, laid end to end, that SAM chooses with these settings."""
    model, task, _ = learner("head", task, seed, 200 if fitted else 0)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = dropout
    places = sites(model, get("sam").where)
    how = dict(clip=clip, dropout=dropout > 0) if score == "gradient" else {}
    with machine():
        torch.manual_seed(seed)
        view = View(model, task.batches(model.tokenizer, "train", 32, seed=seed))
        found = SCORES[score].make(Look([m.weight for m in places], view, batches), **how)
    I = masks.select(found, p, select, places)
    return torch.zeros(sum(m.weight.numel() for m in places), dtype=torch.bool).index_fill(0, I, True)


@functools.partial(experiment, seeds=range(5))
def stability(
    seed, mask=("random-mask", "sam"), p=(0.001, 0.005, 0.02, 0.1, 1.0), task="entail", size=64, left=8, steps=100
):
    """At the mask's own rate, as `sparse_league.rate_at` changes it with p.

    left_out: the mean of |ℓ(A(S∖Z), z) - ℓ(A(S), z)| over z in Z, `left` of the `size` training rows S.
    reordered: the same without leaving anything out, only with the rows in another order.
    """
    S, every, row = find(task, size=size, seed=seed), range(size), dict(method=mask, settings=dict(p=p))
    losses = lambda rows, order: row_losses(trained(part(S, rows), row, seed, order, steps), part(S, range(left)))
    distance = lambda a, b: float((a - b).abs().mean())
    whole = losses(every, seed)
    return dict(
        left_out=distance(losses(range(left, size), seed), whole), reordered=distance(losses(every, seed + 100), whole)
    )


def part(task, rows):
    """The task with these rows as its training data."""
    data = type(task.data)(task.data | dict(train=task.data["train"].select(list(rows))))
    return dataclasses.replace(task, data=data)


def trained(task, row, seed, order, steps):
    """A model, begun as `seed` says and trained on the rows in the order of another seed."""
    torch.manual_seed(seed)
    model = load(BACKBONE, head=task.kind, labels=len(task.labels))
    deltas = attach(model, [row], seed).deltas
    with machine() as accelerator:
        batches = task.batches(model.tokenizer, "train", 32, seed=order)
        lr = rate_at(get(row["method"]).lr, row["settings"]["p"])
        list(fit(model.to(accelerator.device), batches, deltas, lr, steps, accelerator=accelerator))
    return model.cpu()


@torch.no_grad()
def row_losses(model, task):
    """The loss of each training row, in nats."""
    batch = next(task.batches(model.tokenizer, "train", len(task.data["train"]), seed=0))
    labels = batch.pop("labels")
    return torch.nn.functional.cross_entropy(model.eval()(**batch).logits, labels, reduction="none")


@functools.partial(experiment, seeds=range(5))
def jumps(seed, p=(0.005, 0.05, 0.5), every=(50,), task="entail", steps=300):
    """step, loss: ChildPruning's training loss while it puts all but a share p of the changes back after every so many
    steps; the first figure of a round comes right after a projection."""
    settings = dict(p=p, plan="re-projected", period=every, before=steps)
    _, _, undo = learner("child-pruning", task, seed, 1, settings=settings)
    rows = undo.deltas[0].peers[0].history
    per_round = len(rows) // (steps // every)
    step = [row["step"] + every * (i // per_round) for i, row in enumerate(rows)]
    return dict(step=step, loss=[row["loss"] for row in rows])


def rounds(rows):
    """Rows {seed, step, loss} out of the study `jumps`, their steps counted from the projection before them."""
    pairs = [(r, step, loss) for r in rows for step, loss in zip(r["step"], r["loss"], strict=True)]
    return [dict(seed=r["seed"], step=(step - 1) % r["every"] + 1, loss=loss) for r, step, loss in pairs]
