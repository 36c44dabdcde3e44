"""CoDA: it really skips, it chooses as it says, and with all tokens chosen it is the layer."""

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import peftlab as pl
from peftlab.methods import conditional
from peftlab.methods.conditional import soft_top_k
from peftlab.methods.side import named

ENCODERS = ("bert", "roberta", "distilbert", "t5")
each = pytest.mark.parametrize("family", ENCODERS)


def attached(family="roberta", **settings):
    m = tiny.model(family)
    undo = pl.attach(m, pl.recipe("coda", **settings))
    return m, undo


def scatter(undo):
    torch.manual_seed(2)
    with torch.no_grad():
        for d in undo.deltas:
            d.U.normal_(), d.e.normal_()


def flops(m):
    ids = torch.randint(3, 60, (2, 36), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        m(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops()


@each
def test_inference_costs_less(family):
    """The products of a pass fall as r grows, by what the layers cost: with r = 2 they are called with half."""
    seen = {}
    for r in (1, 2, 3, 6, 36):
        m, undo = attached(family, r=r, bottleneck=1)
        lengths = []
        for _, block in undo.placed:
            q = next(c for c in block.modules() if getattr(c, "site", None) == "q")
            q.register_forward_hook(lambda c, args, y, lengths=lengths: lengths.append(y.shape[1]))
        seen[r] = flops(m)
        assert set(lengths) == {36 // r}
    assert sorted(seen, key=seen.get, reverse=True) == [1, 2, 3, 6, 36]
    layers = (seen[1] - seen[36]) * 36 / 35  # what depends on r; attention falls even faster
    assert seen[2] < seen[1] - layers / 2 and seen[6] < seen[1] - layers * 5 / 6 + layers / 36
    if family != "t5":  # whose decoder is as dense as ever
        assert layers > 0.9 * flops(tiny.model(family))


@each
def test_with_all_tokens_it_is_the_layer(family):
    """λ is 1 for everybody then, whatever the router says; the adapter is silent at the start."""
    m, undo = attached(family, r=1)
    assert torch.allclose(tiny.logits(m), tiny.logits(tiny.model(family)), atol=1e-4)
    with torch.no_grad():
        for d in undo.deltas:
            d.w.mul_(3)
    assert torch.allclose(tiny.logits(m), tiny.logits(tiny.model(family)), atol=1e-4)
    scatter(undo)
    assert not torch.allclose(tiny.logits(m), tiny.logits(tiny.model(family)), atol=1e-2)


@pytest.mark.parametrize("family", ["roberta", "t5"])
def test_it_is_its_equation(family):
    """By hand: the layer on the picked tokens of each row alone, with the distances that T5 knows of all."""
    m, undo = attached(family, r=3)
    scatter(undo)
    (d, block), *_ = undo.placed
    b = tiny.batch(m, labels=False)
    got = []

    def look(c, args, out):
        got.append(out[0] if isinstance(out, tuple) else out)

    def look_in(c, args, kw):
        got.append(named(c, args, kw)["hidden_states"])

    before, after = (
        block.register_forward_pre_hook(look_in, with_kwargs=True, prepend=True),
        block.register_forward_hook(look),
    )
    with torch.no_grad():
        m(**b)
        before.remove(), after.remove()
        d.on, (x, y) = False, got
        for i, n in enumerate((7, 5, 7, 7)):
            row, k = x[i : i + 1, :n], -(-n // 3)
            score = row @ d.w
            at = score[0].topk(k).indices
            l = soft_top_k(score, torch.tensor([[k]]), torch.ones(1, n, dtype=torch.bool))[0]
            want = row + torch.relu(row @ d.D.T + d.c) @ d.U.T + d.e
            if family == "t5":
                bias = block.layer[0].SelfAttention.compute_bias(n, n)[:, :, at][..., at]
                h = block(row[:, at], position_bias=bias)[0]
            else:
                h = block(row[:, at])
            want[:, at] += l[at, None] * (h - row[:, at])
            assert torch.allclose(y[i, :n], want[0], atol=1e-4), i


def test_soft_top_k():
    torch.manual_seed(0)
    s, real = torch.randn(3, 9), torch.ones(3, 9, dtype=torch.bool)
    real[1, 5:] = False
    k = torch.tensor([[3], [2], [9]])
    l = soft_top_k(s, k, real)
    assert (l >= 0).all() and (l <= 1 + 1e-6).all() and not l[1, 5:].any()
    assert torch.allclose(l.sum(1, keepdim=True), k.float(), rtol=1e-5)
    order = s.masked_fill(~real, -torch.inf).argsort(1)
    assert (l.gather(1, order).diff(dim=1) >= -1e-6).all(), "larger scores have larger shares"
    # the optimum of s·λ + entropy: s - ln λ is the same for all that are below 1, and larger for those at 1
    t = s - l.clamp_min(1e-9).log()
    inner = (l < 0.999) & real
    assert all(t[i][inner[i]].std() < 1e-3 for i in (0, 1))
    assert torch.allclose(l[2], torch.ones(9), atol=1e-6)


def test_padding_is_never_picked(monkeypatch):
    m, undo = attached("roberta", r=2)
    with torch.no_grad():
        for d in undo.deltas:
            d.w.zero_()
            d.w[0] = -1e4  # scores of padding would be the largest
    seen = []
    spy = lambda score, k, real: (seen.append((k.flatten().tolist(), real.sum(1).tolist())), soft_top_k(score, k, real))
    monkeypatch.setattr(conditional, "soft_top_k", lambda *args: spy(*args)[1])
    tiny.logits(m)
    assert seen == [([4, 3, 4, 4], [7, 5, 7, 7])] * 2
    block = undo.placed[0][1]
    at = []
    undo.deltas[0].forward = lambda x, at_, l, change: (at.append((at_, l)), x)[1]
    block(torch.randn(2, 6, 32), torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.bool).expand(2, 1, 6, 6))
    (where, share) = at[0]
    assert set(where[:, :2].flatten().tolist()) <= {0, 1, 2} and not share[:, 2:].any() and share[:, :2].any()


def test_the_router_learns():
    m, undo = attached("roberta")
    m(**tiny.batch(m)).loss.backward()
    assert all(d.w.grad.abs().max() > 1e-6 for d in undo.deltas)


def test_beside_others_and_in_some_layers_only():
    m = tiny.model("t5")
    undo = pl.attach(m, [dict(method="coda", layers=[1, 2]), "lora", "prefix", "prompt"])
    assert [type(d).__name__ for d in undo.deltas].count("CoDA") == 1, "the second of the encoder, none of the decoder"
    losses = tiny.train(m)
    assert min(losses[1:]) < losses[0]


def test_decoders_are_refused():
    with pytest.raises(pl.PeftlabError, match="compares each token with later ones, so it needs an encoder's layers"):
        pl.attach(tiny.model("gpt2"), "coda")


@pytest.mark.parametrize("side", ["lst", "attention-fusion"])
def test_a_side_network_beside_it_is_refused(side):
    with pytest.raises(pl.PeftlabError, match="a side network reads whole layers"):
        pl.attach(tiny.model(), [side, "coda"])
    m = tiny.model()
    pl.attach(m, ["coda", side])
    with pytest.raises(pl.PeftlabError, match="a side network reads whole layers"):
        tiny.logits(m)
