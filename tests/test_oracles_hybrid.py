"""The answers that the exercises of labs 04 and 05 hold to be right, against brute force and attached deltas."""

import itertools

import pytest
import tiny
import torch
from answers import checked, named, someone_looks  # noqa: F401
from hybrid_answers import either, mask_of
from safetensors.torch import load_file

import peftlab as pl
from peftlab.checks import EXERCISES
from peftlab.solutions_hybrid import gate, kept, kron_matrix, pareto
from peftlab.solutions_unified import masked, one_adapter, prune, stored_bits


@either(kron_matrix)
@torch.no_grad()
def test_a_kronecker_product_mixes_two_mixtures(f):
    """(A ⊗ s tᵀ) of a vector that is a ⊗ x is A a ⊗ s (t·x)."""
    torch.manual_seed(1)
    A, s, t, a, x = torch.randn(3, 3, 3), torch.randn(3, 2), torch.randn(3, 4), torch.randn(3), torch.randn(4)
    by_hand = sum(torch.kron(A[i] @ a, s[i]) * (t[i] @ x) for i in range(3))
    assert torch.allclose(f(A, s, t) @ torch.kron(a, x), by_hand, atol=1e-5)
    one = f(A * torch.tensor([1, 0, 0])[:, None, None], s, t)
    assert torch.linalg.matrix_rank(one) == 3 and torch.linalg.matrix_rank(f(A, s, t)) == 6


@either(gate)
@torch.no_grad()
def test_a_gate_is_the_texts_own(f):
    torch.manual_seed(2)
    x, w = torch.randn(3, 5, 4), torch.randn(4)
    real = torch.arange(5) < torch.tensor([2, 5, 4])[:, None]
    out = f(x, real, w, 0.3)
    assert all(
        torch.allclose(out[i], f(x[i : i + 1, : real[i].sum()], real[i : i + 1, real[i]], w, 0.3)) for i in range(3)
    )
    assert torch.allclose(f(x + 1e3 * ~real[..., None], real, w, 0.3), out), "whatever the padding holds"
    assert torch.allclose(f(0 * x, real, w, 0.3), torch.tensor(0.3).sigmoid())


@torch.no_grad()
def test_the_gate_is_that_of_an_attached_unipelt():
    model = tiny.model("roberta")
    one = pl.attach(model, "gated-lora", seed=3)
    batch = tiny.batch(model)
    delta, m = one.placed[-1]
    delta.w.normal_()
    seen = []
    handle = m.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(**batch)
    handle.remove()
    real = batch["attention_mask"].bool()
    assert not real.all(), "there is padding"
    assert torch.allclose(gate(seen[0], real, delta.w, delta.b), delta.heard, atol=1e-6)


@either(pareto)
def test_a_front_is_found_by_any_order_and_scale(f):
    torch.manual_seed(3)
    for _ in range(20):
        n, s = torch.randint(1, 8, (10,)), torch.randint(8, (10,)) / 8
        front = f(n, s)
        for i in range(10):
            beaten = ((n <= n[i]) & (s >= s[i]) & ((n < n[i]) | (s > s[i]))).any()
            assert (i in front) == (not beaten)
        sizes = [(int(n[i]), i) for i in front]
        assert sizes == sorted(sizes) and f(n * n, s / 2) == front


@either(kept)
def test_what_is_left_out_was_too_large_when_its_turn_came(f):
    torch.manual_seed(4)
    for _ in range(20):
        n, worth, budget = torch.randint(1, 15, (8,)), torch.rand(8), int(torch.randint(15, 60, ()))
        keep = torch.as_tensor(f(n, worth, budget))
        for i in range(8):
            before = int(n[keep & (worth > worth[i])].sum())
            assert bool(keep[i]) == (before + int(n[i]) <= budget)


@either(one_adapter)
@torch.no_grad()
def test_one_adapter_is_what_an_attached_adamix_computes_and_leaves(f):
    model = tiny.model("roberta").eval()
    one, batch = pl.attach(model, pl.recipe("adamix", r=3, copies=3), seed=5), tiny.batch(model)
    for delta in one.deltas:
        for p in delta.parameters():
            p.normal_(std=0.3)
    mixed = model(**batch).logits
    left = [f(*(getattr(delta, name).detach().clone() for name in "DcUe")) for delta in one.deltas]
    one()
    plain = pl.attach(model, pl.recipe("adapter", r=3, where="down"), seed=5)
    for delta, tensors in zip(plain.deltas, left, strict=True):
        delta.load_state_dict(dict(zip("DcUe", tensors, strict=True)))
    assert len(left) == 2 and torch.allclose(model(**batch).logits, mixed, atol=1e-5)


@either(prune)
def test_exactly_so_many_are_kept_and_none_of_the_rest_is_better(f):
    torch.manual_seed(6)
    for p in (0.1, 0.33, 0.8):
        weights, gradients = ([torch.randn(s) for s in ((4, 3), (5,), (2, 6))] for _ in range(2))
        masks = f(weights, gradients, p)
        assert [m.shape for m in masks] == [w.shape for w in weights] and all(m.dtype == torch.bool for m in masks)
        assert sum(int(m.sum()) for m in masks) == int(p * 29)
        scores = [(w * g).abs() for w, g in zip(weights, gradients, strict=True)]
        inside, outside = (torch.cat([s[m ^ out] for s, m in zip(scores, masks, strict=True)]) for out in (False, True))
        assert inside.min() >= outside.max()


def test_snip_cannot_choose_where_one_half_of_an_adapter_is_zero():
    """What the solution says of U = 0."""
    torch.manual_seed(7)
    x, D, U = torch.randn(9, 6), torch.randn(3, 6).requires_grad_(), torch.zeros(6, 3).requires_grad_()
    (x + (x @ D.T).relu() @ U.T - torch.randn(9, 6)).square().sum().backward()
    masks = prune([D.detach(), U.detach()], [D.grad, U.grad], 0.5)
    assert not D.grad.any() and U.grad.any() and masks[0].all() and not masks[1].any()


@torch.no_grad()
def test_the_mask_of_a_layer_is_that_of_an_attached_propetl():
    one = pl.attach(tiny.model("roberta"), pl.recipe("propetl-lora", r=3, p=0.3), seed=8)
    first = one.deltas[0]
    shared = first.A.normal_()
    for delta in one.deltas:
        assert torch.equal(delta.module()["A"], masked(shared, delta.s_A, 0.3))
        assert int((delta.module()["A"] != 0).sum()) == int(0.3 * 3 * 32)


@either(masked)
def test_gradients_go_to_what_is_shown_and_to_all_scores(f):
    torch.manual_seed(9)
    W, s, g = torch.randn(3, 4, 5)
    if f is masked:
        W, s = W.requires_grad_(), s.requires_grad_()
        f(W, s, 0.3).backward(g)
        slope, wish = W.grad, s.grad
    else:
        g = torch.linspace(1, 2, 20).view(4, 5)
        slope, wish = (f(W, s, 0.3, f"the gradient of the {what}") for what in ("prototype", "scores"))
    hidden = mask_of(s.detach(), 0.3) == 0
    assert not slope[hidden].any() and torch.allclose(slope[~hidden], g[~hidden])
    assert torch.allclose(wish, g * W.detach() * s.detach().sign(), atol=1e-6) and wish[hidden].all()


@pytest.mark.parametrize("tasks", [1, 3])
def test_bits_are_those_of_a_file(tasks, tmp_path):
    model = tiny.model("roberta")  # 2 layers, 32 wide
    one = pl.attach(model, pl.recipe("propetl-adapter", r=3, tasks=tasks), seed=0)
    kept = load_file(pl.save(model, one, tmp_path) / "delta.safetensors")
    bits = sum(8 * t.numel() * t.element_size() for n, t in kept.items() if n.startswith("delta."))
    assert bits == stored_bits(2, tasks, [(3, 32), (3,), (32, 3), (32,)])


def test_the_oracle_of_bits_counts_layers_tasks_and_bytes():
    f = EXERCISES["stored_bits"].oracle
    for layers, tasks in itertools.product((1, 2, 5), (1, 2, 9)):
        bytes_of_masks = layers * (2 + 1) + ((tasks * 10 + 7) // 8 + (tasks * 6 + 7) // 8 if tasks > 1 else 0)
        assert f(layers, tasks, [(2, 5), (3, 2)]) == 32 * 16 + 8 * bytes_of_masks
