"""What cannot be attached or loaded is refused in one sentence, and the model stays as it was."""

import pytest
import tiny
import torch
from torch import nn

import peftlab as pl


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


def test_a_prompt_too_long_for_the_positions_says_so():
    m = tiny.model()
    pl.attach(m, pl.recipe("prompt", n=34))
    with pytest.raises(pl.PeftlabError, match="7 tokens and a prompt of 34 exceed the 38 positions"):
        tiny.logits(m)


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
