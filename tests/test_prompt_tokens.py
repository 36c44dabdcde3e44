"""Prompts among the words: P-tuning, stacked prompts, WARP, and the words that are nearest to a vector."""

import pytest
import tiny
import torch
from prompted import built, scattered

import peftlab as pl

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
