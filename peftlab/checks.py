"""Exercises that are functions: the package's answer to each, the cases to try, and what typical slips would answer."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from .attachment import Attachment
from .checks_additive import ADDITIVE
from .checks_attention import ATTENTION
from .checks_hybrid import HYBRID
from .checks_propetl import PROPETL
from .checks_sparse import SPARSE
from .checks_unified import UNIFIED
from .methods import get
from .mixing import mix
from .teach import Verdict


class Exercise(NamedTuple):
    """oracle: the right answer; cases(): words -> arguments; slips: hint -> the function that it is for.

    shortcut, where the way matters too: a sentence about a right answer that was found the wrong way, else None.
    use(f, *case): what comes of a function, where that is not what it returns.
    """

    oracle: Callable
    cases: Callable
    slips: dict
    shortcut: Callable = lambda mine, *case: None
    use: Callable = lambda mine, *case: mine(*case)


def judge_answers(mine, exercise):
    """Compare function `mine` with the oracle, case by case. A slip is told by all its answers: one may be chance."""
    words, cases = zip(*exercise.cases().items(), strict=True)
    answer = lambda f, case: exercise.use(f, *copy.deepcopy(case))  # a copy: one may write into what is given
    got = [answer(mine, case) for case in cases]
    want = [exercise.oracle(*case) for case in cases]
    right = [same(g, w) for g, w in zip(got, want, strict=True)]
    if all(right):
        way = exercise.shortcut(mine, *cases[0])
        return Verdict(not way, way or f"right in all {len(cases)} cases.")
    slip = lambda f: all(same(g, answer(f, case)) for g, case in zip(got, cases, strict=True))
    hint = next((f": {told}" for told, f in exercise.slips.items() if slip(f)), ".")
    for told, g, w in zip(words, got, want, strict=True):
        if kind(g) != kind(w):
            return Verdict(False, f"with {told} it returned {kind(g)}; it should return {kind(w)}{hint}")
    good = f"right with {words[right.index(True)]}, but " if any(right) else ""
    at = right.index(False)
    return Verdict(False, f"{good}with {words[at]} {came(got[at], want[at])}{hint}")


def several(answer):
    """Whether an answer is several tensors, which need not be of one shape."""
    return isinstance(answer, (list, tuple)) and any(isinstance(t, torch.Tensor) and t.numel() != 1 for t in answer)


def numbers(answer):
    """All numbers of an answer; those of several tensors end to end."""
    if several(answer):
        return torch.cat([numbers(t).flatten() for t in answer])
    return torch.as_tensor(answer, dtype=torch.float64)


def kind(answer):
    """What an answer is, in words."""
    try:
        t = numbers(answer)
    except (TypeError, ValueError, RuntimeError):
        return type(answer).__name__
    if several(answer):
        return f"tensors of shapes {', '.join(str(tuple(numbers(part).shape)) for part in answer)}"
    return {0: "one number", 1: f"{t.numel()} numbers"}.get(t.ndim, f"a tensor of shape {tuple(t.shape)}")


def same(one, other):
    return kind(one) == kind(other) and torch.allclose(numbers(one), numbers(other), rtol=1e-4, atol=1e-5)


def came(got, want):
    """A few numbers as they came; of more only how far they are off. Never what was expected: that is the exercise."""
    if numbers(got).ndim < 2 and numbers(got).numel() < 8:
        return "you get " + " and ".join(f"{float(n):.4g}" for n in numbers(got).reshape(-1))
    off = float((numbers(got) - numbers(want)).abs().max())
    return f"the result is off by up to {off:.2g}" if off == off else "some of what it returns is nan, no number"


def rank_of_product(A, B):
    return torch.linalg.matrix_rank(torch.kron(A, B))


def kron_cases():
    drawn = lambda rows, columns, rank: torch.randn(rows, rank) @ torch.randn(rank, columns)
    sizes = ((4, 4, 2), (3, 5, 3)), ((4, 4, 4), (5, 3, 1)), ((3, 3, 3), (2, 4, 2)), ((6, 5, 3), (4, 4, 2))
    told = "A ({} {}) of rank {} and B ({} {}) of rank {}"
    return {told.format(*a, *b): (drawn(*a), drawn(*b)) for a, b in (*sizes, ((3, 3, 2), (4, 2, 0)))}


class Largest(TorchFunctionMode):
    """Notes how many numbers the largest tensor has that is made meanwhile."""

    made = 0

    def __torch_function__(self, f, types, args=(), kwargs=None):
        out = f(*args, **kwargs or {})
        self.made = max(self.made, out.numel() if isinstance(out, torch.Tensor) else 0)
        return out


def multiplied_out(mine, A, B):
    with Largest() as seen:
        mine(A, B)
    if seen.made >= A.numel() * B.numel():
        return "the numbers are right, but A ⊗ B was built to find them. What do A and B tell, each by itself?"


def scales(alpha, r):
    m = torch.nn.Linear(r, r)
    return tuple(get(name).cls(m, r, alpha).s for name in ("lora", "rslora"))


def scale_cases():
    return {f"α = {alpha} and r = {r}": (alpha, r) for alpha, r in ((16, 4), (8, 16), (32, 64), (1, 1), (3, 2))}


def beyond(Bs, As, w):
    """`mix`, on one layer: the change by the mixture of several LoRAs, less the weighted sum of the changes by each."""
    (out, r), n = Bs[0].shape, As[0].shape[1]
    m = torch.nn.Linear(n, out)
    delta, one = get("lora").cls(m, r, alpha=r), Attachment(m, "lora", seed=0)
    one.add(delta, m)
    states = [{"0.A": A, "0.B": B} for A, B in zip(As, Bs, strict=True)]

    def change(states, w):
        mix(one, states, w)
        return delta(torch.eye(n), torch.zeros(n, out)).T  # the images of the unit vectors are its columns

    return change(states, w) - sum(c * change([state], [1]) for c, state in zip(w, states, strict=True))


def added(Bs, As, w):
    return sum(c * B @ A for B, A, c in zip(Bs, As, w, strict=True))


def crossed_cases():
    drawn = lambda n, *shape: [torch.randn(shape) for _ in range(n)]
    weights = (0.5, 0.5), (1, 0), (1.2, -0.3, 0.4)
    return {f"w = {w}": (drawn(len(w), 5, 2), drawn(len(w), 2, 7), w) for w in weights}


rank = torch.linalg.matrix_rank
EXERCISES = dict(
    kron_rank=Exercise(
        rank_of_product,
        kron_cases,
        {
            "do the two ranks add?": lambda A, B: rank(A) + rank(B),
            "that bounds the rank of a product A B, and A ⊗ B is another product.": lambda A, B: min(rank(A), rank(B)),
            "that is the larger rank of the two. What does the other one do?": lambda A, B: max(rank(A), rank(B)),
            "that is what the shapes allow, and these A and B hold less.": lambda A, B: min(A.shape) * min(B.shape),
        },
        multiplied_out,
    ),
    lora_scales=Exercise(
        scales,
        scale_cases,
        {
            "look at the order of the two.": lambda alpha, r: (alpha / r**0.5, alpha / r),
            "both are LoRA's. What does rsLoRA change in its equation?": lambda alpha, r: (alpha / r, alpha / r),
            "both are rsLoRA's. What does LoRA's equation say?": lambda alpha, r: (alpha / r**0.5, alpha / r**0.5),
            "where is α?": lambda alpha, r: (1 / r, 1 / r**0.5),
            "look at what stands under the root.": lambda alpha, r: (alpha / r, (alpha / r) ** 0.5),
            "should a larger rank have the larger factor?": lambda alpha, r: (r / alpha, r**0.5 / alpha),
        },
    ),
    crossed=Exercise(
        beyond,
        crossed_cases,
        {
            "the sign is the other way round.": lambda *case: -beyond(*case),
            "that is the weighted sum of the changes. What has the mixture beyond it?": added,
            "that is the whole mixture. How much of it is not in the sum?": lambda *case: beyond(*case) + added(*case),
            "the pairs of two are right. And a B with its own A: is its weight the same in both?": (
                lambda Bs, As, w: beyond(Bs, As, w) + added(Bs, As, w) - added(Bs, As, [c * c for c in w])
            ),
        },
    ),
)
EXERCISES |= {name: Exercise(*parts) for name, parts in SPARSE.items()}
EXERCISES |= {name: Exercise(**parts) for name, parts in (ADDITIVE | ATTENTION | HYBRID | UNIFIED | PROPETL).items()}
