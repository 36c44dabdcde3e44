"""Deltas that look at tokens: tiny attention mixes them and never sees padding, PASTA changes special ones only."""

import pytest
import tiny
import torch
from adapted import EACH, blocks, inside, shaken

import peftlab as pl
from peftlab.methods.additive import specials


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
