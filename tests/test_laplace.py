"""Laplace-LoRA: its curvature against an exact one, and the calibration it gives."""

import itertools

import pytest
import tiny
import torch

import peftlab as pl


def trained(backbone, seed, size=64, steps=100):
    """LoRA on few rows, sure of itself; its attachment, the training batches, a batch of validation and one of test."""
    task = pl.task("reviews", size=size, seed=seed)
    m = pl.backbone(backbone, head=task.kind, labels=2)
    undo = pl.attach(m, "lora", seed=seed)
    rows = lambda split, n, seed=0: task.batches(m.tokenizer, split, n, seed=seed)
    list(pl.fit(m, rows("train", 32, seed), undo.deltas, lr=5e-3, steps=steps))
    return (
        m,
        undo,
        [*itertools.islice(rows("train", 32), size // 32)],
        next(rows("validation", 128)),
        next(rows("test", 512)),
    )


def test_the_curvature_is_exact_where_kronecker_is():
    """One sentence of one token: the sum over its position is one outer product, and G ⊗ K is the Hessian."""
    m = tiny.model("roberta").eval()
    undo = pl.attach(m, pl.recipe("lora", r=2, where="v", layers=[1]))
    with torch.no_grad():
        undo.deltas[0].B.normal_()
    batch = dict(
        input_ids=torch.tensor([[5]]), attention_mask=torch.ones(1, 1, dtype=torch.long), labels=torch.tensor([1])
    )
    post, (d,) = pl.Laplace(m, undo, [batch]), undo.deltas
    for name in ("A", "B"):
        p = getattr(d, name)
        logits = m(input_ids=batch["input_ids"]).logits[0]
        J = torch.stack([torch.autograd.grad(z, p, retain_graph=True)[0].flatten() for z in logits])
        q = logits.detach().softmax(0)
        exact = J.T @ (torch.diag(q) - torch.outer(q, q)) @ J
        K, G = post.bases[d, name]
        H = torch.kron(G, K) @ torch.diag(post.curvature[d, name].flatten()) @ torch.kron(G, K).T
        assert torch.allclose(H, exact, atol=1e-5) and exact.abs().max() > 1e-3


@pytest.mark.slow
def test_calibration_is_better_and_the_answers_are_the_same():
    before, after, likelier = [], [], 0
    for seed in (0, 1, 2):
        m, undo, batches, validation, test = trained("micro-encoder", seed)
        with torch.no_grad():
            plain = m(**{k: v for k, v in test.items() if k != "labels"}).logits.softmax(1)
        better = pl.Laplace(m, undo, batches, validation)(test)
        (
            before.append(pl.calibration_error(plain, test["labels"])),
            after.append(pl.calibration_error(better, test["labels"])),
        )
        loss = lambda p, y=test["labels"]: float(torch.nn.functional.nll_loss(p.log(), y))
        likelier += loss(better) < loss(plain)
        assert torch.equal(plain.argmax(1), better.argmax(1))
    assert likelier == 3 and sum(after) < 0.7 * sum(before), (before, after)


def test_calibration_error_of_a_known_case():
    p = torch.tensor([[0.95, 0.05]] * 4 + [[0.35, 0.65]] * 2)
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    assert pl.calibration_error(p, y) == pytest.approx((4 * abs(0.95 - 0.75) + 2 * abs(0.65 - 1)) / 6)


@pytest.mark.parametrize("name", ["adapter", "krona", "moelora", "qa-lora", "delta-lora", "loraprune", "head"])
def test_only_a_lora_has_one(name):
    m = tiny.model("roberta")
    with pytest.raises(pl.PeftlabError, match="attach lora and train it first"):
        pl.Laplace(m, pl.attach(m, name), [])


@pytest.mark.parametrize("family", ["roberta", "llama", "t5"])
def test_every_family_gets_probabilities_and_a_frozen_a_has_no_curvature(family):
    m = tiny.model(family).eval()
    undo, batch = pl.attach(m, "lora-fa"), tiny.batch(m)
    with torch.no_grad():
        [d.B.normal_() for d in undo.deltas]
    post = pl.Laplace(m, undo, [batch])
    assert {name for _, name in post.curvature} == {"B"}
    p = post(batch)
    assert p.shape == m(**batch).logits.shape and torch.allclose(p.sum(1), torch.ones(len(p)), atol=1e-5)
