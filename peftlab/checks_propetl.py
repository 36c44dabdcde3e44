"""The exercises on one prototype for all layers (lab 05): oracles, cases, slips and how an answer is tried."""

import math

import torch
from torch import nn

from .methods import get

# ProPETL's module of one layer --------------------------------------------------------------------

GRADIENT = "the gradient of the "


def by_propetl(prototype, scores, p, what):
    """The matrix A of the package's ProPETL LoRA."""
    r, d = prototype.shape
    delta = get("propetl-lora").cls(nn.Linear(d, d), r, 1.0, p, 1)
    delta.load_state_dict(delta.state_dict() | dict(A=prototype, s_A=scores))
    return told(lambda *given: delta.module()["A"], delta.A, delta.s_A, p, what)


def masked_by(mine, prototype, scores, p, what):
    given = [t.detach().clone().requires_grad_() for t in (prototype, scores)]
    return told(mine, *given, p, what)


def told(f, prototype, scores, p, what):
    """f's values, or the gradient of a sum of them in which no two weigh the same."""
    with torch.enable_grad():
        out = f(prototype, scores, p)
        if not isinstance(out, torch.Tensor) or out.shape != prototype.shape:
            return out
        total = (out * torch.linspace(1, 2, out.numel()).view(out.shape)).sum()
    at = {"the values": None, GRADIENT + "prototype": prototype, GRADIENT + "scores": scores}[what]
    if at is None:
        return out.detach()
    found = torch.autograd.grad(total, at, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(out) if found is None else found


def masked_cases():
    drawn = {}
    for r, d, p in ((4, 6, 0.4), (3, 5, 0.25), (2, 3, 1.0)):
        W, s = torch.randn(2, r, d)
        for what in ("the values", GRADIENT + "prototype", GRADIENT + "scores"):
            drawn[f"{what} at p = {p}"] = W, s, p, what
    return drawn


def top(size, p, many=math.floor):
    """1 at the largest, else 0."""
    at = size.flatten().topk(many(p * size.numel())).indices
    return torch.zeros_like(size).flatten().index_fill(0, at, 1.0).view(size.shape)


def masking(mask=top, through=lambda M, s: M + (s.abs() - s.abs().detach()), out=lambda W, M: W * M, size=torch.abs):
    """mask(|s|, p); through(M, s): M as the gradient sees it."""

    def answer(W, s, p):
        return out(W, through(mask(size(s.detach()), p), s))

    return answer


def by_row(size, p):
    return torch.stack([top(row, p) for row in size])


def straight_at_both(W, M):
    """The prototype's gradient does not see the mask either."""
    return W.detach() * M + W - W.detach()


# What ProPETL stores ------------------------------------------------------------------------------


def by_stored(layers, tasks, shapes):
    """The bits of all that a file holds of the package's ProPETL: an adapter where there are biases, else a LoRA."""
    (r, d), out = shapes[0], shapes[-1][0]
    name, own = ("propetl-adapter", ()) if len(shapes) == 4 else ("propetl-lora", (1.0,))
    deltas = tuple(get(name).cls(nn.Linear(d, out), r, *own, 0.5, tasks) for _ in range(layers))
    for delta in deltas:
        delta.row, delta.group = 0, deltas
        delta.joined()
    return sum(8 * t.numel() * t.element_size() for delta in deltas for t in delta.stored().values())


def stored_cases():
    adapter = lambda r, d: [(r, d), (r,), (d, r), (d,)]
    lora = lambda r, d, out: [(r, d), (out, r)]
    drawn = (
        (3, 1, adapter(4, 8)),
        (1, 1, lora(2, 7, 5)),
        (4, 1, lora(3, 5, 3)),
        (3, 3, adapter(3, 3)),
        (2, 5, lora(1, 5, 3)),
    )
    told = "layers = {}, tasks = {} and shapes = {}"
    return {told.format(*case): case for case in drawn}


def layer_masks(layers, tasks, matrices):
    return matrices * layers


def task_masks(layers, tasks, matrices):
    return [tasks * n for n in matrices] if tasks > 1 else []


def both(layers, tasks, matrices):
    return layer_masks(layers, tasks, matrices) + task_masks(layers, tasks, matrices)


def whole_bytes(n):
    return 8 * math.ceil(n / 8)


def storing(
    prototypes=lambda layers, tasks: 1, masks=both, bits=whole_bytes, has_mask=lambda s: len(s) == 2, has_numbers=any
):
    """masks: how many entries each tensor of bits has; bits: what such a tensor takes in a file."""

    def answer(layers, tasks, shapes):
        floats = sum(math.prod(s) for s in shapes if has_numbers(s))
        matrices = [math.prod(s) for s in shapes if has_mask(s)]
        return 32 * prototypes(layers, tasks) * floats + sum(map(bits, masks(layers, tasks, matrices)))

    return answer


PROPETL = dict(
    masked=dict(
        oracle=by_propetl,
        cases=masked_cases,
        use=masked_by,
        slips={
            "the values are right, but the scores learn nothing: how does a 0 or 1 depend on them?": (
                masking(through=lambda M, s: M)
            ),
            "the gradient should pass as if M were |s|. What is its sign where a score is below zero?": (
                masking(through=lambda M, s: M + (s - s.detach()))
            ),
            "scores outside the mask get no gradient. How could such an entry ever come back?": (
                masking(through=lambda M, s: M * (1 + s.abs() - s.abs().detach()))
            ),
            "|s| is still in the values. How does one add a gradient and no value?": masking(
                through=lambda M, s: M + s.abs()
            ),
            "that weighs the entries by |s|. A mask is 0 or 1.": masking(through=lambda M, s: M * s.abs()),
            "that weighs all entries by |s|. Where is the mask?": masking(through=lambda M, s: s.abs()),
            "that goes by s. Which is larger, |-2| or |0.3|?": (
                masking(through=lambda M, s: M + (s - s.detach()), size=lambda s: s)
            ),
            "that goes by s, though the gradient is that of |s|. Which is larger, |-2| or |0.3|?": (
                masking(size=lambda s: s)
            ),
            "those are the smallest.": masking(lambda size, p: top(-size, p)),
            "that keeps one too many where p·n is not whole.": masking(lambda size, p: top(size, p, math.ceil)),
            "p is the share that stays, not the share that goes.": masking(lambda size, p: top(size, 1 - p)),
            "every row keeps its own share. Which entries are best of all?": masking(by_row),
            "the prototype gets a gradient where the mask hides it too. Has this layer used those entries?": (
                masking(out=straight_at_both)
            ),
            "the prototype learns nothing.": masking(out=lambda W, M: W.detach() * M),
            "that is the mask. What is it a mask of?": masking(out=lambda W, M: M),
            "divided by p: does ProPETL make up for what is hidden?": lambda W, s, p: masking()(W, s, p) / p,
        },
    ),
    stored_bits=dict(
        oracle=by_stored,
        cases=stored_cases,
        slips={
            "can a file hold a part of a byte?": storing(bits=lambda n: n),
            "that stores the scores. What of them does one need after training?": storing(bits=lambda n: 32 * n),
            "that is a byte for each entry of a mask. How many masks' entries fit into one?": storing(
                bits=lambda n: 8 * n
            ),
            "every layer has a prototype of its own.": storing(lambda layers, tasks: layers),
            "every task has a prototype of its own.": storing(lambda layers, tasks: tasks),
            "the biases have masks too. Which tensors are masked?": storing(has_mask=any),
            "the biases are part of the prototype too.": storing(has_numbers=lambda s: len(s) == 2),
            "every layer has all the task masks. How many layers does one serve?": (
                storing(masks=lambda layers, tasks, ns: ns * layers + task_masks(layers, tasks, ns) * layers)
            ),
            "with one task, is there a task mask?": (
                storing(masks=lambda layers, tasks, ns: ns * layers + [tasks * n for n in ns])
            ),
            "where are the task masks?": storing(masks=layer_masks),
            "where are the layer masks?": storing(masks=task_masks),
            "where are the masks?": storing(masks=lambda layers, tasks, ns: []),
            "all layers share one mask. What is then left of the layers?": (
                storing(masks=lambda layers, tasks, ns: both(1, tasks, ns))
            ),
            "the task masks of one matrix are one tensor. How often is it filled up?": (
                storing(masks=lambda layers, tasks, ns: ns * layers + ns * tasks * (tasks > 1))
            ),
            "each mask is filled up by itself. Which do you lay end to end before?": (
                storing(masks=lambda layers, tasks, ns: [sum(ns)] * layers + [sum(task_masks(layers, tasks, ns))])
            ),
            "those are bytes.": lambda *case: storing()(*case) / 8,
        },
    ),
)
