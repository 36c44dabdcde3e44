"""The kernel: seams, stacking, toggling, and each known pitfall of attaching to a transformer."""

import math

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import peftlab as pl
from peftlab import attention
from peftlab.methods.reparameterized import LoRA
from peftlab.rows import EVERY

# stacking and toggling


@pytest.mark.parametrize(
    "first, second",
    [
        ("lora", "lora"),
        ("lora", "random-mask"),
        ("random-mask", "magnitude-mask"),
        ("prefix", "prefix"),
        ("prompt", "prompt"),
        ("full", "lora"),
        ("bitfit", "bitfit"),
    ],
)
def test_stack_toggle_and_undo_in_any_order(first, second):
    m = tiny.model()
    y = tiny.logits(m)
    a = pl.attach(m, first)
    tiny.scatter(a)
    ya = tiny.logits(m)
    b = pl.attach(m, second, seed=1)
    tiny.scatter(b, 6)
    both = tiny.logits(m)
    assert all(p.requires_grad for d in a.deltas for p in d.parameters()), (
        "attaching twice must not freeze the first delta"
    )
    b.toggle(False)
    assert torch.equal(tiny.logits(m), ya)
    b.toggle(True)
    assert torch.equal(tiny.logits(m), both)
    if first == "full":  # a copy of the weights can only be taken away last
        b()
        assert torch.equal(tiny.logits(m), ya)
        a()
    else:
        a()
        left = tiny.logits(m)
        assert not torch.equal(left, y) and not torch.equal(left, both)
        b()
    assert torch.equal(tiny.logits(m), y)


def test_a_failing_second_row_leaves_nothing_behind():
    m = tiny.model("llama")
    names = set(m.state_dict())
    with pytest.raises(pl.PeftlabError, match="bitfit trains biases"):
        pl.attach(m, ["lora", "bitfit"])
    assert set(m.state_dict()) == names


def test_merging_one_of_two_keeps_the_other():
    m = tiny.model()
    a, b = pl.attach(m, "lora"), pl.attach(m, "adapter")
    tiny.scatter(a)
    tiny.scatter(b)
    y = tiny.logits(m)
    pl.merge(m, a)
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)
    assert any("adapter" in n for n in m.state_dict()) and not any("lora" in n for n in m.state_dict())


def test_counts_keep_delta_and_head_apart():
    m = tiny.model()
    head = 32 * 32 + 32 + 2 * 32 + 2
    bare = pl.counts(m)
    pl.attach(m, "lora", seed=0)
    got = pl.counts(m)
    assert (bare["delta"], bare["head"], got["head"], got["delta"]) == (0, head, head, 2 * 2 * 8 * 64)
    assert got["total"] == bare["total"] + got["delta"] and got["stored_bits"] == 32 * got["delta"]
    assert got["percent"] == pytest.approx(100 * got["delta"] / (bare["total"] - head))


def test_taps_read_hidden_states_and_change_nothing():
    m = tiny.model("gpt2")
    y = tiny.logits(m)
    with pl.taps(m) as h:
        assert torch.equal(tiny.logits(m), y)
    assert sorted(h) == [0, 1] and h[0].shape == (4, 7, 32) and not h[0].requires_grad
    h.clear()
    tiny.logits(m)
    assert not h


# mechanisms


def test_lora_update_has_rank_r():
    m = tiny.model()
    undo = pl.attach(m, pl.recipe("lora", r=3, alpha=6))
    tiny.train(m)
    before = {s: s.weight.detach().clone() for s in pl.sites(m, "q v")}
    pl.merge(m, undo)
    for s, W in before.items():
        assert torch.linalg.matrix_rank(s.weight - W, atol=1e-4) == 3


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("select", ["global", "tensor"])
@pytest.mark.parametrize("name", ["random-mask", "magnitude-mask"])
def test_masks_change_exactly_their_density(name, select, p):
    m = tiny.model()
    before = {s: s.weight.detach().clone() for s in pl.sites(m, "q down")}
    undo = pl.attach(m, pl.recipe(name, where="q down", p=p, select=select))
    tiny.scatter(undo)
    changed = {s: s.weight.detach() != W for s, W in before.items()}
    whole = lambda tensors: [torch.cat([t.flatten() for t in tensors])]
    lists = [lambda tensors: tensors, whole][select == "global"]
    for mask, W in zip(lists(list(changed.values())), lists(list(before.values())), strict=True):
        assert mask.sum() == math.floor(p * W.numel() + 1e-9)
        if name == "magnitude-mask" and p < 1:
            assert W.abs()[mask].min() >= W.abs()[~mask].max()


def test_weight_decay_cannot_touch_frozen_entries():
    m = tiny.model()
    before = {s: s.weight.detach().clone() for s in pl.sites(m, "q k v o up down")}
    pl.attach(m, pl.recipe("random-mask", p=0.01))
    opt = torch.optim.AdamW(pl.trainable(m), 1e-2, weight_decay=0.5)
    for _ in range(20):
        m(**tiny.batch(m)).loss.backward()
        opt.step()
    changed, m0 = sum(int((s.weight != W).sum()) for s, W in before.items()), sum(W.numel() for W in before.values())
    assert changed == math.floor(0.01 * m0)
    assert sum(s["exp_avg"].numel() for s in opt.state.values()) == sum(p.numel() for p in pl.trainable(m))


def test_ia3_scales_what_enters_down():
    m = tiny.model()
    undo = pl.attach(m, pl.recipe("ia3", where="down"))
    tiny.scatter(undo)
    s, d = undo.placed[0][1], undo.deltas[0]
    x = torch.randn(5, 48)
    assert torch.allclose(s(x), F.linear(d.l * x, s.weight, s.bias), atol=1e-6)


def test_layers_choose_where_a_delta_sits():
    m = tiny.model()
    undo = pl.attach(m, pl.recipe("lora", where="q", layers=[1]))
    assert [(s.site, s.layer) for _, s in undo.placed] == [("q", 1)]


# pitfalls


def test_prefix_is_attention_over_more_keys():
    """Against the definition, written out: causal and padded masks, and no mask at all."""

    class Box(nn.Module):
        is_causal = True

    torch.manual_seed(0)
    box, P = Box(), torch.randn(2, 3, 2, 8)  # n = 2 per head
    q, k, v = torch.randn(3, 1, 3, 5, 8).unbind(0)
    delta = lambda k, v: (torch.cat([P[0][None], k], 2), torch.cat([P[1][None], v], 2))  # noqa: E731
    delta.on, delta.rows, box.keyvals = True, EVERY, [delta]
    K, V = delta(k, v)
    causal = torch.ones(5, 5).tril().bool()
    padded = causal & (torch.arange(5) > 0) | torch.eye(5).bool()  # the first token is padding
    for mask, seen in ((None, causal), (causal, causal), (padded, padded)):
        mask, seen = mask if mask is None else mask[None, None], torch.cat([torch.ones(5, 2).bool(), seen], 1)
        want = (q @ K.transpose(-1, -2) / 8**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ V
        assert torch.allclose(attention.attention(box, q, k, v, mask)[0].transpose(1, 2), want, atol=1e-5)


def test_a_prompt_leaves_cls_first():
    """What the head reads must still depend on the real first token."""
    m = tiny.model()
    pl.attach(m, "prompt")
    b = tiny.batch(m, labels=False)
    other = b | dict(input_ids=b["input_ids"].clone())
    other["input_ids"][:, 0] = 9
    with torch.no_grad():
        assert (m(**b).logits - m(**other).logits).abs().max() > 1e-3


def test_the_registry_names_each_class_once():
    assert pl.get("houlsby").cls is pl.get("adapter").cls and pl.get("lora").cls is LoRA
    for row in pl.catalogue():
        assert {
            "name",
            "aliases",
            "equation",
            "review",
            "delta_tuning",
            "sparse_view",
            "paper",
            "sites",
            "knobs",
            "merges",
        } <= set(row)


@pytest.mark.parametrize(
    "names", [("lora", "random-mask"), ("random-mask", "lora"), ("full", "lora"), ("bitfit", "lora")]
)
def test_a_hybrid_merges_to_what_it_computes(names):
    m = tiny.model()
    undo = pl.attach(m, list(names))
    tiny.scatter(undo)
    y = tiny.logits(m)
    pl.merge(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)
