"""Soft prompts: a prefix is n more positions in every layer, a prompt n more words, wherever and however it is read."""

import copy

import pytest
import tiny
import torch
from prompted import PREFIXES, built, given, split
from transformers import DynamicCache

import peftlab as pl
from peftlab import kernels

# a prefix, against attention that is written out: no seam of ours, no registry, no cache


def listened(m, batch):
    """The output, and for each attention of the model what q, k and v say and o is told."""
    heard, handles = {}, []

    def keep(at, args, y):
        heard.setdefault(at, (args[0] if at.site == "o" else y).detach())

    for at in pl.sites(m, "q k v o"):
        handles.append(at.register_forward_hook(keep))
    y = m(**batch)
    for handle in handles:
        handle.remove()
    return y, [[heard[at] for at in four] for four in zip(*(pl.sites(m, s) for s in "qkvo"), strict=True)]


def position_bias(m, i, t):
    """T5's, which its first attention of each stack has: (encoder, encoder, self, cross, self, cross)."""
    at = pl.sites(m, "attn")[0 if i < 2 else 2]
    return 0 if i in (3, 5) else at.compute_bias(t, t).detach()


def still(m):
    """Train mode, as gradient checkpointing wants it, without dropout."""
    for a in m.train().modules():
        for key in ("p", "dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(a, key, None), float):
                setattr(a, key, 0.0)


def check_by_hand(m, undo, batch):
    y, attentions = listened(m, batch)
    keys = batch["attention_mask"].bool()
    for i, ((q, k, v, o), d) in enumerate(zip(attentions, undo.deltas, strict=True)):
        (P_k, P_v), t = given(d), q.shape[1]
        n, b = P_k.shape[2], len(q)
        K, V = (torch.cat([P.expand(b, -1, -1, -1), split(t, 8)], 2) for P, t in ((P_k, k), (P_v, v)))
        s = split(q, 8) @ K.transpose(2, 3)
        seen = torch.ones(b, 1, t, K.shape[2], dtype=torch.bool)
        if m.kind == "seq2seq":
            s[..., n:] += position_bias(m, i, t)
        else:
            s /= 8**0.5
        causal = m.kind == "decoder" or i in (2, 4) and m.kind == "seq2seq"
        if causal:
            seen[..., n:] = torch.ones(t, t).tril().bool()
        if not (causal and m.kind == "seq2seq"):  # T5's decoder is not told of padding
            seen[..., n:] &= keys[:, None, None]
        want = (s.masked_fill(~seen, -torch.inf).softmax(-1) @ V).transpose(1, 2).flatten(2)
        assert torch.allclose(o[keys], want[keys], atol=1e-5), f"attention {i}"
    return y


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("way", ["fused", "plain steps", "gradient checkpointing"])
@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "gpt2", "opt", "t5"])
@pytest.mark.parametrize("name", PREFIXES)
def test_a_prefix_is_n_more_positions_in_every_attention(name, family, way, pad, monkeypatch):
    monkeypatch.setattr(kernels, "ONEDNN", way == "plain steps")
    m, undo = built(family, name, n=3)
    if way == "gradient checkpointing":
        still(m)
        m.gradient_checkpointing_enable()
    check_by_hand(m, undo, tiny.batch(m, pad=pad))


def by_cache(plain, undo, ids, mask):
    """The prefix as past keys and values of a plain model with its own eager attention, positions put right again."""
    cache, n = DynamicCache(), given(undo.deltas[0])[0].shape[2]
    for i, d in enumerate(undo.deltas):
        cache.update(*(P.expand(len(ids), -1, -1, -1).clone() for P in given(d)), i)
    mask = torch.cat([torch.ones(len(ids), n, dtype=torch.long), mask], 1)
    at = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
    with torch.no_grad():
        return plain(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=at).logits


def eager(family):
    plain = tiny.model(family, "lm").eval()
    plain.set_attn_implementation("eager")
    return plain


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen3", "mistral", "gemma"])
def test_a_prefix_is_a_past_that_takes_no_position(family, pad):
    (m, undo), b = built(family, "prefix", n=3), tiny.batch(tiny.model(family, "lm"), pad=pad, labels=False)
    with torch.no_grad():
        y, keep = m(**b).logits, b["attention_mask"].bool()
    want = by_cache(eager(family), undo, b["input_ids"], b["attention_mask"])
    assert torch.allclose(y[keep], want[keep], atol=1e-4)
    undo.toggle(False)
    assert not torch.allclose(y, tiny.logits(m, pad=pad), atol=1e-2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", PREFIXES)
def test_with_a_cache_a_prefix_counts_once(name, family):
    (m, undo), plain = built(family, name, n=3), eager(family)
    ids = tiny.batch(m, pad=False, labels=False)["input_ids"][:, :5]
    out = [m.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False,
                      use_cache=cache) for cache in (True, False)]  # fmt: skip
    grown = ids
    for _ in range(6):
        z = by_cache(plain, undo, grown, torch.ones_like(grown))[:, -1:]
        z[..., m.config.eos_token_id] = -torch.inf  # as min_new_tokens forbids the end
        grown = torch.cat([grown, z.argmax(-1)], 1)
    assert torch.equal(*out) and torch.equal(out[0], grown)


def test_a_prefix_needs_our_attention_and_says_so():
    for name in PREFIXES:
        m = tiny.model("roberta")
        m.set_attn_implementation("eager")
        with pytest.raises(pl.PeftlabError, match="roberta does not use transformers' attention registry"):
            pl.attach(m, name)


# prefix-tuning with its MLP, P-tuning v2


def test_the_mlp_is_one_for_all_layers_and_learns_in_each():
    m, undo = built("roberta", "prefix-mlp", n=3, r=5)
    first, *others = undo.deltas
    assert {*first.own()} == {"E", "W_1", "b_1", "W_2", "b_2"} and all({*d.own()} == {"W_2", "b_2"} for d in others)
    before = given(others[0])[0]
    with torch.no_grad():
        first.E.mul_(2)
    assert not torch.allclose(before, given(others[0])[0])
    twin = copy.deepcopy(m)
    with torch.no_grad():
        first.E.zero_()
    assert not torch.equal(tiny.logits(twin), tiny.logits(m)), "a copy has an E of its own"


def test_two_rows_have_two_mlps():
    rows = [dict(method="prefix-mlp", layers=[i], settings=dict(n=3 + i, r=4 + i)) for i in range(2)]
    m = tiny.model("roberta")
    undo = pl.attach(m, rows)
    assert [tuple(d.E.shape) for d in undo.deltas] == [(3, 32), (4, 32)] and tiny.logits(m).isfinite().all()


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama", "t5"])
def test_without_the_mlp_it_is_a_plain_prefix(family, tmp_path):
    m = tiny.model(family)
    undo = pl.attach(m, [pl.recipe("prefix-mlp", n=4, r=24)[0], "lora"])
    tiny.train(m, 5)
    y, before = tiny.logits(m), pl.counts(m)["delta"]
    pl.save(m, undo, tmp_path / "mlp")
    plain = pl.flatten(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-6)
    assert [row["method"] for row in plain.recipe] == ["prefix", "lora"] and not undo.deltas
    pl.save(m, plain, tmp_path / "plain")
    size = {p: (tmp_path / p / "delta.safetensors").stat().st_size for p in ("mlp", "plain")}
    assert pl.counts(m)["delta"] < before and size["plain"] < size["mlp"]
    fresh = tiny.model(family)
    pl.load(fresh, tmp_path / "plain")
    assert torch.allclose(tiny.logits(fresh), y, atol=1e-6)
    plain()
    assert m.base_model.state_dict().keys() == tiny.model(family).base_model.state_dict().keys()


def test_the_head_that_it_carries_stays_with_it():
    m = tiny.model("roberta")
    undo = pl.keep_head(pl.attach(m, "prefix-mlp"))
    plain = pl.flatten(m, undo)
    assert plain.head is not None and all(torch.equal(plain.head[n], p) for n, p in pl.head_parameters(m).items())


def test_what_no_network_computes_stays_as_it_is():
    m = tiny.model("roberta")
    undo = pl.attach(m, ["prefix", "lora"])
    with pytest.raises(pl.PeftlabError, match="none of these deltas is computed from others"):
        pl.flatten(m, undo)
    assert len(undo.deltas) == 6


def test_p_tuning_v2_is_the_prefix_without_an_mlp():
    ys = []
    for name in ("prefix", "p-tuning-v2"):
        m = tiny.model("roberta")
        pl.attach(m, pl.recipe(name, n=12), seed=3)
        ys.append(tiny.logits(m))
    assert torch.equal(*ys)
