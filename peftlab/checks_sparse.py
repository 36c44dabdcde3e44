"""The exercises on masks (labs 02 and 06): oracles, cases and slips, as `checks` registers them."""

import itertools
import math

import torch
from torch.overrides import TorchFunctionMode

from .masks import best, select

# Lab 02: which entries, and what a step does with them ---------------------------------------------


def top_k_cases():
    drawn = (
        ((0.3, -2, 1.5, 0, -0.7, 4), 3),
        ((3, 1, 4, 1, 5, 1, 1), 4),
        ((2, 0, 1, 1, 1, 1, 1, 3), 4),
        ((0, 0, 0, 0, 0, 0), 3),
        ((-1, -3, -1, -2, -1), 2),
        ((1, 2, 1), 3),
    )
    return {f"score = {s} and k = {k}": (torch.tensor(s, dtype=torch.float32), k) for s, k in drawn}


def descending(score, k):
    """The right ones, the best of them first."""
    return score.argsort(descending=True, stable=True)[:k]


def as_mask(score, k):
    return torch.zeros(len(score)).index_fill(0, best(score, k), 1.0)


def above(score, k, compare):
    """Positions whose score compares so with the k-th largest."""
    return where(compare(score, score.topk(k).values[-1]))


def where(mask):
    return mask.nonzero()[:, 0]


def theorem_3(score, k):
    """The indicator of 2211.15583 as it is written: at least n - k entries are strictly smaller."""
    return where((score[:, None] > score).sum(1) >= len(score) - k)


def masked_sgd(W, g, mask, lr, decay):
    """Only the masked entries are a parameter at all. Without momentum the decay of `SGD` is the decoupled one."""
    v = torch.nn.Parameter(W[mask])
    v.grad = g[mask]
    torch.optim.SGD([v], lr, weight_decay=decay).step()
    return W.masked_scatter(mask, v)


def step_cases():
    settings = (0.1, 0.5, 0.3), (0.5, 0.0, 0.3), (1.0, 0.1, 0.6), (0.1, 0.5, 1.0), (0.1, 0.5, 0.0)
    told, drawn = "lr = {}, decay = {} and {} of 24 in the mask", {}
    for lr, decay, p in settings:
        mask = torch.rand(4, 6) < p
        drawn[told.format(lr, decay, int(mask.sum()))] = torch.randn(4, 6), torch.randn(4, 6), mask, lr, decay
    return drawn


def not_to_the_bit(mine, W, g, mask, lr, decay):
    if (torch.as_tensor(mine(W.clone(), g, mask, lr, decay))[~mask] != W[~mask]).any():
        return "nearly right, but entries outside the mask change in their last bits. Why do they change at all?"


def fisher(g):
    return (g * g).sum(0)


def child(gradients, p):
    return keep(gradients[-1], select([fisher(torch.stack(gradients))], p))


def keep(g, at):
    return torch.zeros_like(g).index_copy(0, at, g[at])


def by(score, take=lambda g: g[-1], count=math.floor):
    """Child-Tuning-D but for the score, the gradient that is masked, or the rounding of p·m."""
    return lambda g, p: keep(take(g), best(score(torch.stack(g)), count(p * len(g[0]))))


def child_cases():
    by_hand = (4, 2, 3, 1, 0), (0, 2, -3, 0, 0), (0.5, 2, 0.2, 1.5, -0.3)  # every slip is wrong here already
    drawn = lambda n, m: [torch.randn(m) * torch.randn(m).exp() for _ in range(n)]
    first = [torch.tensor(g, dtype=torch.float32) for g in by_hand], 0.5
    return {"gradients = [{}, {}, {}] and p = 0.5".format(*by_hand): first} | {
        f"{n} gradients, m = {m} and p = {p}": (drawn(n, m), p) for n, m, p in ((4, 8, 0.25), (6, 9, 0.5), (5, 6, 1))
    }


# Lab 06: what the theory says of a mask -----------------------------------------------------------


def best_of_model(g, h, k):
    return best(g * g / (2 * h), k)


def model_cases():
    spread = ((8, 3, 2), (8, 3, 1), (6, 1, 1), (12, 5, 2))
    told = "{} entries, h between {:g} and {:g}, k = {}"
    return {
        told.format(m, 10**-s, 10**s, k): (torch.randn(m), 10 ** (s * (2 * torch.rand(m) - 1)), k) for m, k, s in spread
    }


def mean_penalty(delta, p):
    """Every mask that there is, weighted by how likely it is."""
    M = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(delta))))
    chance = (p**M * (1 - p) ** (1 - M)).prod(1)
    return chance @ ((1 - M) * delta).square().sum(1)


def penalty_cases():
    drawn = {f"{m} entries and p = {p}": (torch.randn(m), p) for m, p in ((6, 0.1), (4, 0.9), (5, 1.0))}
    return {"Δ = (3, -4) and p = 0.25": (torch.tensor((3.0, -4.0)), 0.25)} | drawn


def refits(X, y, lam, divide=lambda n: n):
    """n ridge regressions, each without one row; every loss is divided by the same n."""
    X, y = X.double(), y.double()
    n, d = X.shape
    found = []
    for i in range(n):
        A, b = (torch.cat([t[:i], t[i + 1 :]]) for t in (X, y))
        found.append(y[i] - X[i] @ torch.linalg.solve(A.T @ A + divide(n) * lam * torch.eye(d), A.T @ b))
    return torch.stack(found)


def one_fit(answer, scale=lambda n: n):
    """answer(e, h, y) from the residuals e and leverages h of the one fit to all rows."""

    def found(X, y, lam):
        H = X @ torch.linalg.solve(X.T @ X + scale(len(X)) * lam * torch.eye(X.shape[1]), X.T)
        return answer(y - H @ y, H.diagonal(), y)

    return found


def ridge_cases():
    drawn = {}
    for n, d, lam in ((10, 4, 0.1), (6, 3, 1.0), (8, 12, 0.5)):
        X = torch.randn(n, d)
        drawn[f"{n} rows of {d} numbers and λ = {lam}"] = X, X @ torch.randn(d) + torch.randn(n), lam
    return drawn


class Solved(TorchFunctionMode):
    """Counts the matrices that are inverted, factored or solved meanwhile, those of a batch one by one."""

    words, times = ("solve", "inv", "lstsq", "cholesky", "eigh", "svd", "linalg_qr"), 0

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if any(word in getattr(f, "__name__", "") for word in self.words):
            self.times += next((math.prod(t.shape[:-2]) for t in args if isinstance(t, torch.Tensor)), 1)
        return f(*args, **kwargs or {})


def refitted(mine, X, y, lam):
    with Solved() as seen:
        mine(X, y, lam)
    if seen.times >= len(y):
        return f"the numbers are right, but it took {seen.times} solutions. What does the one fit to all rows tell?"


SPARSE = dict(
    top_k=(
        best,
        top_k_cases,
        {
            "whatever ties with the k-th comes along. How many should there be?": lambda s, k: above(s, k, torch.ge),
            "is the k-th largest itself among them?": lambda s, k: above(s, k, torch.gt),
            "a strict > leaves out all that tie at the border. Who fills the budget?": theorem_3,
            "those are the smallest.": lambda s, k: best(-s, k),
            "that goes by |score|. Which is larger, -2 or 0.3?": lambda s, k: best(s.abs(), k),
            "those are the values. Where do they stand?": lambda s, k: s.topk(k).values,
            "that is a mask. At which positions is it true?": as_mask,
            "the right ones. In which order are they asked for?": descending,
            "which of equal ones does topk take? It does not promise the first.": (
                lambda s, k: s.topk(k).indices.sort().values
            ),
            "in which order are they asked for? And which of equal ones should it be?": lambda s, k: s.topk(k).indices,
        },
    ),
    sparse_step=(
        masked_sgd,
        step_cases,
        {
            "the gradient is masked. What else moves a weight in this step?": (
                lambda W, g, M, lr, decay: W * (1 - lr * decay) - lr * g * M
            ),
            "the rest stays. But what does the decay do to the entries in the mask?": (
                lambda W, g, M, lr, decay: W - lr * g * M
            ),
            "the decay is on the wrong side of the mask.": (
                lambda W, g, M, lr, decay: W * (1 - lr * decay * ~M) - lr * g * M
            ),
            "the decay is masked. What else moves a weight in this step?": (
                lambda W, g, M, lr, decay: W * (1 - lr * decay * M) - lr * g
            ),
            "every entry has moved. Where is the mask?": lambda W, g, M, lr, decay: W * (1 - lr * decay) - lr * g,
            "what is not in the mask has become zero. It should stay as it was.": (
                lambda W, g, M, lr, decay: M * (W * (1 - lr * decay) - lr * g)
            ),
            "does the decay depend on the learning rate?": lambda W, g, M, lr, decay: W - M * (lr * g + decay * W),
            "does this step go down the slope?": lambda W, g, M, lr, decay: W * (1 - lr * decay * M) + lr * g * M,
        },
        not_to_the_bit,
    ),
    child_tuning_d=(
        child,
        child_cases,
        {
            "in (Σ g)² batches that disagree cancel: that is SAM's score. Do they cancel in Fisher's?": (
                by(lambda g: g.sum(0).abs())
            ),
            "that ranks by Σ |g|. Does one large gradient weigh as much as two of half its size?": (
                by(lambda g: g.abs().sum(0))
            ),
            "those matter least.": by(lambda g: -fisher(g)),
            "that is the importance for one batch alone. What of the others?": by(lambda g: g[-1].abs()),
            "that is the whole gradient. Where is the mask?": lambda g, p: g[-1],
            "that is the mask. What does it leave of the gradient?": by(fisher, lambda g: torch.ones_like(g[0])),
            "the mask is right. Of which batch is the gradient that it masks?": by(fisher, lambda g: sum(g)),
            "the mask is right. Dividing by p belongs to Child-Tuning-F.": lambda g, p: child(g, p) / p,
            "that keeps one too many where p·m is not whole.": by(fisher, count=math.ceil),
        },
    ),
    best_mask=(
        best_of_model,
        model_cases,
        {
            "that ranks by g², as SAM does. Where has the curvature gone?": lambda g, h, k: best(g * g, k),
            "those take the longest steps. How far does the model fall on them?": lambda g, h, k: best(g.abs() / h, k),
            "does more curvature make an entry better or worse?": lambda g, h, k: best(g * g * h, k),
            "should the sign of g matter?": lambda g, h, k: best(g / h, k),
            "those are the flattest. What if there is no slope?": lambda g, h, k: best(1 / h, k),
            "with those the model falls least.": lambda g, h, k: best(-g * g / h, k),
            "that is a mask. At which positions is it true?": lambda g, h, k: as_mask(g * g / h, k),
            "the right ones. In which order are they asked for?": lambda g, h, k: descending(g * g / h, k),
        },
    ),
    expected_penalty=(
        mean_penalty,
        penalty_cases,
        {
            "p is the share that may change. Which share is penalised?": lambda d, p: p * (d @ d),
            "that squares the mean. What is the mean of the square, where a number is 0 or 1?": (
                lambda d, p: (1 - p) ** 2 * (d @ d)
            ),
            "look at the square of the norm.": lambda d, p: (1 - p) * d.norm(),
            "that is the penalty without a mask.": lambda d, p: d @ d,
            "is a norm a sum or a mean?": lambda d, p: (1 - p) * d.square().mean(),
        },
    ),
    leave_one_out=(
        refits,
        ridge_cases,
        {
            "those are the residuals of the one fit. Has row i had no part in it?": one_fit(lambda e, h, y: e),
            "should a row that was left out be fitted better or worse?": one_fit(lambda e, h, y: e * (1 - h)),
            "the leverage is in it twice.": one_fit(lambda e, h, y: e / (1 - h) ** 2),
            "every row gets the same leverage. Do all rows pull as much?": one_fit(lambda e, h, y: e / (1 - h.mean())),
            "set the gradient of L to zero. What stands beside λ when the mean has become a sum?": (
                one_fit(lambda e, h, y: e / (1 - h), lambda n: 1)
            ),
            "each refit divides by n - 1. By what does L divide?": lambda X, y, lam: refits(X, y, lam, lambda n: n - 1),
            "the sign is the other way round.": one_fit(lambda e, h, y: -e / (1 - h)),
            "those are the predictions. How far is each from its y?": one_fit(lambda e, h, y: y - e / (1 - h)),
        },
        refitted,
    ),
)
