"""The exercises on copies that become one and on pruning (lab 05): oracles, cases and slips."""

import math
import types

import torch
from torch import nn

from .masks import select
from .methods import get
from .scores import SCORES, Look

# AdaMix's average ---------------------------------------------------------------------------------


def by_adamix(Ds, cs, Us, es):
    """What `flatten` leaves of the package's AdaMix."""
    copies, r, d = Ds.shape
    delta = get("adamix").cls(nn.Linear(d, d), r, copies, 1.0)
    delta.load_state_dict(dict(D=Ds, c=cs, U=Us, e=es))
    left = delta.plain(dict(settings={}))[1]
    return tuple(left[name] for name in "DcUe")


def copies_cases():
    drawn = lambda n, r, d: (torch.randn(n, r, d), torch.randn(n, r), torch.randn(n, d, r), torch.randn(n, d))
    sizes = (4, 3, 6), (3, 3, 3), (1, 2, 5)  # with (3 3 3) a wrong axis is not given away by its length
    return {f"{n} {'copies' if n > 1 else 'copy'}, r = {r} and d = {d}": drawn(n, r, d) for n, r, d in sizes}


def each(f):
    return lambda *copies: tuple(map(f, copies))


def first(t):
    return t[0]


def mean(t):
    return t.mean(0)


def half_by_half(reads, writes):
    return lambda Ds, cs, Us, es: (reads(Ds), reads(cs), writes(Us), writes(es))


def side_by_side(Ds, cs, Us, es):
    """One adapter that does what all copies do on average: its bottleneck has room for all of theirs."""
    return Ds.flatten(0, 1), cs.flatten(), Us.movedim(0, 1).flatten(1) / len(Us), es.mean(0)


def multiplied(Ds, cs, Us, es):
    d = es.shape[1]
    return torch.eye(d), torch.zeros(d), (Us @ Ds).mean(0), es.mean(0)


# SNIP over all tensors ----------------------------------------------------------------------------


def by_snip(weights, gradients, p):
    """The package's score of these weights in one batch with these gradients, and its choice among all of them."""
    view = types.SimpleNamespace(gradients=lambda weights, n: [gradients])
    return as_masks(weights, select(SCORES["snip"].make(Look(weights, view, 1)), p))


def as_masks(weights, at):
    """Positions, all tensors laid end to end, as a mask of each."""
    flat = torch.zeros(sum(w.numel() for w in weights)).index_fill(0, at, 1).bool()
    return [m.view(w.shape) for m, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]


def prune_cases():
    three = lambda *scales: [
        scale * torch.randn(shape) for scale, shape in zip(scales, ((3, 5), (4,), (5, 2)), strict=True)
    ]
    by_hand = [[0.5, -2, 1], [[0.1, -0.2], [3, 0.4]]], [[3, 0.5, -0.2], [[8, -6], [0.1, 5]]]
    silent = three(1, 1, 1)
    silent[1] *= 0
    return {
        "two tensors written by hand and p = 0.5": (*([torch.tensor(t) for t in side] for side in by_hand), 0.5),
        "three tensors and p = 0.3": (three(1, 1, 1), three(1, 1, 1), 0.3),
        "three tensors, the last with small gradients, and p = 0.4": (three(1, 1, 1), three(1, 1, 0.01), 0.4),
        "three tensors, the second all zero, and p = 0.93": (silent, three(1, 1, 1), 0.93),
        "three tensors and p = 1": (three(1, 1, 1), three(1, 1, 1), 1.0),
    }


def pruning(
    score=lambda w, g: (w * g).abs(), pick=lambda flat, k: flat.argsort(descending=True, stable=True)[:k], many=None
):
    """Positions by pick(all scores end to end, k), k = ⌊p·n⌋ or many(p, n)."""

    def answer(weights, gradients, p):
        flat = torch.cat([score(w, g).flatten() for w, g in zip(weights, gradients, strict=True)])
        return as_masks(weights, pick(flat, (many or kept)(p, len(flat))))

    return answer


def kept(p, n):
    return math.floor(p * n)


def above(compare):
    """Whatever compares so with the k-th largest."""
    return lambda flat, k: compare(flat, flat.sort(descending=True).values[k - 1]).nonzero()[:, 0]


snip = pruning()


def tensor_by_tensor(weights, gradients, p):
    return [snip([w], [g], p)[0] for w, g in zip(weights, gradients, strict=True)]


def end_to_end(weights, gradients, p):
    return torch.cat([m.flatten() for m in snip(weights, gradients, p)])


def opposite(weights, gradients, p):
    return [~m for m in snip(weights, gradients, p)]


def left_over(weights, gradients, p):
    return [w * m for w, m in zip(weights, snip(weights, gradients, p), strict=True)]


UNIFIED = dict(
    one_adapter=dict(
        oracle=by_adamix,
        cases=copies_cases,
        slips={
            "those are sums. How large is the adapter then?": each(lambda t: t.sum(0)),
            "that is the first copy. What have the others learnt for?": each(first),
            "that is the last copy. What have the others learnt for?": each(lambda t: t[-1]),
            "the copies are still apart.": each(lambda t: t),
            "those are medians.": each(lambda t: t.median(0).values),
            "that is a mean along the second axis. Along which are the copies?": each(lambda t: t.mean(1)),
            "that is a mean along the last axis. Along which are the copies?": each(lambda t: t.mean(-1)),
            "D and c are averaged, but U and e are the first copy's.": half_by_half(mean, first),
            "U and e are averaged, but D and c are the first copy's.": half_by_half(first, mean),
            "D and U are averaged, but the biases are the first copy's.": (
                lambda Ds, cs, Us, es: (mean(Ds), cs[0], mean(Us), es[0])
            ),
            "D and U are averaged, but the biases are summed.": (
                lambda Ds, cs, Us, es: (mean(Ds), cs.sum(0), mean(Us), es.sum(0))
            ),
            "that is the mean of what all copies put out. Is it as small and as fast as one adapter?": side_by_side,
            "that is the mean of the products UᵢDᵢ. What becomes of relu between the two?": multiplied,
        },
    ),
    prune=dict(
        oracle=by_snip,
        cases=prune_cases,
        slips={
            "every tensor keeps its own share. Which entries are best of all?": tensor_by_tensor,
            "that goes by |g|. How much does an entry matter that is nearly zero?": pruning(lambda w, g: g.abs()),
            "that goes by |θ|. Does the loss feel a large weight without a gradient?": pruning(lambda w, g: w.abs()),
            "that goes by θ·g. Does a loss that would fall not change?": pruning(lambda w, g: w * g),
            "that goes by |θ| + |g|. What is the first-order change of the loss when θ becomes zero?": (
                pruning(lambda w, g: w.abs() + g.abs())
            ),
            "those matter least.": pruning(pick=lambda flat, k: flat.argsort(stable=True)[:k]),
            "that keeps one too many where p·n is not whole.": pruning(many=lambda p, n: math.ceil(p * n)),
            "p is the share that stays, not the share that goes.": pruning(many=lambda p, n: kept(1 - p, n)),
            "whatever ties with the k-th comes along. How many should stay?": pruning(pick=above(torch.ge)),
            "is the k-th largest itself among them?": pruning(pick=above(torch.gt)),
            "of equal ones it takes the last first.": (
                pruning(pick=lambda flat, k: len(flat) - 1 - flat.flip(0).argsort(descending=True, stable=True)[:k])
            ),
            "of equal ones it should take the first, and topk promises nothing.": (
                pruning(pick=lambda flat, k: flat.topk(k).indices)
            ),
            "it is true for what goes. What is asked for?": opposite,
            "the right ones, laid end to end. What shapes do the masks have?": end_to_end,
            "those are the weights that stay. What is asked for?": left_over,
        },
    ),
)
