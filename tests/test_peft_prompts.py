"""Hugging Face PEFT as the oracle for soft prompts and IA³: the same numbers give the same logits.

Two conventions differ. PEFT hands a prefix over as a past, which moves every position of the text by n; here it takes
no position, so the text is moved by hand before the two are compared. PEFT puts a prompt before everything, also before
an encoder's [CLS], here it comes after that; so prompts are compared on decoders and on T5.
"""

import copy

import pytest
import tiny
import torch

import peftlab as pl

peft = pytest.importorskip("peft")
CAUSAL = pytest.mark.parametrize("family", ["gpt2", "llama"])


def pair(family, name, head, config, **settings):
    """Our model with its delta off the start, theirs with the numbers of its start, and our deltas."""
    ours = tiny.model(family, head).double()
    theirs = peft.get_peft_model(copy.deepcopy(ours), config).double().eval()
    undo = pl.attach(ours, pl.recipe(name, **settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in (p for d in undo.deltas for p in d.parameters()):
            p.add_(0.3 * torch.randn_like(p))
    return ours, theirs, undo.deltas


@torch.no_grad()
def same(ours, theirs, n=0, **more):
    """Logits of one padded batch, where it is not padded; theirs (n of the prompt dropped), and ours."""
    batch = tiny.batch(ours, labels=False)
    keep = batch["attention_mask"].bool()
    if ours.kind == "seq2seq":
        more, keep = more | dict(decoder_input_ids=batch["input_ids"]), ...
    y, z = ours(**batch, **more).logits, theirs(**batch, **(more if ours.kind == "seq2seq" else {})).logits[:, n:]
    return torch.allclose(y[keep], z[keep], atol=1e-8)


@CAUSAL
@torch.no_grad()
def test_prefix(family):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ours, theirs, deltas = pair(family, "prefix", "lm", config, n=4)
    theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat([t for d in deltas for t in (d.P_k, d.P_v)], 1))
    assert same(ours, theirs, position_ids=torch.arange(4, 11)[None])
    assert not same(ours, theirs), "without moving the text they differ"


@torch.no_grad()
def test_prefix_mlp():
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6
    )
    ours, theirs, deltas = pair("gpt2", "prefix-mlp", "lm", config, n=4, r=6)
    encoder, one = theirs.prompt_encoder["default"], deltas[0]
    encoder.embedding.weight.copy_(one.E)
    encoder.transform[0].weight.copy_(one.W_1), encoder.transform[0].bias.copy_(one.b_1)
    encoder.transform[2].weight.copy_(torch.cat([d.W_2 for d in deltas]))
    encoder.transform[2].bias.copy_(torch.cat([d.b_2 for d in deltas]))
    assert same(ours, theirs, position_ids=torch.arange(4, 11)[None])
    assert sum(p.numel() for p in encoder.parameters()) == pl.counts(ours)["delta"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@torch.no_grad()
def test_prompt(family):
    head, kind = ("seq2seq", "SEQ_2_SEQ_LM") if family == "t5" else ("lm", "CAUSAL_LM")
    config = peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=4, num_transformer_submodules=1)
    ours, theirs, (d,) = pair(family, "prompt", head, config, n=4)
    theirs.prompt_encoder["default"].embedding.weight.copy_(d.P)
    assert same(ours, theirs, 0 if family == "t5" else 4)


@CAUSAL
@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@torch.no_grad()
def test_p_tuning(encoder, family):
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
        encoder_num_layers=1 if encoder == "lstm" else 2,  # of the LSTM; the MLP must leave it at its default
    )
    ours, theirs, (d,) = pair(family, "p-tuning", "lm", config, n=4, r=6, encoder=encoder)
    there = theirs.prompt_encoder["default"]
    there.embedding.weight.copy_(d.p)
    if encoder == "lstm":
        there.lstm_head.load_state_dict(d.lstm.state_dict())
    for mine, layer in zip(d.mlp, [m for m in there.mlp_head if isinstance(m, torch.nn.Linear)], strict=True):
        layer.load_state_dict(mine.state_dict())
    assert same(ours, theirs, 4)
    assert sum(p.numel() for p in there.parameters()) == pl.counts(ours)["delta"]


@pytest.mark.parametrize(
    "family, keys, down, head, kind",
    [
        ("roberta", ["key", "value"], ["output.dense"], "mlm", None),
        ("llama", ["k_proj", "v_proj"], ["down_proj"], "lm", "CAUSAL_LM"),
        ("t5", ["k", "v"], ["wo"], "seq2seq", "SEQ_2_SEQ_LM"),
    ],
)
@torch.no_grad()
def test_ia3(family, keys, down, head, kind):
    plain = tiny.model(family, head)
    names = {m: name for name, m in plain.named_modules()}
    down = [names[m] for m in pl.sites(plain, "down")]
    targets = down + [names[m] for m in pl.sites(plain, "k v")]
    config = peft.IA3Config(task_type=kind, target_modules=targets, feedforward_modules=down)
    ours, theirs, _ = pair(family, "ia3", head, config)
    for name, m in ours.named_modules():
        if hasattr(m, "ia3"):
            l = theirs.get_submodule(f"base_model.model.{name}").ia3_l["default"]
            l.copy_(m.ia3.l.view_as(l))
    assert same(ours, theirs)
