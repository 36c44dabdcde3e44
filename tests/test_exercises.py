"""Every exercise: the reference passes, a stub stays open, a wrong answer gets the hint that fits and no more."""

import copy
import inspect
import itertools
import re

import pytest
import torch
from answers import (  # noqa: F401
    FILES,
    NAMES,
    ONES,
    LoRA,
    OwnLoRA,
    added,
    all_at_once,
    bottleneck,
    checked,
    column,
    fitted,
    folds,
    fused,
    gradient_masked,
    heard_by_hand,
    hidden_prefix,
    kept_by,
    named,
    one_by_one,
    own,
    pairs,
    rank,
    reversed_sign,
    ridge_of_the_sum,
    row,
    shrunk_and_back,
    someone_looks,
    unweighted,
)

import peftlab as pl
from peftlab import solutions
from peftlab.checks import EXERCISES, kind, numbers
from peftlab.errors import PeftlabError


def test_these_are_the_exercises():
    assert NAMES == ["MyLoRA", "OwnLoRA", *EXERCISES], "each function has a solution, and no helper is offered as one"


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_passes_and_is_shown(name, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    (thing,) = (vars(file)[name] for file in FILES if name in vars(file))
    verdict, page = checked(thing), repr(pl.solution(name))
    assert verdict.ok is True and verdict.exercise == name
    shown = re.search(r"```python\n(.*)```\n\n(.*)\n\n</details>", page, re.DOTALL)
    whole, told = inspect.getsource(thing), inspect.getdoc(thing)
    assert shown[2] == told and shown[1] == re.sub(r'    """.*?"""\n\n?', "", whole, flags=re.DOTALL)
    assert re.match(rf"(class|def) {name}\(", shown[1]) and '"""' not in shown[1]
    here = dict(torch=torch, pl=pl, LoRA=LoRA)
    exec(shown[1], here)
    assert checked(here[name]).ok is True, "it runs in a lab, which has torch, pl and LoRA"


class Unwritten(pl.OutputDelta):
    def __init__(self, m, r, alpha):
        raise NotImplementedError("write A, B and the scale")


class Half(OwnLoRA):
    def forward(self, x, y):
        raise NotImplementedError("write the equation")


def unwritten(*case):
    raise NotImplementedError("write the line")


@pytest.mark.parametrize("stub", [Unwritten, Half, *(named(n, unwritten) for n in EXERCISES)], ids=lambda s: s.__name__)
def test_a_stub_stays_open(stub, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    verdict = checked(stub)
    assert verdict.ok is None and verdict.text.startswith("write ")


WRONG = [
    (own(B=lambda r, m: torch.randn(m.out_features, r)), "look at what B starts as"),
    (own(A=lambda r, m: torch.ones(r, m.in_features), B=ONES), "look at what B starts as"),
    (own(A=lambda r, m: torch.zeros(r, m.in_features)), "all starts as zero"),
    (own(scale=lambda alpha, r: alpha), "8 times as large as it should be"),
    (own(scale=lambda alpha, r: r / alpha), "0.25 times as large as it should be"),
    (own(B=lambda r, m: torch.zeros(r, m.out_features)), "look at names and shapes"),
    (own(A=lambda r, m: [r]), "your code stopped with AttributeError"),
    (named("kron_rank", lambda A, B: rank(A) + rank(B)), "B (3 5) of rank 3 you get 5: do the two ranks add?"),
    (named("kron_rank", lambda A, B: min(rank(A), rank(B))), "you get 2: that bounds the rank of a product A B"),
    (named("kron_rank", lambda A, B: max(rank(A), rank(B))), "you get 3: that is the larger rank"),
    (named("kron_rank", lambda A, B: min(A.shape) * min(B.shape)), "you get 12: that is what the shapes allow"),
    (named("kron_rank", lambda A, B: rank(torch.kron(A, B))), "A ⊗ B was built"),
    (
        named("kron_rank", lambda A, B: rank((A[:, None, :, None] * B[:, None]).reshape(len(A) * len(B), -1))),
        "A ⊗ B was built",
    ),
    (named("kron_rank", lambda A, B: 12), "of rank 3 you get 12."),
    (named("kron_rank", lambda A, B: None), "returned NoneType; it should return one number"),
    (named("kron_rank", lambda A, B: (rank(A), rank(B))), "returned 2 numbers; it should return one number"),
    (named("kron_rank", lambda A, B: rank(A @ B)), "your code stopped with RuntimeError"),
    (
        named("lora_scales", lambda a, r: (a / r**0.5, a / r)),
        "but with α = 16 and r = 4 you get 8 and 4: look at the order",
    ),
    (named("lora_scales", lambda a, r: (a / r, a / r)), "both are LoRA's"),
    (named("lora_scales", lambda a, r: (a / r**0.5, a / r**0.5)), "both are rsLoRA's"),
    (named("lora_scales", lambda a, r: (1 / r, 1 / r**0.5)), "where is α?"),
    (named("lora_scales", lambda a, r: (a / r, (a / r) ** 0.5)), "under the root"),
    (named("lora_scales", lambda a, r: (r / a, r**0.5 / a)), "should a larger rank"),
    (named("lora_scales", lambda a, r: a / r), "returned one number; it should return 2 numbers"),
    (named("lora_scales", lambda a, r: (a / r, a / r**2)), "right with α = 1 and r = 1, but with α = 16"),
    (named("crossed", reversed_sign), "the sign is the other way round"),
    (named("crossed", added), "that is the weighted sum of the changes"),
    (named("crossed", lambda *case: solutions.crossed(*case) + added(*case)), "that is the whole mixture"),
    (named("crossed", pairs), "a B with its own A"),
    (named("crossed", unweighted), "with w = (0.5, 0.5) the result is off by up to"),
    (named("crossed", lambda *case: torch.zeros(5, 7)), "right with w = (1, 0), but with w = (0.5, 0.5) the result"),
    (
        named("crossed", lambda *case: solutions.crossed(*case).T),
        "shape (7, 5); it should return a tensor of shape (5, 7)",
    ),
    (named("crossed", lambda Bs, As, w: As[0] @ As[0]), "your code stopped with RuntimeError"),
    (named("crossed", lambda Bs, As, w: "Σ"), "returned str; it should return a tensor of shape (5, 7)"),
    (named("top_k", lambda s, k: [i for i, x in enumerate(s) if x >= sorted(s)[-k]]), "ties with the k-th comes along"),
    (named("top_k", lambda s, k: [i for i, x in enumerate(s) if x > sorted(s)[-k]]), "is the k-th largest itself"),
    (named("top_k", lambda s, k: [i for i, x in enumerate(s) if sum(s < x) >= len(s) - k]), "Who fills the budget?"),
    (named("top_k", lambda s, k: s.sort().indices[:k].sort().values), "those are the smallest"),
    (named("top_k", lambda s, k: (-s.abs()).sort(stable=True).indices[:k].sort().values), "that goes by |score|"),
    (named("top_k", lambda s, k: s.sort(descending=True).values[:k]), "Where do they stand?"),
    (named("top_k", lambda s, k: s.sort(descending=True, stable=True).indices[:k]), "In which order"),
    (named("top_k", lambda s, k: torch.topk(s, k)[1].sort()[0]), "right with score = (0.3, -2, 1.5, 0, -0.7, 4)"),
    (named("top_k", lambda s, k: range(k)), "(0.3, -2, 1.5, 0, -0.7, 4) and k = 3 you get 0 and 1 and 2."),
    (named("top_k", lambda s, k: k), "returned one number; it should return 3 numbers."),
    (named("sparse_step", gradient_masked), "right with lr = 0.5, decay = 0.0"),
    (named("sparse_step", gradient_masked), "the gradient is masked. What else moves a weight"),
    (named("sparse_step", lambda W, g, M, lr, decay: torch.where(M, W - lr * g, W)), "what does the decay do"),
    (named("sparse_step", lambda W, g, M, lr, decay: torch.where(M, W - lr * g, W - lr * decay * W)), "wrong side"),
    (named("sparse_step", lambda W, g, M, lr, decay: W - lr * (g + decay * W)), "Where is the mask?"),
    (named("sparse_step", lambda W, g, M, lr, decay: (W - lr * (g + decay * W)) * M), "has become zero"),
    (named("sparse_step", shrunk_and_back), "nearly right, but entries outside the mask change in their last bits"),
    (
        named("sparse_step", lambda W, g, M, lr, decay: W.sub_(lr * g)[0]),
        "returned 6 numbers; it should return a tensor",
    ),
    (named("child_tuning_d", kept_by(lambda G: G.sum(0) ** 2)), "that is SAM's score"),
    (named("child_tuning_d", kept_by(lambda G: G.abs().mean(0))), "that ranks by Σ |g|"),
    (named("child_tuning_d", kept_by(lambda G: 1 / (G * G).sum(0))), "those matter least"),
    (named("child_tuning_d", kept_by(lambda G: G[-1] ** 2)), "the importance for one batch alone"),
    (named("child_tuning_d", lambda gradients, p: gradients[-1]), "Where is the mask?"),
    (named("child_tuning_d", lambda gradients, p: solutions.child_tuning_d(gradients, p) != 0), "that is the mask"),
    (named("child_tuning_d", lambda gradients, p: solutions.child_tuning_d(gradients, p) / p), "Child-Tuning-F"),
    (named("best_mask", lambda g, h, k: g.abs().topk(k).indices.sort().values), "Where has the curvature gone?"),
    (named("best_mask", lambda g, h, k: (g / h).abs().topk(k).indices.sort().values), "the longest steps"),
    (named("best_mask", lambda g, h, k: (g * g / h).topk(k).indices), "In which order"),
    (named("best_mask", lambda g, h, k: g * g / h >= (g * g / h).topk(k).values[-1]), "At which positions is it true?"),
    (named("expected_penalty", lambda d, p: p * sum(d**2)), "you get 6.25: p is the share that may change"),
    (named("expected_penalty", lambda d, p: sum(((1 - p) * d) ** 2)), "that squares the mean"),
    (named("expected_penalty", lambda d, p: (1 - p) * sum(d**2) ** 0.5), "look at the square"),
    (named("expected_penalty", lambda d, p: (1 - p) * d**2), "returned 2 numbers; it should return one number."),
    (named("leave_one_out", lambda X, y, lam: fitted(X, y, lam)[0]), "Has row i had no part in it?"),
    (named("leave_one_out", ridge_of_the_sum), "set the gradient of L to zero"),
    (named("leave_one_out", one_by_one), "it took 10 solutions"),
    (named("leave_one_out", all_at_once), "it took 10 solutions"),
    (named("leave_one_out", lambda X, y, lam: y - X @ fitted(X, y, lam)[0]), "your code stopped with RuntimeError"),
    (named("adapter_output", lambda x, y, *w: bottleneck(x if w[-1] else y, *w[:-1])), "What is it added to?"),
    (named("adapter_output", lambda x, y, *w: y + bottleneck(y, *w[:-1])), "but with an adapter in parallel"),
    (named("adapter_output", lambda x, y, *w: y + bottleneck(y, *w[:-1])), "What does a parallel adapter read?"),
    (named("adapter_output", lambda x, y, *w: y + bottleneck(x, *w[:-1])), "What does an adapter in series read?"),
    (
        named("adapter_output", lambda x, y, D, c, U, e, p: y + torch.relu(((x if p else y) @ D.T + c) @ U.T + e)),
        "relu comes after U",
    ),
    (
        named("adapter_output", lambda x, y, D, c, U, e, p: y + torch.relu((x if p else y) @ D.T) @ U.T + e),
        "where is c?",
    ),
    (named("adapter_output", lambda x, y, D, *rest: y + y @ D), "your code stopped with RuntimeError"),
    (named("prefix_attention", heard_by_hand(lambda q, t, n, real: real[:, None])), "as long as prefix and text"),
    (named("prefix_attention", heard_by_hand(hidden_prefix)), "nobody hears the prefix"),
    (named("prefix_attention", heard_by_hand(shift=0)), "right with no causal mask and no padding, but"),
    (named("prefix_attention", heard_by_hand(shift=0)), "hears only the first key of the prefix"),
    (named("prefix_attention", lambda q, k, v, *rest: q - torch.inf + torch.inf), "is nan, no number."),
    (named("prefix_attention", heard_by_hand(behind=True)), "behind the text, but both masks have it in front"),
    (named("prefix_attention", lambda q, k, v, *rest: q @ k), "your code stopped with RuntimeError"),
    (named("fold_ia3", folds(row, row)), "k and v are right. At down l scales what comes in"),
    (named("fold_ia3", folds(column, column)), "At k and v l scales what goes out"),
    (named("fold_ia3", folds(column, column, bias=False)), "and the bias goes out too"),
    (named("fold_ia3", folds(column, row, bias=False)), "right with a Llama, which has no biases, but with a RoBERTa"),
    (named("fold_ia3", folds(column, row, bias=False)), "what of the bias?"),
    (named("fold_ia3", lambda layer, l: layer.weight * l), "the layers are as they were"),
    (named("fold_ia3", lambda layer, l: layer.bias.mul_(l)), "your code stopped with AttributeError"),
    (named("fuse", lambda *case: fused(*case, dim=1)), "sum to one over the tokens"),
    (named("fuse", lambda *case: fused(*case, dim=0)), "sum to one over the batch"),
    (named("fuse", lambda *case: fused(*case, query=case[1])), "right with one adapter, but"),
    (named("fuse", lambda *case: fused(*case, query=case[1])), "every adapter asks itself"),
    (named("fuse", lambda y, z, Q, K, V: y + z.mean(2) @ V.T), "all adapters weigh the same"),
    (named("fuse", lambda y, *rest: fused(y, *rest) - y), "that is what is added. To what?"),
    (named("fuse", lambda y, z, *rest: z), "it should return a tensor of shape (2, 4, 5)"),
]


@pytest.mark.parametrize("thing, told", WRONG, ids=[f"{t.__name__}-{told[-30:]}" for t, told in WRONG])
def test_a_wrong_answer_gets_its_own_hint(thing, told, monkeypatch):
    verdict = checked(thing)
    assert verdict.ok is False and told in verdict.text, verdict
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    with pytest.raises(PeftlabError, match=re.escape(told)):
        checked(thing)


@pytest.mark.parametrize("name", EXERCISES)
def test_every_slip_gets_its_own_hint(name):
    for told, slip in EXERCISES[name].slips.items():
        verdict = checked(named(name, slip))
        assert verdict.ok is False and verdict.text.endswith(f": {told}"), verdict


@torch.no_grad()
def test_no_exercise_wants_what_a_slip_gives():
    """Every slip is told apart from the oracle by a case, and from every other slip."""
    off = lambda a, b: float((numbers(a) - numbers(b)).norm()) if kind(a) == kind(b) else float("inf")
    for exercise in EXERCISES.values():
        torch.manual_seed(0)
        cases = exercise.cases().values()
        answers = [[exercise.use(f, *copy.deepcopy(c)) for c in cases] for f in exercise.slips.values()]
        answers.append([exercise.oracle(*c) for c in cases])
        for a, b in itertools.combinations(answers, 2):
            assert max(map(off, a, b)) > 1e-2


def test_a_learner_may_write_into_what_is_given():
    def crossed(Bs, As, w):
        parts = [c * B @ A for B, A, c in zip(Bs, As, w, strict=True)]
        for M, c in zip([*Bs, *As], [*w, *w], strict=True):
            M *= c
        return sum(Bs) @ sum(As) - sum(parts)

    class Inside(OwnLoRA):
        def forward(self, x, y):
            y += self.s * (x @ self.A.T @ self.B.T)
            return y

    def sparse_step(W, g, mask, lr, decay):
        W[mask] -= lr * (g + decay * W)[mask]
        return W

    assert checked(crossed).ok is checked(Inside).ok is checked(sparse_step).ok is True


def test_a_scale_may_be_a_buffer():
    class Mine(OwnLoRA):
        def __init__(self, m, r, alpha):
            super().__init__(m, r, alpha)
            del self.s
            self.register_buffer("s", torch.tensor(alpha / r))

    assert checked(Mine).ok is True


def test_an_unknown_exercise_gets_the_nearest():
    with pytest.raises(PeftlabError, match="unknown exercise 'kron_ranks'; the nearest are kron_rank, kron_matrix, "):
        pl.check(named("kron_ranks", unwritten))
    with pytest.raises(PeftlabError, match="kron_rank, lora_scales, crossed, top_k"):
        pl.check(7)
    with pytest.raises(PeftlabError, match=r"pl.check\(OwnLoRA, like="):
        pl.check(OwnLoRA)
