"""The kernel: seams, stacking, toggling, and each known pitfall of attaching to a transformer."""

import copy
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

NAMES = [n for n in pl.METHODS if n != "head"]


def scatter(undo, seed=5):
    """Move every delta off its start, so that it does something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for d in undo.deltas:
            for p in d.own().values():
                if p.is_floating_point():
                    p.add_(0.1 * torch.randn(p.shape, generator=g))


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
    scatter(a)
    ya = tiny.logits(m)
    b = pl.attach(m, second, seed=1)
    scatter(b, 6)
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
    scatter(a)
    scatter(b)
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
    scatter(undo)
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
    scatter(undo)
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


@pytest.mark.parametrize("family", ["gpt2", "roberta", "t5", "llama"])
@pytest.mark.parametrize("name", ["lora", "adapter", "prefix", "random-mask"])
def test_gradient_checkpointing_gives_the_same_gradients(family, name):
    grads = []
    for on in (False, True):
        m = tiny.model(family).train()
        for d in m.modules():
            if isinstance(d, nn.Dropout):
                d.p = 0.0
        m.config.dropout_rate = 0.0
        for a in m.modules():
            for key in ("dropout", "attention_dropout", "dropout_prob"):
                if isinstance(getattr(a, key, None), float):
                    setattr(a, key, 0.0)
        undo = pl.attach(m, name)
        scatter(undo)
        if on:
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # renamed in v5
            getattr(m, new if hasattr(m, new) else old)()
        m(**tiny.batch(m)).loss.backward()
        grads.append([p.grad.clone() for d in undo.deltas for p in d.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_new_parameters_follow_a_bf16_backbone(name):
    m = tiny.model().to(torch.bfloat16)
    undo = pl.attach(m, name)
    assert {p.dtype for d in undo.deltas for p in d.own().values() if p.is_floating_point()} == {torch.bfloat16}
    m(**tiny.batch(m)).loss.backward()


def test_a_deep_copy_calls_its_own_deltas():
    m = tiny.model()
    undo = pl.attach(m, "lora")
    twin = copy.deepcopy(m)
    y = tiny.logits(m)
    scatter(undo)
    assert torch.equal(tiny.logits(twin), y) and not torch.equal(tiny.logits(m), y)


def test_hooks_keep_the_module_what_it_was():
    """T5's feed-forward reads `self.wo.weight`: a site must stay a Linear with its attributes."""
    m = tiny.model("t5")
    pl.attach(m, "adapter")
    assert all(type(s) is nn.Linear and s.weight.shape == (32, 48) for s in pl.sites(m, "down"))


def test_a_weight_delta_on_a_tied_tensor_is_refused():
    class Shift(pl.WeightDelta):
        def __init__(self, m):
            super().__init__()
            self.d = nn.Parameter(torch.zeros_like(m.weight))

        def forward(self, W):
            return W + self.d

    m = tiny.model("gpt2", "lm")
    (embed,) = pl.sites(m, "embed")
    with pytest.raises(pl.PeftlabError, match="tied to another module"):
        Shift(embed).attach(embed, m)


def test_a_prompt_leaves_cls_first():
    """What the head reads must still depend on the real first token."""
    m = tiny.model()
    pl.attach(m, "prompt")
    b = tiny.batch(m, labels=False)
    other = b | dict(input_ids=b["input_ids"].clone())
    other["input_ids"][:, 0] = 9
    with torch.no_grad():
        assert (m(**b).logits - m(**other).logits).abs().max() > 1e-3


def test_a_prompt_too_long_for_the_positions_says_so():
    m = tiny.model()
    pl.attach(m, pl.recipe("prompt", n=34))
    with pytest.raises(pl.PeftlabError, match="7 tokens and a prompt of 34 exceed the 38 positions"):
        tiny.logits(m)


@pytest.mark.parametrize("family, head", [("gpt2", "lm"), ("llama", "lm"), ("t5", "seq2seq")])
@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "p-tuning"])
def test_generation(family, head, name):
    """Greedy generation equals the argmax of full forward passes, cache or not."""
    m = tiny.model(family, head)
    scatter(pl.attach(m, name))
    ids = tiny.batch(m, pad=False, labels=False)["input_ids"][:, :6]
    how = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))
    out = m.generate(ids, use_cache=True, **how)
    assert torch.equal(out, m.generate(ids, use_cache=False, **how))
    grown = out[:, :1] if family == "t5" else ids
    for _ in range(4):
        with torch.no_grad():
            z = m(input_ids=ids, decoder_input_ids=grown).logits if family == "t5" else m(input_ids=grown).logits
        z[..., m.config.eos_token_id] = -torch.inf  # min_new_tokens forbids the end
        grown = torch.cat([grown, z[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, grown)


def test_a_prompt_after_cached_tokens_is_refused():
    """These tokens were read without it; `generate` begins with an empty cache, which the prompt then opens."""
    m, ids = tiny.model("gpt2", "lm"), torch.full((1, 3), 5)
    cache = m(input_ids=ids, use_cache=True).past_key_values
    undo, mask = pl.attach(m, "prompt"), torch.ones(1, 4, dtype=torch.long)
    m(input_ids=ids)
    with pytest.raises(pl.PeftlabError, match="read without this prompt; begin with an empty cache"):
        m(input_ids=ids[:, :1], past_key_values=cache, attention_mask=mask)
    undo()
    m(input_ids=ids[:, :1], past_key_values=cache, attention_mask=mask)


def test_prefix_without_the_attention_registry_is_refused():
    m = tiny.model()
    m.set_attn_implementation("eager")
    with pytest.raises(pl.PeftlabError, match="attention registry"):
        pl.attach(m, "prefix")


@pytest.mark.parametrize("name", ["lora", "adapter", "random-mask", "prefix"])
def test_no_graph_breaks(name):
    m = tiny.model()
    pl.attach(m, name)
    torch._dynamo.reset()
    assert torch._dynamo.explain(m)(**tiny.batch(m)).graph_break_count == 0


# an oracle


@pytest.mark.parametrize("family", ["roberta", "llama", "t5"])
def test_lora_is_hf_pefts_lora(family):
    from peft import LoraConfig, get_peft_model

    m = tiny.model(family)
    theirs = copy.deepcopy(m)
    names = {n.rsplit(".", 1)[-1] for n, s in m.named_modules() if getattr(s, "site", None) in ("q", "v")}
    undo = pl.attach(m, pl.recipe("lora", r=4, alpha=8))
    scatter(undo)
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=sorted(names)))
    hf = [s for s in theirs.modules() if hasattr(s, "lora_A")]
    with torch.no_grad():
        for d, s in zip(undo.deltas, hf, strict=True):
            s.lora_A["default"].weight.copy_(d.A)
            s.lora_B["default"].weight.copy_(d.B)
    b = tiny.batch(m, labels=False)
    with torch.no_grad():
        assert torch.allclose(m(**b).logits, theirs(**b).logits, atol=1e-5)
    assert pl.counts(m)["delta"] == sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)


# bad input


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(r=0), "at least 1"),
        (dict(r=-2), "at least 1"),
        (dict(r=2.5), "whole number"),
        (dict(r="8"), "whole number"),
        (dict(r=True), "whole number"),
        (dict(rank=8), "unknown setting of lora 'rank'"),
        (dict(where="w"), "unknown site for lora 'w'"),
        (dict(layers="1-b"), "layers are written like"),
        (dict(layers="a-b"), "unknown grouping of layers"),
        (dict(layers=[]), "at least one"),
        (dict(layers=[0.5]), "whole numbers"),
        (dict(where=""), "needs at least one site"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(pl.PeftlabError, match=words):
        pl.recipe("lora", **settings)


@pytest.mark.parametrize(
    "what, words",
    [
        ("lroa", "unknown method 'lroa'; the nearest .*lora"),
        ([], "the recipe is empty"),
        ({"where": "q"}, "needs a method"),
        ({"method": "lora", "rank": 3}, "unknown key in a recipe row 'rank'"),
        (pl.recipe("lora", r=40), "rank r = 40 is above the width 32"),
        (pl.recipe("lora", layers=[7]), "layer 7 does not exist.*0 to 1"),
        (pl.recipe("adapter", r=64), "above the width 32"),
        (pl.recipe("random-mask", where="q", layers=[0], p=0.0002), "picks 0 of the 1024 entries"),
        (pl.recipe("magnitude-mask", p=2), "take p between"),
    ],
)
def test_bad_recipes_leave_the_model_as_it_was(what, words):
    m = tiny.model()
    names, y = set(m.state_dict()), tiny.logits(m)
    with pytest.raises(pl.PeftlabError, match=words):
        pl.attach(m, what)
    assert set(m.state_dict()) == names and torch.equal(tiny.logits(m), y)


@pytest.mark.parametrize(
    "family, words", [("bert", "model_type roberta.*model_type bert"), ("roberta", "hidden_size 32.*hidden_size 64")]
)
def test_a_checkpoint_for_another_backbone_is_refused(family, words, tmp_path):
    m = tiny.model()
    pl.save(m, pl.attach(m, "lora"), tmp_path)
    if family == "roberta":
        import transformers

        c = tiny.CONFIGS[family]()
        c.hidden_size = 64
        other = pl.prepare(transformers.AutoModelForSequenceClassification.from_config(c))
    else:
        other = tiny.model(family)
        other.backbone_name = m.backbone_name
    names = set(other.state_dict())
    with pytest.raises(pl.PeftlabError, match=words):
        pl.load(other, tmp_path)
    assert set(other.state_dict()) == names
    other.backbone_name = "elsewhere"
    with pytest.raises(pl.PeftlabError, match="was made for roberta.*this backbone is elsewhere"):
        pl.load(other, tmp_path)
    with pytest.raises(pl.PeftlabError, match="holds no delta.json"):
        pl.load(m, tmp_path / "nothing")


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
    scatter(undo)
    y = tiny.logits(m)
    pl.merge(m, undo)
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)
