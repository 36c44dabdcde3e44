"""Every exercise: the reference passes, a stub stays open, a wrong answer gets the hint that fits and no more."""

import copy
import inspect
import itertools
import re

import pytest
import torch

import peftlab as pl
from peftlab import solutions, solutions_hybrid, solutions_unified, teach
from peftlab.checks import EXERCISES, beyond, kind, numbers
from peftlab.errors import PeftlabError

LoRA, rank, OwnLoRA = pl.get("lora").cls, torch.linalg.matrix_rank, solutions.OwnLoRA
FILES = solutions, solutions_hybrid, solutions_unified
NAMES = list(teach.answers())


@pytest.fixture(autouse=True)
def someone_looks(monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS", raising=False)


def checked(thing):
    return pl.check(thing, like=LoRA) if isinstance(thing, type) else pl.check(thing)


def named(name, answer):
    """A function of that name, as a learner would write it."""
    mine = lambda *case: answer(*case)
    mine.__name__ = name
    return mine


def own(A=lambda r, m: torch.randn(r, m.in_features), B=lambda r, m: torch.zeros(m.out_features, r), scale=None):
    """OwnLoRA whose matrices start as told."""

    class Mine(OwnLoRA):
        def __init__(self, m, r, alpha):
            pl.OutputDelta.__init__(self)
            self.A, self.B = torch.nn.Parameter(A(r, m)), torch.nn.Parameter(B(r, m))
            self.s = scale(alpha, r) if scale else alpha / r

    return Mine


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


def reversed_sign(Bs, As, w):
    return -solutions.crossed(Bs, As, w)


def added(Bs, As, w):
    return sum(c * B @ A for B, A, c in zip(Bs, As, w, strict=True))


def pairs(Bs, As, w):
    n = range(len(w))
    return sum((w[i] * w[j] * Bs[i] @ As[j] for i in n for j in n if i != j), torch.zeros(5, 7))


def unweighted(Bs, As, w):
    return sum(Bs) @ sum(As) - sum(B @ A for B, A in zip(Bs, As, strict=True))


def gradient_masked(W, g, mask, lr, decay):
    g[~mask] = 0
    return W - lr * (g + decay * W)


def shrunk_and_back(W, g, mask, lr, decay):
    shrunk = W * (1 - lr * decay)
    return torch.where(mask, shrunk - lr * g, shrunk / (1 - lr * decay))


def kept_by(score):
    def answer(gradients, p):
        F = score(torch.stack(gradients))
        return gradients[-1] * (F >= F.sort().values[-int(p * len(F))])

    return answer


def fitted(X, y, lam, divide=None):
    """Residuals and leverages of ridge regression, by the inverse."""
    H = X @ torch.linalg.inv(X.T @ X + (divide or len(X)) * lam * torch.eye(X.shape[1])) @ X.T
    return y - H @ y, H.diag()


def ridge_of_the_sum(X, y, lam):
    e, h = fitted(X, y, lam, divide=1)
    return e / (1 - h)


def one_by_one(X, y, lam):
    rows = range(len(y))
    kept = [[j for j in rows if j != i] for i in rows]
    least = lambda A, b: torch.linalg.inv(A.T @ A + len(y) * lam * torch.eye(A.shape[1])) @ A.T @ b
    return [y[i] - X[i] @ least(X[kept[i]], y[kept[i]]) for i in rows]


def all_at_once(X, y, lam):
    some = 1 - torch.eye(len(y))
    A = torch.einsum("ij,jk,jl->ikl", some, X, X) + len(y) * lam * torch.eye(X.shape[1])
    return y - (X * torch.linalg.solve(A, (some * y) @ X)).sum(1)


def bottleneck(z, D, c, U, e):
    return torch.relu(z @ D.T + c) @ U.T + e


def heard_by_hand(make=lambda q, t, n, real: torch.cat([torch.ones(len(q), n).bool(), real], 1)[:, None], **how):
    """Attention with a prefix through torch's own function; make: the mask; behind, is_causal: what may go wrong."""

    def answer(q, k, v, P_k, P_v, real, causal):
        (b, t, _), n = q.shape, len(P_k)
        put = lambda P, text: torch.cat([P.expand(b, -1, -1), text][:: -1 if "behind" in how else 1], 1)
        seen = make(q, t, n, real).expand(b, t, -1)
        if causal:
            earlier = torch.arange(seen.shape[2])[None] <= torch.arange(t)[:, None] + how.get("shift", n)
            seen = seen & earlier
        return torch.nn.functional.scaled_dot_product_attention(q, put(P_k, k), put(P_v, v), attn_mask=seen)

    return answer


def hidden_prefix(q, t, n, real):
    return torch.cat([torch.zeros(len(q), n).bool(), real], 1)[:, None]


def folds(at_down, elsewhere, bias=True):
    def fold_ia3(layer, l):
        layer.weight.mul_(at_down(l) if layer.site == "down" else elsewhere(l))
        if bias and layer.site != "down" and layer.bias is not None:
            layer.bias.mul_(l)

    return fold_ia3


def row(l):
    return l.view(-1, 1)


def column(l):
    return l.view(1, -1)


def fused(y, z, Q, K, V, dim=-1, query=None):
    s = torch.einsum("btnd,btnd->btn", (y[:, :, None] if query is None else query) @ Q.T, z @ K.T)
    return y + (s.softmax(dim)[:, :, None] @ z)[:, :, 0] @ V.T


ONES = lambda r, m: torch.ones(m.out_features, r)
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


def test_what_lorahub_mixes_is_the_equation():
    torch.manual_seed(1)
    Bs, As, w = list(torch.randn(2, 4, 3)), list(torch.randn(2, 3, 6)), (0.7, -0.2)
    by_hand = w[0] * w[1] * (Bs[0] @ As[1] + Bs[1] @ As[0]) + added(Bs, As, [c * c - c for c in w])
    assert torch.allclose(beyond(Bs, As, w), by_hand, atol=1e-5)


def test_exactly_k_are_taken_of_equal_ones_the_first():
    torch.manual_seed(1)
    for _ in range(50):
        s, k = torch.randint(4, (12,)).float(), int(torch.randint(1, 13, ()))
        by_hand = sorted(sorted(range(12), key=lambda i: (-s[i], i))[:k])
        assert EXERCISES["top_k"].oracle(s, k).tolist() == solutions.top_k(s, k).tolist() == by_hand


@pytest.mark.parametrize("step, changed", [(gradient_masked, 1.0), (solutions.sparse_step, 0.05)])
def test_only_the_repaired_step_keeps_a_model_sparse(step, changed):
    torch.manual_seed(2)
    W0, mask = torch.randn(20, 20), torch.zeros(400).index_fill(0, torch.randperm(400)[:20], 1).bool().view(20, 20)
    W = W0.clone()
    for _ in range(10):
        W = step(W, torch.randn(20, 20), mask, 0.1, 0.01)
    assert float((W != W0).float().mean()) == pytest.approx(changed)


def test_an_optimizer_with_decay_moves_what_has_no_gradient():
    """The slip of `sparse_step` is what torch itself does."""
    torch.manual_seed(3)
    W, g, mask = torch.randn(4, 6), torch.randn(4, 6), torch.rand(4, 6) < 0.3
    p = torch.nn.Parameter(W.clone())
    p.grad = g * mask
    torch.optim.SGD([p], 0.1, weight_decay=0.5).step()
    assert torch.allclose(p, gradient_masked(W, g, mask, 0.1, 0.5)) and bool((p != W).all())


@pytest.mark.parametrize("seed", range(20))
def test_the_best_mask_is_best_of_all(seed):
    torch.manual_seed(seed)
    g, h = torch.randn(8).double(), 10 ** (4 * torch.rand(8).double() - 2)
    least = lambda at: -g[at] @ torch.linalg.solve(h[at].diag(), g[at]) / 2  # of the model, with the entries `at` alone
    best = min(map(list, itertools.combinations(range(8), 3)), key=lambda at: float(least(at)))
    assert EXERCISES["best_mask"].oracle(g, h, 3).tolist() == best


def test_masks_of_exactly_k_entries_have_the_same_mean_penalty():
    delta, k = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.5]), 2
    left = [delta[[i for i in range(5) if i not in M]].square().sum() for M in itertools.combinations(range(5), k)]
    assert EXERCISES["expected_penalty"].oracle(delta, k / 5) == pytest.approx(float(sum(left) / len(left)))


def test_leave_one_out_refits_the_loss_as_it_is_told():
    """L = (1/n) Σ (yⱼ - xⱼᵀθ)² + λ‖θ‖², without row i but with the same n: one Newton step from 0 finds the least."""
    torch.manual_seed(5)
    n, d, lam = 9, 4, 0.25
    X, y, zero = torch.randn(n, d).double(), torch.randn(n).double(), torch.zeros(d).double()

    def residual(i):
        rows = [j for j in range(n) if j != i]
        L = lambda theta: ((y[rows] - X[rows] @ theta) ** 2).sum() / n + lam * theta @ theta
        slope, H = torch.func.grad(L)(zero), torch.func.hessian(L)(zero)
        return y[i] + X[i] @ torch.linalg.solve(H, slope)

    refitted = torch.stack([residual(i) for i in range(n)])
    for answer in (EXERCISES["leave_one_out"].oracle, solutions.leave_one_out):
        assert torch.allclose(answer(X, y, lam), refitted, rtol=0, atol=1e-12)


def test_leverages_may_be_found_row_by_row():
    def leave_one_out(X, y, lam):
        inverse = (X.T @ X + len(X) * lam * torch.eye(X.shape[1])).inverse()
        theta = inverse @ X.T @ y
        return [(b - x @ theta) / (1 - x @ inverse @ x) for x, b in zip(X, y, strict=True)]

    assert checked(leave_one_out).ok is True


def prefix_given(causal, b=3, t=6, n=2, d=4, lengths=(6, 3, 5)):
    torch.manual_seed(6)
    real = torch.arange(t) < torch.tensor(lengths)[:, None]
    return *torch.randn(3, b, t, d).double(), *torch.randn(2, n, d).double(), real, causal


@pytest.mark.parametrize("f", [EXERCISES["prefix_attention"].oracle, solutions.prefix_attention])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_a_prefix_is_what_attention_to_what_may_be_heard_gives(f, causal):
    """No mask at all here: each query by itself, over the prefix and just those tokens that it may hear."""
    q, k, v, P_k, P_v, real, _ = given = prefix_given(causal)
    out = f(*given)
    for row, length in enumerate(real.sum(1)):
        for i in range(length):
            heard = slice(0, i + 1 if causal else length)
            keys, values = torch.cat([P_k, k[row, heard]]), torch.cat([P_v, v[row, heard]])
            assert torch.allclose(out[row, i], (keys @ q[row, i] / 2).softmax(0) @ values, rtol=0, atol=1e-12)


def test_a_prefix_may_stand_behind_when_the_masks_go_with_it():
    def prefix_attention(q, k, v, P_k, P_v, real, causal):
        (b, t, _), n = q.shape, len(P_k)
        earlier = torch.ones(t, t).tril().bool() if causal else torch.ones(t, t).bool()
        seen = torch.cat([real[:, None] & earlier, torch.ones(b, t, n).bool()], 2)
        put = lambda text, P: torch.cat([text, P.expand(b, -1, -1)], 1)
        return torch.nn.functional.scaled_dot_product_attention(q, put(k, P_k), put(v, P_v), attn_mask=seen)

    assert checked(prefix_attention).ok is checked(named("prefix_attention", heard_by_hand())).ok is True


@torch.no_grad()
def test_folded_gains_are_what_merging_gives():
    torch.manual_seed(7)
    for model, gains, _ in EXERCISES["fold_ia3"].cases().values():
        by_hand, attached = copy.deepcopy(model), pl.attach(model, "ia3")
        names = {m: n for n, m in model.named_modules()}
        assert sorted(gains) == sorted(names[m] for _, m in attached.placed) and len(gains) == 3
        for delta, m in attached.placed:
            delta.l.copy_(gains[names[m]])
            solutions.fold_ia3(by_hand.get_submodule(names[m]), gains[names[m]])
        pl.merge(model, attached)
        for (name, p), own in zip(model.named_parameters(), by_hand.parameters(), strict=True):
            assert torch.allclose(p, own, atol=1e-6), name


def test_a_bias_of_keys_is_not_seen():
    """So whoever forgets it there is right as well; at v it shows."""

    def forgotten(site):
        def fold_ia3(layer, l):
            bias = None if layer.bias is None else layer.bias.clone()
            solutions.fold_ia3(layer, l)
            if layer.site == site and bias is not None:
                layer.bias.copy_(bias)

        return fold_ia3

    assert checked(forgotten("k")).ok is True and checked(forgotten("v")).ok is False


@pytest.mark.parametrize("f", [EXERCISES["fuse"].oracle, solutions.fuse])
@torch.no_grad()
def test_a_fusion_is_a_mean_with_weights_of_the_tokens_own(f):
    torch.manual_seed(8)
    y, z, Q, K, V = torch.randn(2, 3, 4), torch.randn(2, 3, 5, 4), *torch.randn(3, 4, 4)
    agreed = z[:, :, :1].expand_as(z)
    assert torch.allclose(f(y, agreed, Q, K, V), y + agreed[:, :, 0] @ V.T, atol=1e-5), "the weights sum to one"
    assert torch.allclose(f(y, z, Q, K, V), f(y, z.flip(2), Q, K, V), atol=1e-5), "adapters have no order"
    assert torch.allclose(f(y, z, Q, K, V)[:1, 1:2], f(y[:1, 1:2], z[:1, 1:2], Q, K, V), atol=1e-5), "nor tokens others"
    assert torch.allclose(f(y, z, 0 * Q, K, V), y + z.mean(2) @ V.T, atol=1e-5), "who asks nothing hears all alike"


@pytest.mark.parametrize("f", [EXERCISES["adapter_output"].oracle, solutions.adapter_output])
@torch.no_grad()
def test_without_relu_an_adapter_is_one_matrix_of_rank_r(f):
    torch.manual_seed(9)
    x, y, D, c, U, e = *torch.randn(2, 50, 8), torch.randn(2, 8), torch.randn(2), torch.randn(8, 2), torch.randn(8)
    for parallel, read in ((False, y), (True, x)):
        assert torch.equal(f(x, y, D, c, 0 * U, 0 * e, parallel), y), "at the start nothing is added"
        wide = f(x, y, D, c + 1e3, U, e, parallel) - y - 1e3 * U.sum(1)  # so large a c that relu lets everything pass
        assert torch.allclose(wide, read @ D.T @ U.T + U @ c + e, atol=1e-2)


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
