"""Law 9 for adapters, gains and special tokens: where they read, what they add to, and what they leave alone."""

import copy

import pytest
import tiny
import torch
from torch.nn import functional as F

import peftlab as pl
from peftlab import memory
from peftlab.methods.additive import specials

EACH = pytest.mark.parametrize("family", tiny.CONFIGS)


def shaken(m, name, where=None, layers=None, **settings):
    """Attach with every parameter moved away from its start."""
    undo = pl.attach(m, pl.recipe(name, where=where, layers=layers, **settings))
    torch.manual_seed(0)
    for d in undo.deltas:
        for p in d.parameters():
            p.data += 0.2 * torch.randn_like(p)
    return undo


def watched(m, modules, **batch):
    """{module: (what enters, what leaves)} in one pass."""
    seen = {}
    keep = lambda module, args, y: seen.update({module: (args[0], y[0] if isinstance(y, tuple) else y)})
    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        m(**(batch or tiny.batch(m)))
    for h in handles:
        h.remove()
    return seen


def bottleneck(d, x):
    return F.relu(x @ d.D.T + d.c) @ d.U.T + d.e


def inside(block, site):
    return [c for c in block.modules() if getattr(c, "site", None) == site]


def blocks(m):
    return [b for b in m.modules() if getattr(b, "site", None) == "block"]


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


# Tiny-Attn


@EACH
def test_tiny_attention_mixes_tokens_but_never_reads_padding_or_what_follows(family):
    m = tiny.model(family)
    block = blocks(m)[-1]
    at = inside(block, "o")[0]
    undo = shaken(m, "tiny-attn", layers=[block.block_index])
    d = next(d for d, where in undo.placed if where is at)
    d.see(None, (), dict(attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]])))
    y = torch.randn(1, 6, 32, requires_grad=True)
    reads = torch.stack([torch.autograd.grad(d(None, y)[0, i].sum(), y)[0][0].abs().sum(1) for i in range(4)]) > 1e-6
    every = torch.ones(4, 4, dtype=torch.bool)
    decoder = m.kind != "encoder"
    assert torch.equal(reads[:, :4], every.tril() if decoder else every) and not reads[:, 4:].any()


def test_tiny_attention_in_t5_looks_both_ways_in_the_encoder_only():
    m = tiny.model("t5", "seq2seq")
    undo = pl.attach(m, "tiny-attn")
    assert [d.causal for d in undo.deltas] == [False] * 2 + [True] * 4
    shaken(m, "tiny-attn")
    b = tiny.batch(m)
    with torch.no_grad():
        start = torch.full((4, 1), m.config.decoder_start_token_id)
        words = torch.cat([start, b["labels"].clamp(min=3)[:, :4]], 1)
        whole = m(input_ids=b["input_ids"], attention_mask=b["attention_mask"], decoder_input_ids=words).logits
        first = m(input_ids=b["input_ids"], attention_mask=b["attention_mask"], decoder_input_ids=words[:, :3]).logits
    assert torch.allclose(whole[:, :3], first, atol=1e-4)


def test_tiny_attention_refuses_a_cache_and_generates_without_one():
    for family, head in (("gpt2", "lm"), ("t5", "seq2seq")):
        m = tiny.model(family, head)
        shaken(m, "tiny-attn")
        b = tiny.batch(m, labels=False, pad=False)
        free = m.generate(**b, max_new_tokens=3, use_cache=False, do_sample=False)
        assert free.shape[1] > (7 if family == "gpt2" else 1)
        with pytest.raises(pl.PeftlabError, match="use_cache=False"):
            m.generate(**b, max_new_tokens=3, min_new_tokens=3, use_cache=True)


def test_tiny_attention_averages_its_heads_outside_of_training():
    m = tiny.model("roberta")
    undo = pl.attach(m, pl.recipe("tiny-attn", heads=4, deploy="average"))
    d, at = undo.placed[0]
    torch.manual_seed(0)
    d.U.data.normal_()
    y = torch.randn(4, 7, 32)
    d.see(None, (), dict(attention_mask=None))
    several, one = d.train()(None, y), d.eval()(None, y)
    alone = pl.METHODS["tiny-attn"].cls(at, heads=1, deploy="heads")
    alone.at, alone.causal, alone.mask = d.at, d.causal, None
    for n, p in d.named_parameters():
        getattr(alone, n).data = p.data.mean(0, keepdim=True) if n in ("D", "c", "U") else p.data
    assert torch.allclose(one, alone(None, y), atol=1e-5) and not torch.allclose(several, one, atol=1e-4)
    with torch.no_grad():
        d.D.copy_(d.D.mean(0, keepdim=True).expand_as(d.D))
    assert torch.allclose(d.train()(None, y), one, atol=1e-5), "heads that agree lose nothing"


# PASTA


@EACH
@pytest.mark.parametrize("prompted", [False, True])
def test_pasta_changes_special_tokens_only(family, prompted):
    m = tiny.model(family, "seq2seq" if family == "t5" else "classification")
    if prompted:
        pl.attach(m, pl.recipe("prompt", n=3))
    b = tiny.batch(m)
    b["input_ids"][:, 0] = 0 if family != "t5" else 2
    b["input_ids"][2, 3] = 2  # a text with three special tokens
    block = blocks(m)[0]
    entered = []

    def look(module, args):
        entered.append(args[0])

    block.register_forward_pre_hook(look)
    undo = shaken(m, "pasta")
    block.register_forward_pre_hook(look)
    with torch.no_grad():
        m(**b)
    change, (E, *_) = entered[1] - entered[0], [d.E for d in undo.deltas]
    n, at = 3 * prompted, int(m.kind == "encoder")
    change = torch.cat([change[:, :at], change[:, at + n :]], 1)
    places = {0: (0, 6), 1: (0, 4), 2: (0, 3, 6), 3: (0, 6)}  # the second is padded
    for row, special in places.items():
        for t in range(7):
            right = E[special.index(t)] if t in special else torch.zeros(32)
            assert torch.allclose(change[row, t], right, atol=1e-5), (row, t)
    assert entered[1].shape[1] == 7 + n and torch.equal(entered[1][:, at : at + n], entered[0][:, at : at + n])


def test_pasta_knows_the_special_tokens_of_a_backbone():
    assert specials(pl.backbone("nano-encoder"), False) == [0, 2]
    m = tiny.model("t5", "seq2seq")
    decoder = pl.attach(m, "pasta").deltas[-1]
    assert decoder.special == [1, 2], "its start token and its end token"
    b = tiny.batch(m)
    m(**b)
    assert decoder.marks(decoder.ids, decoder.mask)[:, 0].tolist() == [1] * 4


def test_padding_is_not_special_even_where_it_is_the_end_token():
    m = tiny.model("gpt2", "lm")
    shaken(m, "pasta")
    words, end = torch.randint(3, tiny.WORDS, (1, 4)), torch.full((1, 3), 2)
    begun = torch.cat([end[:, :1], words], 1)
    with torch.no_grad():
        alone = m(input_ids=begun, attention_mask=torch.ones(1, 5)).logits
        mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
        padded = m(
            input_ids=torch.cat([end, begun], 1), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits
    assert torch.allclose(padded[:, 3:], alone, atol=1e-4)


def test_pasta_learns_in_a_language_model_whose_texts_begin_with_a_special_token_and_refuses_others():
    m = tiny.model("llama", "lm")
    undo, b = pl.attach(m, "pasta"), tiny.batch(m)
    train = lambda: list(pl.fit(m, iter(lambda: b, None), undo.deltas, lr=1e-2, steps=20, every=1))
    with pytest.raises(pl.PeftlabError, match="no other token reads one"):
        train()
    b["input_ids"][:, 0] = 0
    rows = train()
    assert rows[-1]["loss"] < rows[0]["loss"] - 1e-3


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
