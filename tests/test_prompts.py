"""Soft prompts: a prefix is n more positions in every layer, a prompt n more words, wherever and however it is read."""

import copy

import pytest
import tiny
import torch
from transformers import DynamicCache

import peftlab as pl
from peftlab import kernels

HEAD = dict(gpt2="lm", opt="lm", llama="lm", qwen3="lm", gemma="lm", mistral="lm", t5="seq2seq")
PREFIXES = ["prefix", "prefix-mlp", "p-tuning-v2"]


def built(family, name, **settings):
    """A tiny model with a delta that is off its start."""
    m = tiny.model(family, HEAD.get(family, "classification")).eval()
    return m, scattered(pl.attach(m, pl.recipe(name, **settings)))


@torch.no_grad()
def scattered(undo):
    g = torch.Generator().manual_seed(5)
    for p in (p for d in undo.deltas for p in d.parameters()):
        p.add_(0.5 * torch.randn(p.shape, generator=g))
    return undo


def split(t, width):  # (b t h·d) -> (b h t d)
    return t.unflatten(-1, (-1, width)).transpose(1, 2)


def given(d):
    """The keys and values that a delta puts first (1 h n d), 8 wide in every tiny model."""
    P = d.prefix() if hasattr(d, "prefix") else (d.P_k, d.P_v)
    return [split(p.detach()[None], 8) for p in P]


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


# P-tuning


def read(m, **batch):
    """The word vectors and the mask that the text's stack gets (b n+t d), (b n+t)."""
    got = {}
    stack = m.base_model if m.kind != "seq2seq" else m.get_encoder()
    handle = stack.register_forward_pre_hook(lambda _, args, kw: got.update(kw), with_kwargs=True)
    with torch.no_grad():
        m(**batch)
    handle.remove()
    return got["inputs_embeds"], got["attention_mask"]


@pytest.mark.parametrize("family", ["roberta", "distilbert", "t5", "gpt2", "llama"])
def test_p_tuning_puts_its_tokens_around_the_text(family):
    m, undo = built(family, "p-tuning", n=5)
    b = tiny.batch(m)
    if family == "gpt2":  # padded on the left, as it generates
        b = {k: torch.stack([t.roll(int((w == 0).sum())) for t, w in zip(b[k], b["attention_mask"], strict=True)])
             for k in b}  # fmt: skip
    e, mask = read(m, **b)
    P, x, length = undo.deltas[0].vectors(), m.get_input_embeddings()(b["input_ids"]), b["attention_mask"].sum(1)
    for i, n in enumerate(length.tolist()):
        x_i = x[i][b["attention_mask"][i].bool()]
        whole = {"t5": [P[:2], x_i[:-1], P[2:], x_i[-1:]]} | dict.fromkeys(("gpt2", "llama"), [P, x_i])
        want = torch.cat(whole.get(family, [x_i[:1], P[:2], x_i[1:-1], P[2:], x_i[-1:]]))
        assert int(mask[i].sum()) == n + 5 and torch.allclose(e[i][mask[i].bool()], want, atol=1e-6)


def test_an_lstm_lets_every_vector_of_the_prompt_depend_on_all():
    for encoder, alone in (("lstm", False), ("mlp", True), ("none", True)):
        _, undo = built("roberta", "p-tuning", n=4, encoder=encoder)
        d = undo.deltas[0]
        (g,) = torch.autograd.grad(d.vectors()[1].sum(), d.p)
        moved = g.abs().sum(1) > 0
        assert moved[1] and bool(moved[[0, 2, 3]].any()) != alone and bool(moved.all()) != alone


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_the_prompt_encoder_is_dropped_after_training(family, encoder, tmp_path):
    m = tiny.model(family)
    undo = pl.attach(m, pl.recipe("p-tuning", encoder=encoder))
    tiny.train(m, 5, lr=3e-3)
    y = tiny.logits(m)
    plain = pl.flatten(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-6) and pl.counts(m)["delta"] == 8 * 32
    assert plain.recipe[0]["settings"]["encoder"] == "none"
    pl.load(fresh := tiny.model(family), pl.save(m, plain, tmp_path))
    assert torch.allclose(tiny.logits(fresh), y, atol=1e-6)


@pytest.mark.parametrize("names", [("p-tuning", "prompt"), ("prompt", "p-tuning"), ("warp", "prompt")])
def test_prompts_stack_and_come_off_in_any_order(names):
    m = tiny.model("roberta")
    y = tiny.logits(m)
    a = scattered(pl.attach(m, pl.recipe(names[0], n=3)))
    ya = tiny.logits(m)
    b = scattered(pl.attach(m, pl.recipe(names[1], n=4)))
    both = tiny.logits(m)
    batch = tiny.batch(m, labels=False)
    with torch.no_grad():
        alone = m(input_ids=batch["input_ids"][1:2, :5], attention_mask=batch["attention_mask"][1:2, :5]).logits
    assert torch.allclose(both[1], alone[0], atol=1e-4)
    b.toggle(False)
    assert torch.equal(tiny.logits(m), ya)
    b.toggle(True)
    a()
    left = tiny.logits(m)
    assert not torch.equal(left, both) and not torch.equal(left, y)
    b()
    assert torch.equal(tiny.logits(m), y)


@pytest.mark.parametrize("names", [("p-tuning", "prompt"), ("prompt", "p-tuning"), ("p-tuning", "p-tuning")])
def test_of_stacked_prompts_only_the_text_comes_out(names):
    """Each takes off what it put in: what is left are the outputs at the text's own words, in their order."""
    m, plain = (tiny.model("roberta", "mlm").eval() for _ in range(2))
    for i, name in enumerate(names):
        scattered(pl.attach(m, pl.recipe(name, n=3 + i), seed=i))
    b = tiny.batch(m, labels=False)
    (e, mask), words = read(m, **b), m.get_input_embeddings().weight
    with torch.no_grad():
        y, whole = m(**b).logits, plain(inputs_embeds=e, attention_mask=mask).logits
    text = (e[:, :, None] == words).all(3).any(2)
    assert torch.equal(text.sum(1), torch.full((4,), 7)) and torch.allclose(y.flatten(0, 1), whole[text], atol=1e-5)


# WARP


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_warp_scores_the_classes_at_the_mask(family):
    m, undo = built(family, "warp", n=5)
    (d,), b, y = undo.deltas, tiny.batch(m, labels=False), tiny.logits(m)
    P, V, E = d.P.detach(), d.V.detach(), m.get_input_embeddings()
    undo()
    mask = E(torch.tensor([m.tokenizer.mask_token_id])).detach()
    for ids, w, got in zip(b["input_ids"], b["attention_mask"], y, strict=True):
        x = E(ids[w.bool()]).detach()
        e = torch.cat([x[:1], P[:3], x[1:-1], P[3:], mask, x[-1:]])[None]
        with torch.no_grad():
            f = m.base_model(inputs_embeds=e, attention_mask=torch.ones(e.shape[:2])).last_hidden_state[0, -2]
        assert torch.allclose(V @ f, got, atol=1e-5)


def test_warp_has_no_use_for_the_head():
    m, undo = built("roberta", "warp")
    y, head = tiny.logits(m), pl.head_parameters(m)
    assert not any(p.requires_grad for p in head.values()) and pl.counts(m)["delta"] == 8 * 32 + 2 * 32
    assert {id(p) for p in pl.trainable(m)} == {id(p) for p in undo.deltas[0].parameters()}
    with torch.no_grad():
        for p in head.values():
            p.mul_(-3).add_(1)
    assert torch.equal(tiny.logits(m), y)
    undo.toggle(False)
    assert not torch.allclose(tiny.logits(m), y)
    undo()
    assert all(p.requires_grad for p in head.values())


def test_warp_can_start_at_words():
    m = pl.backbone("nano-encoder")
    ids = [m.tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in ("bad", "good")]
    undo = pl.attach(m, pl.recipe("warp", verbalizers=" bad  good "))
    assert undo.recipe[0]["settings"]["verbalizers"] == "bad good"
    assert torch.equal(undo.deltas[0].V, m.get_input_embeddings().weight[torch.tensor(ids)[:, 0]])
    undo()
    for words, said in (("bad", "one word for each of the 2 classes, not 1"), ("bad blorx", "'blorx' is not one")):
        with pytest.raises(pl.PeftlabError, match=said):
            pl.attach(m, pl.recipe("warp", verbalizers=words))
    with pytest.raises(pl.PeftlabError, match=r"verbalizers \(class words\) are written like 'bad good'"):
        pl.recipe("warp", verbalizers=["bad", "good"])


@pytest.mark.parametrize("family, head", [("gpt2", "classification"), ("t5", "classification"), ("roberta", "mlm")])
def test_warp_needs_a_mask_and_classes(family, head):
    m = tiny.model(family, head)
    with pytest.raises(pl.PeftlabError, match=r"it needs an encoder with a classification head and a tokenizer"):
        pl.attach(m, "warp")
    assert not any("warp" in n for n in m.state_dict())


# nearest words


def test_the_nearest_word_of_a_word_is_itself():
    m = pl.backbone("nano-encoder")
    undo = pl.attach(m, [pl.recipe("prompt", n=3)[0], pl.recipe("p-tuning", n=2, encoder="none")[0], "lora"])
    ids = m.tokenizer(" soup good rain", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        undo.deltas[0].P.copy_(7 * m.get_input_embeddings().weight[ids])  # a cosine does not see lengths
    found = pl.nearest_words(m, undo, k=4)
    assert [row[0][0] for row in found[:3]] == ["soup", "good", "rain"] and len(found) == 5
    assert all(len(row) == 4 and row[0][1] == pytest.approx(1, abs=1e-5) for row in found), "both begin at words"
    assert all(a[1] >= b[1] for row in found for a, b in zip(row, row[1:], strict=False))


def test_only_word_vectors_have_nearest_words():
    m = pl.backbone("nano-encoder")
    undo = pl.attach(m, "prefix")
    with pytest.raises(pl.PeftlabError, match="none of these deltas is made of word vectors"):
        pl.nearest_words(m, undo)
    undo()
    with pytest.raises(pl.PeftlabError, match="k must be a whole number from 1 to"):
        pl.nearest_words(m, pl.attach(m, "prompt"), k=0)


def test_a_prompt_starts_as_words_or_as_vectors_of_their_size():
    m = pl.backbone("micro-encoder")
    E = m.get_input_embeddings().weight.detach()
    for init, words, near in (("vocabulary", True, 0.3), ("random", False, 0.05)):
        undo = pl.attach(m, pl.recipe("prompt", n=64, init=init), seed=3)
        P = undo.deltas[0].P.detach()
        assert ((P[:, None] == E).all(2).any(1) == words).all()
        assert P.square().mean().sqrt() == pytest.approx(E.square().mean().sqrt().item(), rel=near)
        undo()
    with pytest.raises(pl.PeftlabError, match="init.*random"):
        pl.recipe("prompt", init="randm")
