"""Hugging Face PEFT as the oracle: the same numbers in its LoRA and in ours give the same logits."""

import copy
import json

import pytest
import tiny
import torch

import peftlab as pl

peft = pytest.importorskip("peft")
TARGETS = dict(roberta=["query", "value"], llama=["q_proj", "v_proj"], t5=["q", "v"])
CONFIGS = {
    "lora": lambda at: peft.LoraConfig(r=8, lora_alpha=16, target_modules=at),
    "rslora": lambda at: peft.LoraConfig(r=8, lora_alpha=16, target_modules=at, use_rslora=True),
    "dora": lambda at: peft.LoraConfig(r=8, lora_alpha=16, target_modules=at, use_dora=True),
    "vera": lambda at: peft.VeraConfig(r=64, target_modules=at),
    "loha": lambda at: peft.LoHaConfig(r=4, alpha=8, target_modules=at),
}
NAMES = dict(A="lora_A", B="lora_B", m="lora_magnitude_vector", d="vera_lambda_d", b="vera_lambda_b")
NAMES |= dict(A1="hada_w1_b", B1="hada_w1_a", A2="hada_w2_b", B2="hada_w2_a")


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_same_numbers_give_the_same_logits(name, family):
    ours = tiny.model(family).double()  # so that 1e-5 is of the equations, not of single precision
    theirs = peft.get_peft_model(copy.deepcopy(ours), CONFIGS[name](TARGETS[family])).eval()
    undo = pl.attach(ours, name)
    torch.manual_seed(0)
    places = {m: n for n, m in ours.named_modules()}
    for delta, module in undo.placed:
        there = theirs.get_submodule(f"base_model.model.{places[module]}")
        for key, p in delta.named_parameters():
            p.add_(torch.randn_like(p).mul_(0.3).abs())
            target = getattr(there, NAMES[key])["default"]
            getattr(target, "weight", target).copy_(p)
    y = tiny.logits(ours)
    undo.toggle(False)
    assert not torch.allclose(y, tiny.logits(ours), atol=1e-3), "the deltas do something"
    assert torch.allclose(tiny.logits(theirs), y, atol=1e-5)


def scramble(parameters):
    """Numbers as training might leave them; positive, as DoRA's lengths are."""
    torch.manual_seed(1)
    for p in parameters:
        p.add_(torch.randn_like(p).mul_(0.3).abs())


BOTH = pytest.mark.parametrize("family", TARGETS)
EXCHANGED = [n for n, m in pl.METHODS.items() if m.peft]


@BOTH
@pytest.mark.parametrize("name", EXCHANGED)
@torch.no_grad()
def test_what_is_saved_here_loads_there(name, family, tmp_path):
    ours, plain = tiny.model(family).double(), tiny.model(family).double()
    undo = pl.attach(ours, name)
    scramble([p for d in undo.deltas for p in d.parameters()] + [*pl.head_parameters(ours).values()])
    pl.save_peft(ours, undo, tmp_path)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    assert torch.allclose(tiny.logits(theirs), tiny.logits(ours), atol=1e-5)
    again = tiny.model(family).double()
    assert {row["method"] for row in pl.load_peft(again, tmp_path).recipe} <= {name, "lora"}
    assert torch.equal(tiny.logits(again), tiny.logits(ours))


@BOTH
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head", [False, True])
@torch.no_grad()
def test_what_is_saved_there_loads_here(head, name, family, tmp_path):
    ours, config = tiny.model(family).double(), copy.deepcopy(CONFIGS[name](TARGETS[family]))
    config.modules_to_save = sorted({n.split(".")[0] for n in pl.head_parameters(ours)}) if head else None
    theirs = peft.get_peft_model(tiny.model(family).double(), config).eval()
    scramble(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    undo = pl.load_peft(ours, tmp_path)
    assert torch.allclose(tiny.logits(ours), tiny.logits(theirs), atol=1e-5)
    assert {row["method"] for row in undo.recipe} == {name}
    changed = {n for n in theirs.state_dict() if "lora_A" in n or "lambda_d" in n or "w1_a" in n}
    assert len(undo.placed) == len({m for _, m in undo.placed}) == len(changed), "one delta for each module"


@torch.no_grad()
def test_a_rank_of_its_own_for_each_layer_travels(tmp_path):
    ours = tiny.model("roberta").double()
    rows = [dict(method="lora", where="q v", layers=[i], settings=dict(r=2 + 2 * i, alpha=8)) for i in (0, 1)]
    undo = pl.attach(ours, rows)
    scramble(p for d in undo.deltas for p in d.parameters())
    pl.save_peft(ours, undo, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny.model("roberta").double(), tmp_path).eval()
    assert torch.allclose(tiny.logits(theirs), tiny.logits(ours), atol=1e-5)
    again = tiny.model("roberta").double()
    pl.load_peft(again, tmp_path)
    assert torch.equal(tiny.logits(again), tiny.logits(ours))


@pytest.mark.parametrize(
    "what, family, words",
    [
        ("adapter", "roberta", "no adapter as it is here; they have lora, "),
        ("qlora", "roberta", "A merged model is a plain one"),
        ([dict(method="lora", where="q"), dict(method="dora", where="v")], "roberta", "one method, not dora, lora"),
        ([dict(method="lora", where="q"), dict(method="lora", where="q")], "roberta", "one delta for each layer"),
        ("lora", "gpt2", "is a part of one module in PEFT"),
        (
            [dict(method="vera", where="q", settings=dict(r=8)), dict(method="vera", where="v", settings=dict(r=4))],
            "roberta",
            "one r for all layers, not 8 and 4",
        ),
    ],
)
def test_what_the_format_does_not_have_is_refused(what, family, words, tmp_path):
    m = tiny.model(family)
    undo = pl.attach(m, what)
    with pytest.raises(pl.PeftlabError, match=words):
        pl.save_peft(m, undo, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(bias="all"), "PEFT's bias has no counterpart"),
        (dict(lora_bias=True), "PEFT's lora_bias has no counterpart"),
        (dict(peft_type="OFT"), "PEFT's OFT as it is configured there"),
        (dict(r=4), "there and .* here"),
    ],
)
def test_what_has_no_counterpart_here_is_refused_and_nothing_changes(change, words, tmp_path):
    m = tiny.model("roberta")
    names = set(m.state_dict())
    undo = pl.attach(m, "lora")
    pl.save_peft(m, undo, tmp_path)
    undo()
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(pl.PeftlabError, match=words):
        pl.load_peft(m, tmp_path)
    assert set(m.state_dict()) == names
    with pytest.raises(pl.PeftlabError, match="holds no adapter_config.json"):
        pl.load_peft(m, tmp_path / "nowhere")
