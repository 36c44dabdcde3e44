"""What the tests of exercises share: a check of one answer, and answers that are wrong or written in another way."""

import pytest
import torch

import peftlab as pl
from peftlab import solutions, solutions_hybrid, solutions_unified, teach

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
