"""What the tests of masks share: settings with which one is found soon, and a look at two batches."""

import operator

import tiny
import torch
from torch import nn

import peftlab as pl
from peftlab.methods.dense_first import PLANS
from peftlab.scores import SCORES
from peftlab.training import look, machine

WEIGHTS = "q k v o up down"
BIASES = "u-bitfit", "s-bitfit"
LOOKS = {  # settings with which a mask is found soon
    "random-mask": {},
    "magnitude-mask": {},
    "sam": dict(n=2),
    "fish": dict(n=1),
    "child-tuning-d": dict(n=2),
    "lt-sft": dict(before=4),
    "child-pruning": dict(before=4, period=2),
    "diff-pruning": dict(before=4),
    **dict.fromkeys(BIASES, dict(before=4)),
}
OWN = {f"mask {s} {p}": dict(score=s, plan=p, n=1, before=4, period=2) for s in SCORES for p in PLANS}
ALL = LOOKS | OWN
NO_LOOK = "random-mask", "magnitude-mask", "mask random once", "mask magnitude once"


def still(m):
    """A model without dropout, so that its training can be repeated by hand."""
    for d in m.modules():
        if isinstance(d, nn.Dropout):
            d.p = 0.0
    return m


def stream(*batches):
    """The same batches again and again."""
    while True:
        yield from batches


def attached(m, what, seed=0, **settings):
    return pl.attach(m, pl.recipe(what.split()[0], **dict(p=0.05) | ALL.get(what, {}) | settings), seed=seed)


def looked(m, undo, accumulate=1, seed=0, report=None):
    """Only the look at the data, two batches of it, and no training."""
    with machine(accumulate=accumulate) as accelerator:
        torch.manual_seed(seed)
        look(m, stream(tiny.batch(m), tiny.batch(m, seed=2)), undo.deltas, accelerator, report)
    return undo


def values(m):
    """{name: tensor as the model uses it} of a model without deltas, whatever is on it now."""
    return {n: operator.attrgetter(n)(m).detach().clone() for n in dict(tiny.model().named_parameters())}


def differs(m, before):
    return {n: t != before[n] for n, t in values(m).items() if not t.equal(before[n])}


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def chosen(undo):
    """All that the masks of an attachment know: positions and changes."""
    (first,) = (d for d in undo.deltas if d is d.peers[0])
    return first


def graded(m, where=WEIGHTS, tensor="weight"):
    """Tensors with the gradient of the first batch."""
    tensors = [getattr(s, tensor).requires_grad_() for s in pl.sites(m, where)]
    m.eval()(**tiny.batch(m)).loss.backward()
    return tensors


def best_of(scores, I):
    """Whether no other entry has a larger score, up to the rounding of two ways to compute it."""
    inside = torch.zeros(len(scores)).index_fill(0, I.long(), 1.0).bool()
    return float(scores[inside].min()) >= (1 - 1e-3) * float(scores[~inside].max())
