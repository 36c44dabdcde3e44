"""The reference solutions of lab 04. A learner should try first."""

import torch


def kron_matrix(A, s, t):
    """A ⊗ B puts a scaled copy of B at each entry of A. So the n products are a matrix of nk·nl entries made of
    n³ + n(k + l) numbers, of which Compacter has the n³ once for all layers. Ranks multiply, as in lab 03: Aᵢ has at
    most n and sᵢtᵢᵀ has 1, so the sum has at most n², as far as its shape allows.
    """
    return sum(torch.kron(a, torch.outer(x, y)) for a, x, y in zip(A, s, t, strict=True))


def gate(x, real, w, b):
    """First σ for each token, then the mean: σ of a mean would let one loud token decide for all. Padding must be left
    out of the sum and of what it is divided by; zeros in its place are not enough, as σ(b) is not zero. Then a text has
    the same gate whatever it is batched with.
    """
    g = torch.sigmoid(x @ w + b)
    return (g * real).sum(1) / real.sum(1)


def pareto(numbers, scores):
    """One design beats another if it is nowhere worse and somewhere better. "Nowhere worse" lets it tie in one of the
    two, and "somewhere better" keeps equal designs from throwing each other out. Along the front numbers and scores
    rise together, so whoever has a budget takes the last one that fits.
    """
    better = lambda j, i: numbers[j] <= numbers[i] and scores[j] >= scores[i]
    beats = lambda j, i: better(j, i) and not better(i, j)
    n = range(len(numbers))
    return sorted((i for i in n if not any(beats(j, i) for j in n)), key=lambda i: int(numbers[i]))


def kept(numbers, worth, budget):
    """The rule is greedy: it skips what is too large and goes on, and it takes nothing back. So all that is left out is
    too large for what is left of the budget, but the set need not be worth most: one large candidate can push out two
    that are worth more together.
    """
    kept = [False] * len(numbers)
    for i in sorted(range(len(numbers)), key=lambda i: -worth[i]):
        kept[i] = bool(numbers[i] <= budget)
        budget -= numbers[i] * kept[i]
    return kept
