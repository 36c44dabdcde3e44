"""The exercises of labs 04 and 05: wrong answers as a learner may write them, each with its own hint."""

import re

import pytest
import torch
from answers import checked, named, someone_looks  # noqa: F401
from hybrid_answers import mask_of, sigmoid

from peftlab.checks import kind
from peftlab.errors import PeftlabError
from peftlab.solutions_hybrid import gate, kept, pareto
from peftlab.solutions_unified import prune, stored_bits


def swapped(A, s, t):
    return sum(torch.kron(x[:, None] * y, a) for a, x, y in zip(A, s, t, strict=True))


def laid_flat(A, s, t):
    return torch.einsum("nab,nxy->abxy", A, torch.einsum("nx,ny->nxy", s, t)).reshape(len(A) * s.shape[1], -1)


def greedy(by, skip=True):
    """Candidates by falling `by`, in plain Python."""

    def answer(numbers, worth, budget):
        keep, spent = set(), 0
        for i in sorted(range(len(numbers)), key=lambda i: -by(numbers[i], worth[i])):
            if spent + numbers[i] <= budget:
                keep.add(i)
                spent += numbers[i]
            elif not skip:
                break
        return [i in keep for i in range(len(numbers))]

    return answer


def scan(numbers, scores):
    """From the smallest up, whoever scores more than all before: equal designs are lost."""
    found, most = [], -1.0
    for i in numbers.argsort(stable=True).tolist():
        if scores[i] > most:
            found, most = [*found, i], scores[i]
    return found


def nothing_beats(better):
    def answer(numbers, scores):
        n = range(len(numbers))
        left = [i for i in n if not any(better(numbers[j], scores[j], numbers[i], scores[i]) for j in n)]
        return sorted(left, key=lambda i: numbers[i])

    return answer


def pruned(score, count=int):
    def answer(weights, gradients, p):
        flat = torch.cat([score(w, g).reshape(-1) for w, g in zip(weights, gradients, strict=True)])
        keep = flat.argsort(descending=True, stable=True).argsort() < count(p * len(flat))
        return [m.view(w.shape) for m, w in zip(keep.split([w.numel() for w in weights]), weights, strict=True)]

    return answer


def each_alone(weights, gradients, p):
    return [prune([w], [g], p)[0] for w, g in zip(weights, gradients, strict=True)]


class Straight(torch.autograd.Function):
    """A mask, whose gradient goes to the scores as it comes, or (`signed`) with their signs."""

    @staticmethod
    def forward(ctx, s, p, signed):
        ctx.save_for_backward(s.sign() if signed else torch.ones_like(s))
        return mask_of(s, p)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None


def float_masks(layers, tasks, shapes):
    n = sum(a * b for a, b in (s for s in shapes if len(s) == 2))
    return 32 * (sum(torch.Size(s).numel() for s in shapes) + n * (layers + (tasks if tasks > 1 else 0)))


def without_padding(layers, tasks, shapes):
    n = sum(s[0] * s[1] for s in shapes if len(s) == 2)
    return 32 * sum(torch.Size(s).numel() for s in shapes) + n * (layers + tasks * (tasks > 1))


WRONG = [
    ("kron_matrix", swapped, "has the same numbers elsewhere"),
    ("kron_matrix", swapped, "right with n = 1, k = 2 and l = 5, but with n = 2"),
    ("kron_matrix", laid_flat, "which two of the four axes make a row?"),
    ("kron_matrix", lambda A, s, t: torch.kron(A.sum(0), torch.einsum("nx,ny->xy", s, t)), "Whose pair is it?"),
    ("kron_matrix", lambda A, s, t: torch.kron(A[0], torch.outer(s[0], t[0])), "the first product alone"),
    (
        "kron_matrix",
        lambda A, s, t: torch.einsum("nab,nx,ny->naxby", A, s, t).flatten(3).flatten(1, 2),
        "returned a tensor of shape (2, 6, 8); it should return a tensor of shape (6, 8): those are the n products",
    ),
    ("kron_matrix", lambda A, s, t: A @ s, "it should return a tensor of shape (6, 8)."),
    (
        "gate",
        lambda x, real, w, b: sigmoid(x, w, b).mean(1),
        "right with no padding, but with padding behind the texts",
    ),
    ("gate", lambda x, real, w, b: sigmoid(x, w, b).mean(1), ": padding is counted."),
    ("gate", lambda x, real, w, b: sigmoid(x.mean(1), w, b), "σ of a mean, and padding is in it"),
    (
        "gate",
        lambda x, real, w, b: sigmoid((x * real[..., None]).sum(1) / real.sum(1, keepdim=True), w, b),
        ": that is σ of a mean. Is it",
    ),
    ("gate", lambda x, real, w, b: (sigmoid(x, w, b) * real).mean(1), "still divided by t"),
    (
        "gate",
        lambda x, real, w, b: sigmoid(x, w, b)[real].mean(),
        "returned one number; it should return 3 numbers: that is",
    ),
    (
        "gate",
        lambda x, real, w, b: gate(x, real, w, b)[:, None],
        "returned a tensor of shape (3, 1); it should return 3",
    ),
    ("pareto", scan, "of equal designs only the first stays"),
    ("pareto", scan, "it returned 3 numbers; it should return 4 numbers"),
    ("pareto", nothing_beats(lambda n, s, m, r: n < m and s > r), "equal in the other stays"),
    ("pareto", lambda n, s: [i for i in range(len(n)) if i in pareto(n, s)], "In which order"),
    ("pareto", lambda n, s: pareto(n, s)[::-1], "from its other end"),
    ("pareto", lambda n, s: sorted(pareto(n, s), key=lambda i: n[i], reverse=True), "the largest first"),
    ("pareto", lambda n, s: [int(s.argmax())], "(0.8, 0.6, 0.65, 0.7, 0.75) it returned 1 numbers; it should return 3"),
    ("kept", greedy(lambda n, w: w, skip=False), "Might a smaller one further down fit?"),
    ("kept", greedy(lambda n, w: w / n), "by worth per number"),
    ("kept", greedy(lambda n, w: -n), "Where is their worth?"),
    ("kept", lambda n, w, budget: n <= budget, "And together?"),
    ("kept", lambda n, w, budget: [i for i, k in enumerate(kept(n, w, budget)) if k], "those are positions"),
    ("one_adapter", lambda Ds, cs, Us, es: (Ds[0], cs[0], Us[0], es[0]), "that is the first copy"),
    ("one_adapter", lambda Ds, cs, Us, es: (Ds[0], cs[0], Us[0], es[0]), "right with 1 copy, r = 2 and d = 5, but"),
    ("one_adapter", lambda *copies: [t.sum(0) for t in copies], "those are sums"),
    (
        "one_adapter",
        lambda Ds, cs, Us, es: (torch.cat([*Ds]), torch.cat([*cs]), torch.cat([*Us], 1) / len(Us), es.mean(0)),
        "returned tensors of shapes (12, 6), (12,), (6, 12), (6,); it should return tensors of shapes (3, 6), (3,), "
        "(6, 3), (6,): that is the mean of what all copies put out",
    ),
    ("one_adapter", lambda Ds, cs, Us, es: (Ds.mean(0), Us.mean(0)), "returned tensors of shapes (3, 6), (6, 3); it"),
    ("one_adapter", lambda Ds, cs, Us, es: dict(D=Ds.mean(0)), "returned dict; it should return tensors of shapes"),
    ("prune", each_alone, "every tensor keeps its own share"),
    ("prune", pruned(lambda w, g: g.abs()), "that goes by |g|"),
    ("prune", pruned(lambda w, g: -((w * g) ** 2)), "those matter least"),
    ("prune", pruned(lambda w, g: (w * g) ** 2, lambda n: -int(-n // 1)), "keeps one too many"),
    (
        "prune",
        lambda w, g, p: torch.cat([m.flatten() for m in prune(w, g, p)]),
        "returned 7 numbers; it should return tensors",
    ),
    ("prune", lambda w, g, p: [~m for m in prune(w, g, p)], "it is true for what goes"),
    (
        "masked",
        lambda W, s, p: W * mask_of(s, p),
        "right with the values at p = 0.4, but with the gradient of the scores at p = 0.4 the",
    ),
    ("masked", lambda W, s, p: W * mask_of(s, p), "the scores learn nothing"),
    (
        "masked",
        lambda W, s, p: (W * mask_of(s, p)).detach(),
        "with the gradient of the prototype at p = 0.4 the result is off by up to",
    ),
    ("masked", lambda W, s, p: W * Straight.apply(s, p, False), "What is its sign where a score is below zero?"),
    ("masked", lambda W, s, p: W.data * Straight.apply(s, p, True), "the prototype learns nothing"),
    ("masked", lambda W, s, p: W * s.abs(), "Where is the mask?"),
    (
        "masked",
        lambda W, s, p: (W * mask_of(s, p))[0],
        "returned 6 numbers; it should return a tensor of shape (4, 6).",
    ),
    ("masked", lambda W, s, p: None, "returned NoneType; it should return a tensor of shape (4, 6)."),
    ("stored_bits", float_masks, "that stores the scores"),
    ("stored_bits", without_padding, "can a file hold a part of a byte?"),
    ("stored_bits", without_padding, "right with layers = 3, tasks = 1 and shapes = [(4, 8), (4,), (8, 4), (8,)], but"),
    ("stored_bits", lambda layers, tasks, shapes: stored_bits(layers, tasks, shapes) / 8, "those are bytes"),
    ("stored_bits", lambda layers, tasks, shapes: stored_bits(layers, 1, shapes), "where are the task masks?"),
]


@pytest.mark.parametrize("name, answer, told", WRONG, ids=[f"{w[0]}-{w[2][-30:]}" for w in WRONG])
def test_a_wrong_answer_gets_its_own_hint(name, answer, told, monkeypatch):
    verdict = checked(named(name, answer))
    assert verdict.ok is False and told in verdict.text, verdict
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    with pytest.raises(PeftlabError, match=re.escape(told)):
        checked(named(name, answer))


RIGHT = dict(
    kron_matrix=lambda A, s, t: torch.einsum("nab,nx,ny->axby", A, s, t).flatten(2).flatten(0, 1),
    gate=lambda x, real, w, b: [sigmoid(text[words], w, b).mean() for text, words in zip(x, real, strict=True)],
    pareto=lambda n, s: torch.tensor(nothing_beats(lambda n, s, m, r: (n < m and s >= r) or (n <= m and s > r))(n, s)),
    kept=greedy(lambda n, w: w),
    one_adapter=lambda *copies: [sum(t) / len(t) for t in copies],
    prune=pruned(lambda w, g: (w * g) ** 2),
    masked=lambda W, s, p: W * Straight.apply(s, p, True),
)


@pytest.mark.parametrize("name", RIGHT)
def test_it_may_be_written_in_another_way(name):
    assert checked(named(name, RIGHT[name])).ok is True


def test_several_tensors_are_told_apart_by_their_shapes():
    one, two = torch.zeros(2, 3), torch.zeros(3)
    assert kind((one, two)) == kind([one, two]) == "tensors of shapes (2, 3), (3,)" != kind((two, one))
    assert kind([torch.tensor([1.0]), torch.tensor([2.0])]) == "2 numbers" and kind((one, "Σ")) == "tuple"
