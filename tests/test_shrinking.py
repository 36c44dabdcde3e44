"""LoRAPrune: what is silenced is really cut away, and the function stays."""

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

import peftlab as pl

CUTS_HEADS = {f: f != "t5" for f in tiny.CONFIGS}


def pruned(family, p=0.5, steps=20, where="q k v o up down"):
    m = tiny.model(family).eval()
    undo, batch = pl.attach(m, pl.recipe("loraprune", p=p, where=where)), tiny.batch(m)
    list(pl.fit(m, iter(lambda: batch, None), undo.deltas, lr=5e-3, steps=steps))
    return m, undo


def size(m, sites):
    return sum(s.weight.numel() for s in pl.sites(m, sites))


def flops(m):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        m(**tiny.batch(m, labels=False))
    return counter.get_total_flops()


@pytest.mark.parametrize("family, heads", CUTS_HEADS.items())
def test_the_model_is_smaller_and_its_function_the_same(family, heads):
    m, undo = pruned(family)
    y, work = tiny.logits(m), flops(tiny.model(family))
    back = pl.shrink(m, undo)
    plain = tiny.model(family)
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)
    assert size(m, "up down") == size(plain, "up down") / 2
    assert size(m, "q k v o") == size(plain, "q k v o") / (2 if heads else 1)
    widths = [(s.in_features if s.site == "o" else s.out_features) // s.heads for s in pl.sites(m, "q k v o")]
    assert len(set(widths)) == 1, "a head is as wide as before, and the layers know how many they have"
    assert flops(m) < (0.7 if heads else 0.9) * work
    again = back()
    assert torch.allclose(tiny.logits(m), y, atol=1e-5)
    again()
    now = dict(m.base_model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in plain.base_model.named_parameters())


def test_it_writes_as_before_when_it_generates():
    for family, head in (("gpt2", "lm"), ("opt", "lm"), ("llama", "lm"), ("t5", "seq2seq")):
        m = tiny.model(family, head).eval()
        undo, batch = pl.attach(m, "loraprune"), tiny.batch(m)
        list(pl.fit(m, iter(lambda b=batch: b, None), undo.deltas, lr=5e-3, steps=20))
        ids = batch["input_ids"][:1, :4]
        before = m.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        pl.shrink(m, undo)
        assert torch.equal(m.generate(input_ids=ids, max_new_tokens=6, do_sample=False), before)


def test_the_share_and_the_score():
    m, undo = pruned("roberta", p=0.75)
    kept = {d.at[0].site: int(d.M.sum()) for d in undo.deltas}
    assert kept == dict(q=8, k=8, v=8, o=32, up=12, down=32), "one head of four, a quarter of the channels"
    d = undo.deltas[-2]
    assert d.at[0].site == "up" and d.seen.shape == (48,)


def test_what_cannot_be_cut_is_refused():
    m = tiny.model("roberta")
    with pytest.raises(pl.PeftlabError, match="cuts q k v o together, and up down; here is only q v"):
        pl.attach(m, pl.recipe("loraprune", where="q v"))
    with pytest.raises(pl.PeftlabError, match="attach loraprune and train first"):
        pl.shrink(m, pl.attach(m, "lora"))
    pruned("roberta", where="up down")
