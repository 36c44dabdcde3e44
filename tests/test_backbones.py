"""Loading and normalising: every family ends as the same kind of thing, and a wrong name is told in one sentence."""

import json
import weakref

import pytest
import tiny
import torch
import transformers
from torch import nn

import peftlab as pl
from peftlab import backbones


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of three kinds, saved in Hugging Face format with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(tiny.WORDS)}, unk_token="w4"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w1", eos_token="w2", unk_token="w4"
    )
    out = {}
    for family in ("roberta", "gpt2", "t5"):
        out[family] = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(tiny.CONFIGS[family]()).save_pretrained(out[family])
        tokenizer.save_pretrained(out[family])
    return out


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_family_has_every_site(family):
    m = tiny.model(family)
    assert pl.site_names(m) == "embed block attn q k v o norm1 up down norm2".split()
    layers = 4 if family == "t5" else 2
    assert pl.n_layers(m) == layers
    for site in "q k v o up down".split():
        for layer in range(layers):
            found = pl.sites(m, site, [layer])
            cross, gated = family == "t5" and layer > 1 and site in "qkvo", site == "up" and "gate_proj" in str(m)
            assert len(found) == (2 if cross or gated else 1) and all(type(s) is nn.Linear for s in found)
    assert m.kind in ("encoder", "decoder", "seq2seq") and not any(p.requires_grad for p in m.base_model.parameters())


@pytest.mark.parametrize("head", ["classification", "lm"])
def test_gpt2_computes_the_same_after_it_was_made_plain(head):
    torch.manual_seed(0)
    raw = tiny.AUTO[head].from_config(tiny.CONFIGS["gpt2"]()).eval()
    raw.config.pad_token_id = 1
    ids = dict(input_ids=torch.randint(3, 60, (3, 6)))
    with torch.no_grad():
        y = raw(**ids).logits
        m = pl.prepare(raw)
        assert torch.allclose(m(**ids).logits, y, atol=1e-5)
    assert not any("Conv1D" in type(s).__name__ for s in m.modules())


def test_a_gpt2_is_never_in_memory_twice(monkeypatch):
    raw = transformers.GPT2LMHeadModel(tiny.CONFIGS["gpt2"]())
    fused = [weakref.ref(m.weight) for m in raw.modules() if isinstance(m, backbones.Conv1D)]
    linear, held = backbones.linear, []
    count = lambda: held.append(sum(weight() is not None for weight in fused))
    monkeypatch.setattr(backbones, "linear", lambda W, b: count() or linear(W, b))
    pl.prepare(raw)
    assert held == sorted(held, reverse=True) and (held[0], held[-1]) == (len(fused), 1)


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_delta_attention_is_sdpa(family):
    m = tiny.model(family)
    y = tiny.logits(m)
    m.set_attn_implementation("sdpa")
    assert torch.allclose(tiny.logits(m), y, atol=1e-5)


@pytest.mark.parametrize(
    "family, head, cls",
    [
        ("roberta", "classification", "RobertaForSequenceClassification"),
        ("roberta", "regression", "RobertaForSequenceClassification"),
        ("roberta", "lm", "RobertaForMaskedLM"),
        ("gpt2", "classification", "GPT2ForSequenceClassification"),
        ("gpt2", "lm", "GPT2LMHeadModel"),
        ("gpt2", "seq2seq", "GPT2LMHeadModel"),
        ("t5", "classification", "T5ForSequenceClassification"),
        ("t5", "seq2seq", "T5ForConditionalGeneration"),
    ],
)
def test_heads(folders, family, head, cls):
    m = pl.backbone(folders[family], head=head, labels=3)
    assert type(m).__name__ == cls and m.tokenizer.pad_token_id == m.config.pad_token_id
    heads = pl.head_parameters(m)
    assert bool(heads) == (head in ("classification", "regression")) and all(p.requires_grad for p in heads.values())
    if heads:
        assert [p for n, p in heads.items() if n.endswith("weight")][-1].shape[0] == (
            3 if head == "classification" else 1
        )
    trained = pl.trainable(m)
    pl.set_head(m, "frozen")
    assert len(trained) == len(heads) and not pl.trainable(m)


def test_the_seed_draws_the_head_and_nothing_else(folders):
    a, b, c = (pl.backbone(folders["roberta"], seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert {n.split(".")[0] for n in a if not torch.equal(a[n], c[n])} == {"classifier"}
    scratch = pl.backbone(folders["roberta"], pretrained=False).state_dict()
    assert not torch.equal(
        a["roberta.encoder.layer.0.attention.self.query.weight"],
        scratch["roberta.encoder.layer.0.attention.self.query.weight"],
    )


@pytest.mark.parametrize(
    "name, words",
    [
        ("micro-encodr", "unknown backbone.*micro-encoder"),
        ("nobody/nothing-at-all", "no network.*micro-encoder"),
        ("", "unknown backbone"),
    ],
)
def test_wrong_names(name, words):
    with pytest.raises(pl.PeftlabError, match=words):
        pl.backbone(name)


def test_wrong_folders(folders, tmp_path):
    with pytest.raises(pl.PeftlabError, match="holds no config.json"):
        pl.backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="electra")))
    with pytest.raises(pl.PeftlabError, match="unknown model family 'electra'"):
        pl.backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="roberta")))
    with pytest.raises(pl.PeftlabError, match="cannot be read"):
        pl.backbone(tmp_path)
    with pytest.raises(pl.PeftlabError, match="cannot carry a seq2seq head"):
        pl.backbone(folders["roberta"], head="seq2seq")
    with pytest.raises(pl.PeftlabError, match="unknown head 'clasification'; the nearest .* classification"):
        pl.backbone(folders["roberta"], head="clasification")


def test_wrong_sites():
    m = tiny.model()
    with pytest.raises(pl.PeftlabError, match="unknown site 'query'"):
        pl.sites(m, "query")
    with pytest.raises(pl.PeftlabError, match="layer 2 does not exist: roberta has layers 0 to 1"):
        pl.sites(m, "q", [2])
