"""Law 9: what a method says that it does, it does."""

import pytest
import tiny
import torch

import peftlab as pl
from peftlab import memory
from peftlab.methods.ranks import budget
from peftlab.methods.subspace import hadamard
from peftlab.training import optimizer_for, stored


def trained(name, steps=30, family="roberta", **settings):
    """A tiny model after some steps of `fit`, its attachment, and the losses before and after without dropout."""
    m = tiny.model(family).eval()
    undo = pl.attach(m, pl.recipe(name, **settings))
    batch = tiny.batch(m)
    first = m(**batch).loss.item()
    assert len(list(pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=1e-2, steps=steps, every=1))) == steps
    return m, undo, (first, m.eval()(**batch).loss.item())


def test_dylora_works_at_every_rank():
    m, undo, loss = trained("dylora", 60)
    losses = {}
    with torch.no_grad():
        for b in range(1, 9):
            for d in undo.deltas:
                d.b = b
            losses[b] = m(**tiny.batch(m)).loss.item()
    assert len({round(v, 6) for v in losses.values()}) == 8 and max(losses.values()) < 0.7 * loss[0]


def test_adalora_moves_its_ranks_and_ends_at_the_budget():
    m, undo, loss = trained("adalora", 40, r=2, r0=4)
    ranks = [int(d.keep.sum()) for d in undo.deltas]
    assert sum(ranks) == 2 * len(ranks) and len(set(ranks)) > 1 and loss[1] < loss[0]
    assert [budget(t, 100, 40, 20) for t in (1, 10, 70, 100)] == [40, 40, 20, 20]
    assert all(budget(t, 100, 40, 20) >= budget(t + 1, 100, 40, 20) for t in range(1, 100))


def test_the_penalty_of_adalora_is_zero_for_orthogonal_factors():
    d = pl.METHODS["adalora"].cls(torch.nn.Linear(32, 32), r=4, r0=4)
    with torch.no_grad():
        d.P.copy_(torch.eye(32)[:, :4]), d.Q.copy_(torch.eye(32)[:4])
        assert d.penalty() == 0
        d.P.mul_(2)
        assert d.penalty() == pytest.approx(0.1 * 4 * 9)


def test_increlora_grows_where_it_matters_and_ends_at_the_budget():
    m, undo, loss = trained("increlora", 40, r=2, most=6)
    ranks = [d.n for d in undo.deltas]
    assert sum(ranks) == 2 * len(ranks) and len(set(ranks)) > 1 and max(ranks) <= 6 and loss[1] < 0.5 * loss[0]
    for d in undo.deltas:
        change = d(torch.zeros(len(d.B), d.A.shape[1]))
        A, l = torch.autograd.grad(change.sum(), (d.A, d.l))
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == d.n
        assert A[: d.n + 1].any(1).all() and not A[d.n + 1 :].any() and not l[d.n :].any(), "one rank in reserve"
    assert [budget(t, 100, 10, 40) for t in (1, 10, 70, 100)] == [10, 10, 40, 40]


@pytest.mark.parametrize("family", ["roberta", "llama", "t5"])
def test_kernel_mix_lite_changes_each_head_by_itself(family):
    """Without the shared part, the change of head h has rank h at most, and that of all heads together more."""
    m = tiny.model(family).eval()
    undo = pl.attach(m, pl.recipe("kernel-mix-lite", r=1, h=2, where="q v o"))
    torch.manual_seed(0)
    for d, layer in undo.placed:
        with torch.no_grad():
            d.D.normal_()
            W = (
                layer(torch.eye(layer.in_features)).T
                - torch.nn.functional.linear(torch.eye(layer.in_features), layer.weight).T
            )
        W = W - (0 if layer.bias is None else layer.bias[:, None])
        heads = W.chunk(layer.heads, dim=1 if layer.site == "o" else 0)
        rank = lambda t: int(torch.linalg.matrix_rank(t, rtol=1e-4))
        assert {rank(t) for t in heads} == {2} and rank(W) == min(2 * layer.heads, *W.shape), layer.site


def test_galore_keeps_moments_of_low_rank_and_its_update_is_of_low_rank():
    m = tiny.model("roberta").eval()
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    undo, batch = pl.attach(m, pl.recipe("galore", r=2, T=4)), tiny.batch(m)
    ranks = []
    for _ in pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=1e-2, steps=8, every=1):
        now = dict(m.named_parameters())
        changes = {n: now[n] - p for n, p in before.items() if n.endswith("query.weight")}
        ranks.append([int(torch.linalg.matrix_rank(c, rtol=1e-3)) for c in changes.values()])
    assert ranks[3] == [2, 2] and ranks[-1] == [4, 4], "two ranks for each P"


def test_lora_plus_gives_b_a_rate_of_its_own():
    torch.manual_seed(0)
    m = tiny.model("roberta")
    undo = pl.attach(m, pl.recipe("lora-plus", ratio=16.0))
    optimizer = optimizer_for(pl.trainable(m), undo.deltas, 1e-3)
    fast = {id(p) for g in optimizer.param_groups if g["speed"] == 16 for p in g["params"]}
    assert fast == {id(d.B) for d in undo.deltas} and len(optimizer.param_groups) == 2


def test_delta_lora_telescopes_and_stays_of_low_rank():
    m = tiny.model("roberta")
    undo, batch = pl.attach(m, pl.recipe("delta-lora", r=2, c=0.5)), tiny.batch(m)
    rows = pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=1e-2, steps=30, every=1)
    next(rows)
    first = [(d.B @ d.A).detach() for d in undo.deltas]
    assert len(list(rows)) == 29
    for d, start in zip(undo.deltas, first, strict=True):
        now = (d.B @ d.A).detach()
        assert d.D.abs().max() > 1e-3 and torch.allclose(d.D, 0.5 * (now - start), atol=1e-6)
        assert torch.linalg.matrix_rank(now + d.D, rtol=1e-4) <= 4, "not a change of high rank"


@pytest.mark.parametrize("name, least", [("adalora", 2), ("increlora", 3), ("delta-lora", 1)])
def test_what_a_method_remembers_counts_as_memory_and_is_not_stored(name, least):
    """So many copies of what AdaLoRA trains, of the weight in the two others."""
    m = tiny.model("roberta")
    held = lambda: stored([*m.parameters(), *m.buffers()])
    before = held()
    undo = pl.attach(m, name)
    kept = sum(t.nbytes for d in undo.deltas for t in d.own().values())
    copied = [sum(p.numel() for p in d.parameters()) if name == "adalora" else at.in_features * at.out_features
              for d, at in undo.placed]  # fmt: skip
    assert held() - before - kept == 4 * least * sum(copied)


def test_increlora_scores_all_parts_of_a_batch():
    scores = []
    for parts in (1, 4):
        m = tiny.model("roberta").eval()
        undo, batch = pl.attach(m, pl.recipe("increlora", where="q v")), tiny.batch(m)
        undo.deltas[0].l.data.normal_(generator=torch.Generator().manual_seed(0))
        n = len(batch["labels"]) // parts
        for i in range(parts):
            m(**{k: v[i * n : (i + 1) * n] for k, v in batch.items()}).loss.div(parts).backward()
        scores.append(undo.deltas[0].moved.clone())
    assert torch.allclose(*scores, atol=1e-6) and scores[0].abs().max() > 1e-6


def test_lora_fa_keeps_r_numbers_a_token_instead_of_the_input():
    kept = {}
    for name in ("lora", "lora-fa"):
        m = tiny.model("llama")  # no bias: nothing else keeps the inputs of q and v
        pl.set_head(m, "frozen")
        undo = pl.attach(m, pl.recipe(name, where="q v", r=2))
        kept[name] = memory.saved(m, tiny.batch(m))
        undo()
    assert kept["lora-fa"] < kept["lora"]


def test_dora_learns_length_and_direction_apart():
    m, undo, _ = trained("dora")
    before = [(d.m.detach().clone(), module, module.weight.norm(dim=1)) for d, module in undo.placed]
    pl.merge(m, undo)
    for lengths, module, old in before:
        assert torch.allclose(module.weight.norm(dim=1), lengths, atol=1e-5)
        assert not torch.allclose(lengths, old, atol=1e-4), "the lengths have moved"


def test_pissa_starts_at_the_largest_singular_values():
    m = tiny.model("roberta")
    for d, module in pl.attach(m, pl.recipe("pissa", r=4)).placed:
        S, BA = torch.linalg.svdvals(module.weight), (d.B @ d.A).detach()
        assert torch.allclose(torch.linalg.svdvals(BA)[:4], S[:4], atol=1e-5)
        assert torch.linalg.matrix_norm(module.weight - BA, 2).item() == pytest.approx(S[4].item(), abs=1e-5)


def test_krona_has_the_rank_of_the_product():
    d = pl.METHODS["krona"].cls(torch.nn.Linear(64, 64), k=4, s=1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        d.B.normal_()
    whole = torch.kron(d.A, d.B).detach()
    assert torch.linalg.matrix_rank(whole) == 64 and d.A.numel() + d.B.numel() == 16 + 256
    x = torch.randn(3, 5, 64)
    assert torch.allclose(d(x, torch.zeros(3, 5, 64)), x @ whole.T, atol=1e-4)


def test_loha_is_the_entrywise_product_of_two_matrices_and_has_the_rank_of_both():
    torch.manual_seed(0)
    d = pl.METHODS["loha"].cls(torch.nn.Linear(64, 48), r=4, alpha=8)
    x, nothing = torch.randn(3, 5, 64), torch.zeros(3, 5, 48)
    assert not d(x, nothing).any(), "at its start it adds nothing"
    with torch.no_grad():
        d.B2.normal_()
    whole = (2 * (d.B1 @ d.A1) * (d.B2 @ d.A2)).detach()
    assert torch.linalg.matrix_rank(whole) == 16 and sum(p.numel() for p in d.parameters()) == 2 * 4 * (64 + 48)
    assert torch.allclose(d(x, nothing), x @ whole.T, atol=1e-4)


def test_vera_shares_its_frozen_matrices_and_stores_two_vectors():
    m = tiny.model("roberta")
    undo = pl.attach(m, "vera")
    assert len({d.A.data_ptr() for d in undo.deltas}) == 1 and {n for d in undo.deltas for n in d.own()} == {"d", "b"}


def test_rslora_keeps_its_scale():
    scale = lambda name, r: pl.METHODS[name].cls(torch.nn.Linear(64, 64), r=r, alpha=16).s
    assert scale("lora", 16) == scale("lora", 4) / 4 and scale("rslora", 16) == scale("rslora", 4) / 2


def test_said_trains_one_small_vector_for_the_whole_model():
    v = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hadamard(hadamard(v)), v, atol=1e-5), "orthogonal and its own inverse"
    assert torch.allclose(hadamard(torch.eye(4)[1]), torch.tensor([1.0, -1.0, 1.0, -1.0]) / 2)
    m, undo, loss = trained("said", 30, d=64)
    theta = [d.theta for d in undo.deltas]
    assert theta[0].numel() == 64 and theta[1:] == [None] * (len(theta) - 1) and loss[1] < 0.5 * loss[0]
    assert all(not m.weight.equal(m.parametrizations.weight.original) for _, m in undo.placed)
    assert sum(t.numel() for d in undo.deltas for t in d.own().values()) == 64 + 2 * len(theta), "no projection is kept"
