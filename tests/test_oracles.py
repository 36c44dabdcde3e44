"""The answers that the exercises hold to be right, against brute force."""

import copy
import itertools

import pytest
import torch
from answers import added, checked, gradient_masked, heard_by_hand, named, someone_looks  # noqa: F401

import peftlab as pl
from peftlab import solutions
from peftlab.checks import EXERCISES, beyond


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
