"""The exercises on hybrids (lab 04): oracles, cases and slips, as `checks` registers them."""

import itertools
import types

import torch
from torch import nn

from .fronts import Search
from .methods import get
from .methods.gates import fitting

# Compacter's matrix -------------------------------------------------------------------------------


def by_compacter(A, s, t):
    """The matrix D of the package's Compacter."""
    (n, k), l = s.shape, t.shape[1]
    delta = get("compacter").cls(nn.Linear(n * l, n * l), n * k, n)
    delta.load_state_dict(delta.state_dict() | dict(A=A, s=s, t=t))
    return delta.D


def kron_cases():
    """n is also a k or an l somewhere, so that a wrong axis is not given away by its length."""
    sizes = (2, 3, 4), (3, 3, 3), (4, 1, 2), (1, 2, 5)
    drawn = lambda n, k, l: (torch.randn(n, n, n), torch.randn(n, k), torch.randn(n, l))
    return {"n = {}, k = {} and l = {}".format(*size): drawn(*size) for size in sizes}


def products(A, s, t, kron=torch.kron):
    return torch.stack([kron(a.contiguous(), torch.outer(x, y)) for a, x, y in zip(A, s, t, strict=True)])


def flattened(order):
    """The right numbers, their axes laid flat in this order: a and b are A's, x is of s and y of t."""

    def answer(A, s, t):
        (n, k), l = s.shape, t.shape[1]
        return torch.einsum(f"nab,nx,ny->{order}", A, s, t).reshape(n * k, n * l)

    return answer


# UniPELT's gate -----------------------------------------------------------------------------------


def by_gated(x, real, w, b):
    """The gate of the package's UniPELT."""
    d = x.shape[-1]
    delta = get("gated-lora").cls(nn.Linear(d, d), 1)
    delta.load_state_dict(delta.state_dict() | dict(w=w, b=torch.tensor(b)))
    delta.mask = real
    return delta.gate(x)[:, 0, 0]


def gate_cases():
    drawn, words = {}, torch.arange(6)
    for told, real, b in (
        ("no padding", words[None].expand(3, -1) >= 0, 0.5),
        ("padding behind the texts", words < torch.tensor([4, 6, 1])[:, None], -1.0),
        ("padding before the texts", words >= torch.tensor([3, 0, 5, 1])[:, None], 0.8),
    ):
        drawn[told] = 2 * torch.randn(len(real), 6, 4), real, torch.randn(4), b
    return drawn


def gating(each=lambda x, real, w, b: torch.sigmoid(x @ w + b), over=lambda g, real: mean(g, real), after=None):
    """`each` gives (b t), `over` takes them together."""

    def answer(x, real, w, b):
        g = over(each(x, real, w, b), real)
        return after(g) if after else g

    return answer


def mean(g, real):
    """Over the real tokens of each text."""
    return (g * real).sum(1) / real.sum(1)


def plain(x, real, w, b):
    return x @ w + b


def of_batch(g, real):
    return g[real].mean()


# A Pareto front -----------------------------------------------------------------------------------


def by_search(numbers, scores):
    """The front of the package's search, over designs that are trials."""
    pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
    trials = [dict(number=i, numbers=n, validation=s) for i, (n, s) in enumerate(pairs)]
    return [trial["number"] for trial in Search.front(types.SimpleNamespace(trials=trials))]


def front_cases():
    by_hand = (
        ((40, 10, 30, 20, 50), (0.80, 0.60, 0.65, 0.70, 0.75)),
        ((20, 10, 20, 40, 10, 40), (0.7, 0.6, 0.7, 0.7, 0.5, 0.9)),
        ((3, 1, 2), (0.3, 0.1, 0.2)),
        ((8, 5, 9, 5), (0.9, 0.9, 0.7, 0.9)),
    )
    told = "numbers = {} and scores = {}"
    sizes = torch.randint(1, 9, (14,))
    drawn = sizes, (sizes + torch.randint(5, (14,))) / 12
    return {told.format(*c): (torch.tensor(c[0]), torch.tensor(c[1])) for c in by_hand} | {"14 drawn designs": drawn}


def unbeaten(beats, order=lambda n, s, i: (n[i], i)):
    """Designs i that no j beats, by beats(numbers, scores, j, i), in this order."""

    def answer(numbers, scores):
        n, s, all_of_them = numbers.tolist(), scores.tolist(), range(len(numbers))
        left = [i for i in all_of_them if not any(beats(n, s, j, i) for j in all_of_them)]
        return sorted(left, key=lambda i: order(n, s, i))

    return answer


def beats(n, s, j, i):
    return n[j] <= n[i] and s[j] >= s[i] and (n[j], s[j]) != (n[i], s[i])


front = unbeaten(beats)

# S³Delta's last step ------------------------------------------------------------------------------


def by_fitting(numbers, worth, budget):
    return fitting(worth, numbers.tolist(), budget)


def kept_cases():
    by_hand = (
        ((6, 8, 3, 4, 1), (0.5, 0.9, 0.4, 0.1, 0.2), 12),
        ((4, 3, 4, 2), (0.5, 0.5, 0.5, 0.9), 6),
        ((5, 3, 4, 2), (0.9, 0.8, 0.7, 0.6), 8),
        ((2, 3, 1), (0.1, 0.3, 0.2), 7),
    )
    told = "numbers = {}, worth = {} and budget = {}"
    drawn = torch.randint(1, 20, (9,)), torch.rand(9), 40
    return {told.format(*c): (torch.tensor(c[0]), torch.tensor(c[1]), c[2]) for c in by_hand} | {"9 drawn ones": drawn}


def taking(
    order=lambda size, worth, i: -worth, fits=lambda size, left: size <= left, spends=True, stops=False, over=False
):
    """Candidates in this order; stops: at the first that does not fit; over: and takes that one too."""

    def answer(numbers, worth, budget):
        sizes, worths, kept, left = numbers.tolist(), worth.tolist(), [False] * len(numbers), budget
        for i in sorted(range(len(sizes)), key=lambda i: order(sizes[i], worths[i], i)):
            kept[i] = fits(sizes[i], left) or over
            if stops and not fits(sizes[i], left):
                break
            left -= sizes[i] if kept[i] and spends else 0
        return kept

    return answer


def best_sum(numbers, worth, budget):
    """All sets that fit, and of these the one that is worth most."""
    sets = [torch.tensor(kept) for kept in itertools.product((False, True), repeat=len(numbers))]
    return max((kept for kept in sets if numbers[kept].sum() <= budget), key=lambda kept: float(worth[kept].sum()))


def positions(numbers, worth, budget):
    return by_fitting(numbers, worth, budget).nonzero()[:, 0]


HYBRID = dict(
    kron_matrix=dict(
        oracle=by_compacter,
        cases=kron_cases,
        slips={
            "sᵢtᵢᵀ ⊗ Aᵢ has the same numbers elsewhere. Which of the two is scaled by the entries of the other?": (
                lambda A, s, t: products(A, s, t, lambda a, B: torch.kron(B, a)).sum(0)
            ),
            "every Aᵢ is transposed.": lambda A, s, t: products(A.mT, s, t).sum(0),
            "the Aᵢ are counted along the last axis of A. Which is A₁?": (
                lambda A, s, t: products(A.permute(2, 0, 1), s, t).sum(0)
            ),
            "the Aᵢ are counted along the second axis of A. Which is A₁?": (
                lambda A, s, t: products(A.permute(1, 0, 2), s, t).sum(0)
            ),
            "that is the first product alone.": lambda A, s, t: products(A, s, t)[0],
            "those are the n products. What becomes of them?": products,
            "that is their mean.": lambda A, s, t: products(A, s, t).mean(0),
            "the products are multiplied entry by entry.": lambda A, s, t: products(A, s, t).prod(0),
            "(Σ Aᵢ) ⊗ (Σ sᵢtᵢᵀ) lets each Aᵢ meet every pair. Whose pair is it?": (
                lambda A, s, t: torch.kron(A.sum(0), s.T @ t)
            ),
            "s and t are the other way round: which of them runs down the rows?": lambda A, s, t: products(A, t, s).sum(
                0
            ),
            "the whole matrix is transposed.": lambda A, s, t: products(A, s, t).sum(0).T,
            "the right numbers at wrong places: which two of the four axes make a row?": flattened("abxy"),
            "the columns are in another order. Which axis of the two is the outer one?": flattened("axyb"),
            "the rows are in another order. Which axis of the two is the outer one?": flattened("xaby"),
        },
    ),
    gate=dict(
        oracle=by_gated,
        cases=gate_cases,
        slips={
            "padding is counted.": gating(over=lambda g, real: g.mean(1)),
            "padding adds nothing, but the sum is still divided by t. How many tokens are in it?": (
                gating(over=lambda g, real: (g * real).mean(1))
            ),
            "padding was set to zero before σ. What is σ(w·0 + b)?": (
                gating(lambda x, real, w, b: torch.sigmoid(x * real[..., None] @ w + b), lambda g, real: g.mean(1))
            ),
            "that is σ of a mean. Is it the mean of σ?": gating(plain, after=torch.sigmoid),
            "that is σ of a mean, and padding is in it. Is it the mean of σ?": (
                gating(plain, lambda g, real: g.mean(1), torch.sigmoid)
            ),
            "where is σ? A gate lies between 0 and 1.": gating(plain),
            "that is one gate for the whole batch. Should a text's gate depend on its neighbours?": gating(
                over=of_batch
            ),
            "all texts have the same gate. Should a text's gate depend on its neighbours?": (
                gating(over=lambda g, real: of_batch(g, real).expand(len(g)))
            ),
            "each token has a gate of its own. What does the text have?": gating(over=lambda g, real: g),
            "that is the sum. Can a gate be above 1?": gating(over=lambda g, real: (g * real).sum(1)),
            "that is the gate of the first token. Who else is asked?": gating(over=lambda g, real: g[:, 0]),
            "that is the largest σ of a text.": gating(over=lambda g, real: (g * real).amax(1)),
            "where is b?": gating(lambda x, real, w, b: torch.sigmoid(x @ w)),
            "b is added behind σ. Does the gate then stay between 0 and 1?": (
                gating(lambda x, real, w, b: torch.sigmoid(x @ w) + b)
            ),
        },
    ),
    pareto=dict(
        oracle=by_search,
        cases=front_cases,
        slips={
            "one that is beaten in size or in score and equal in the other stays. What speaks for it?": (
                unbeaten(lambda n, s, j, i: n[j] < n[i] and s[j] > s[i])
            ),
            "of two with the same score the larger stays. What does it have that the smaller has not?": (
                unbeaten(lambda n, s, j, i: n[j] <= n[i] and s[j] > s[i])
            ),
            "of two of the same size the worse one stays. Would anybody take it?": (
                unbeaten(lambda n, s, j, i: n[j] < n[i] and s[j] >= s[i])
            ),
            "two equal designs throw each other out. Does one of them beat the other?": (
                unbeaten(lambda n, s, j, i: j != i and n[j] <= n[i] and s[j] >= s[i])
            ),
            "of equal designs only the first stays. Who beats the others?": (
                unbeaten(lambda n, s, j, i: beats(n, s, j, i) or (j < i and (n[j], s[j]) == (n[i], s[i])))
            ),
            "that is the best of each size. May a larger one that scores less stay?": (
                unbeaten(lambda n, s, j, i: n[j] == n[i] and s[j] > s[i])
            ),
            "that is the highest score. What if there is no room for it?": unbeaten(lambda n, s, j, i: s[j] > s[i]),
            "here more numbers are better. Are they?": lambda n, s: front(-n, s)[::-1],
            "here a low score is better. Is it?": lambda n, s: front(n, -s),
            "the right ones. In which order are they asked for?": unbeaten(beats, lambda n, s, i: i),
            "the right ones, the largest first. In which order are they asked for?": (
                unbeaten(beats, lambda n, s, i: (-n[i], i))
            ),
            "that is the front from its other end. In which order is it asked for?": lambda n, s: front(n, s)[::-1],
            "of equal designs the last stands first.": unbeaten(beats, lambda n, s, i: (n[i], -i)),
            "those are their numbers. Where do they stand?": lambda n, s: n[front(n, s)],
            "that is a mask. At which positions is it true?": lambda n, s: [i in front(n, s) for i in range(len(n))],
        },
    ),
    kept=dict(
        oracle=by_fitting,
        cases=kept_cases,
        slips={
            "it stops at the first that does not fit. Might a smaller one further down fit?": taking(stops=True),
            "it takes one that does not fit, and then stops. Is that within the budget?": taking(stops=True, over=True),
            "one that fits exactly is left out.": taking(fits=lambda size, left: size < left),
            "each fits into the budget by itself. And together?": taking(spends=False),
            "the least worthy come first.": taking(lambda size, worth, i: worth),
            "the smallest come first. Where is their worth?": taking(lambda size, worth, i: size),
            "that goes by worth per number. By what does the rule go?": taking(lambda size, worth, i: -worth / size),
            "that takes them as they stand. By what does the rule go?": taking(lambda size, worth, i: i),
            "of equally worthy ones it takes the last first.": taking(lambda size, worth, i: (-worth, -i)),
            "of equally worthy ones it takes the smallest first.": taking(lambda size, worth, i: (-worth, size)),
            "no set that fits is worth more. But what does the rule take first?": best_sum,
            "those are positions. What is asked for each candidate?": positions,
        },
    ),
)
