"""Law 9 for adapters and gains: where they read, what they add to, and what they leave alone."""

import copy

import pytest
import tiny
import torch
from adapted import EACH, blocks, inside, shaken, watched
from torch.nn import functional as F

import peftlab as pl
from peftlab import memory


def bottleneck(d, x):
    return F.relu(x @ d.D.T + d.c) @ d.U.T + d.e


# where they read


@EACH
def test_pfeiffer_adds_before_the_last_norm_where_a_layer_ends_in_one(family):
    m = tiny.model(family)
    norm = lambda b: inside(b, "norm2")[0]
    plain = watched(m, [*blocks(m), *map(norm, blocks(m))])
    undo = shaken(m, "pfeiffer", layers=[0])  # so that what comes in is what came in before
    (d,), block = undo.deltas, blocks(m)[0]
    h = watched(m, [block])[block][1]
    if family in ("bert", "roberta", "distilbert"):
        s = plain[norm(block)][0]
        right = norm(block).forward(s + bottleneck(d, norm(block).forward(s)))
    else:
        s = plain[block][1]
        right = s + bottleneck(d, s)
    assert torch.allclose(h, right, atol=1e-4) and not torch.allclose(h, plain[block][1], atol=1e-2)


def test_pfeiffer_in_an_opt_whose_norms_come_last():
    config = tiny.CONFIGS["opt"]()
    config.do_layer_norm_before = False
    torch.manual_seed(0)
    m = pl.prepare(tiny.AUTO["lm"].from_config(config))
    block = blocks(m)[0]
    norm = inside(block, "norm2")[0]
    s = watched(m, [norm])[norm][0]
    (d,) = shaken(m, "pfeiffer", layers=[0]).deltas
    h = watched(m, [block])[block][1]
    assert torch.allclose(h.view_as(s), norm.forward(s + bottleneck(d, norm.forward(s))), atol=1e-5)


@EACH
def test_residual_adapter_reads_what_leaves_the_layer_through_its_own_norm(family):
    m = tiny.model(family)
    block = blocks(m)[0]
    h = watched(m, [block])[block][1]
    (d,) = shaken(m, "residual-adapter", layers=[0]).deltas
    right = h + bottleneck(d, F.layer_norm(h, (32,)) * d.gain + d.shift)
    assert torch.allclose(watched(m, [block])[block][1], right, atol=1e-4)


@EACH
@pytest.mark.parametrize("where", ["down", "o", "o down"])
@pytest.mark.parametrize("name", ["parallel-adapter", "scaled-parallel"])
def test_parallel_reads_what_enters_its_own_sub_layer(family, where, name):
    m = tiny.model(family)
    undo = shaken(m, name, where)
    for d in undo.deltas:
        d.on = False
    quiet = {at: at.forward for _, at in undo.placed}
    for d, (_, at) in zip(undo.deltas, undo.placed, strict=True):
        d.on = True
        block = next(b for b in blocks(m) if at in set(b.modules()))
        home = (
            next(c for c in block.modules() if getattr(c, "site", None) == "attn" and at in set(c.modules()))
            if family == "t5" and at.site == "o"
            else block
        )
        first = inside(home, "q" if at.site == "o" else "up")
        seen = watched(m, [*first, at])
        x, inner, y = seen[first[0]][0], seen[at][0], seen[at][1]
        s = 4.0 if name == "scaled-parallel" else 1.0
        assert torch.allclose(y, quiet[at](inner) + s * bottleneck(d, x), atol=1e-4)
        assert all(seen[f][0] is x or torch.equal(seen[f][0], x) for f in first)
        assert d.x is None, "nothing of a pass is kept"
        d.on = False


def test_scaled_is_parallel_times_s():
    change = {}
    for name, settings in (("parallel-adapter", {}), ("scaled-parallel", dict(s=2.5))):
        m = tiny.model("gpt2")
        at = pl.sites(m, "down")[0]
        y = watched(m, [at])[at][1]
        shaken(m, name, layers=[0], **settings)
        change[name] = watched(m, [at])[at][1] - y
    assert torch.allclose(2.5 * change["parallel-adapter"], change["scaled-parallel"], atol=1e-4)


@pytest.mark.parametrize("family", ["roberta", "llama", "t5"])
@pytest.mark.parametrize("name", ["parallel-adapter", "pfeiffer", "tiny-attn", "pasta"])
def test_gradient_checkpointing_gives_the_same_gradients(family, name):
    grads = []
    for again in (False, True):
        m = tiny.model(family)
        undo = shaken(m, name)
        if again:
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # renamed in v5
            getattr(m, new if hasattr(m, new) else old)(dict(use_reentrant=False))
        m.train()
        for module in m.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        m(**tiny.batch(m)).loss.backward()
        grads.append([p.grad for d in undo.deltas for p in d.parameters()])
        copy.deepcopy(m.zero_grad())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
    assert any(g.abs().max() > 1e-4 for g in grads[0])


# AdapterDrop


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_adapterdrop_ends_the_backward_pass_above_the_dropped_layers(family):
    config, kept, real, layers = tiny.CONFIGS[family](), [], [], 4
    for key in ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers"):
        if hasattr(config, key):
            setattr(config, key, layers)
    for drop in range(layers):
        torch.manual_seed(0)
        m = pl.prepare(tiny.AUTO["seq2seq" if family == "t5" else "classification"].from_config(config))
        pl.set_head(m, "frozen")
        undo = pl.attach(m, pl.recipe("adapterdrop", drop=drop))
        kept.append(memory.saved(m, tiny.batch(m)))
        batch, report = tiny.batch(m), {}
        list(pl.fit(m, iter(lambda batch=batch: batch, None), undo.deltas, lr=1e-3, steps=1, every=1, report=report))
        real.append(report["saved_bytes"])
        depth = {at.layer % layers for _, at in undo.placed}
        assert depth == set(range(drop, layers)), "in both stacks of T5"
    assert kept == sorted(kept, reverse=True) and len({*kept}) == layers
    assert real == sorted(real, reverse=True) and len({*real}) == layers
    lost = [a - b for a, b in zip(real, real[1:], strict=False)]
    assert min(lost) > 4 * 4 * 7 * 32 * 4, "more than the adapters: what the layer itself keeps"


def test_adapterdrop_says_when_nothing_is_left():
    m = tiny.model("t5")
    with pytest.raises(pl.PeftlabError, match="drop=2 leaves no adapter: .* take drop=1"):
        pl.attach(m, pl.recipe("adapterdrop", drop=2))
    with pytest.raises(pl.PeftlabError, match="take drop=0"):
        pl.attach(m, pl.recipe("adapterdrop", drop=1, layers=[2]))
    assert {at.layer for _, at in pl.attach(m, "adapterdrop").placed} == {1, 3}


# Hadamard


@EACH
def test_hadamard_scales_and_shifts_what_an_attention_gives(family):
    m = tiny.model(family)
    at = pl.sites(m, "o")[0]
    y = watched(m, [at])[at][1]
    undo = shaken(m, "hadamard")
    d = next(d for d, where in undo.placed if where is at)
    assert torch.allclose(watched(m, [at])[at][1], d.w * y + d.b, atol=1e-5)
    whole = tiny.logits(m)
    if at.bias is None:
        with pytest.raises(pl.PeftlabError, match="has no bias to take its shift"):
            pl.merge(m, undo)
        assert torch.equal(tiny.logits(m), whole) and undo.placed
    else:
        pl.merge(m, undo)
        assert torch.allclose(tiny.logits(m), whole, atol=1e-4)
