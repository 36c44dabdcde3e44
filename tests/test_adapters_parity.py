"""AdapterHub's `adapters` as the oracle: the same numbers in its adapters and in ours give the same logits."""

import json
import os
import pathlib
import re
import subprocess

import adapters_oracle as oracle
import pytest
import torch
import transformers

import peftlab as pl

KEPT = json.loads((pathlib.Path(__file__).parent / "adapters_parity.json").read_text(encoding="utf-8"))
PYTHON = os.environ.get("PEFTLAB_ADAPTERS")
PAIRS = [(f, n) for n, (_, _, families) in oracle.CASES.items() for f in families]
each = pytest.mark.parametrize("family, name", PAIRS)
PLACES = (  # where a module of the backbone is -> where its adapters are in theirs
    (r"(.*output)\.dense", r"\1"),
    (r"(.*\.h\.\d+)\.attn\.c_proj", r"\1.attention_adapters"),
    (r"(.*\.h\.\d+)(\.mlp\.c_proj)?", r"\1.output_adapters"),
    (r"(.*block.*layer\.\d+)\.\w+\.w?o", r"\1"),
    (r"(encoder\.block\.\d+)", r"\1.layer.1"),
    (r"(decoder\.block\.\d+)", r"\1.layer.2"),
    (r"(roberta.*layer\.\d+)", r"\1.output"),
)
BOTTLENECK = dict(D="adapter_down.0.weight", c="adapter_down.0.bias", U="adapter_up.weight", e="adapter_up.bias")
FUSION = dict(Q="query", K="key", V="value")
RECIPES = dict(prefix=dict(n=3), prompt=dict(n=3))


def place(path):
    return next(re.sub(f"^{a}$", b, path) for a, b in PLACES if re.fullmatch(a, path))


def bottleneck(path, key, p):
    return oracle.drawn(f"{place(path)}.adapters.a.{BOTTLENECK[key]}", p.shape)


def fused(path, key, p):
    if key in FUSION:
        return oracle.drawn(f"{place(path)}.adapter_fusion_layer.a,b.{FUSION[key]}.weight", p.shape)
    return torch.stack([oracle.drawn(f"{place(path)}.adapters.{n}.{BOTTLENECK[key]}", p.shape[1:]) for n in "ab"])


def prefix(path, key, p):
    """One tensor (n 2·L h·d) has the keys and the values of all layers of a stack, in turn."""
    first = {"r": "roberta.encoder.layer.0.attention.self", "t": "transformer.h.0.attn"}.get(
        path[0], "encoder.block.0.layer.0.SelfAttention"
    )
    kind = "cross" if "EncDec" in path else "encoder" if path.startswith("encoder") else "self"
    whole = oracle.drawn(f"{first}.prefix_tuning.pool.prefix_tunings.a.{kind}_prefix.control_trans", (3 * 4 * 32,))
    return whole.view(3, 4, 32)[:, 2 * int(re.search(r"\d+", path)[0]) + (key == "P_v")]


def gain(path, key, p):
    if m := re.fullmatch(r"(.*c_attn)\.([kv])", path):
        return oracle.drawn(f"{m[1]}.loras.a.lora_B", (64, 1))[:32, 0] if m[2] == "k" else \
            oracle.drawn(f"{m[1]}.loras.a.lora_B", (64, 1))[32:, 0]  # fmt: skip
    return oracle.drawn(f"{re.sub('wo$', 'wi', path)}.loras.a.lora_B", (len(p), 1))[:, 0]


def prompt(path, key, p):
    return oracle.drawn("roberta.prompt_tuning.prompt_tunings.a.prompt_embedding.weight", p.shape)


def before_the_norm(model, attached):
    """Where a norm comes first, a parallel adapter of theirs reads what enters it; ours, as `up`, what leaves it."""

    def keep(delta):
        return lambda norm, args: setattr(delta, "early", args[0])

    def read(delta):
        return lambda up, args: setattr(delta, "x", delta.early)

    blocks = [b for b in model.modules() if hasattr(b, "block_index")]
    for delta, down in attached.placed:
        block = next(b for b in blocks if down in {*b.modules()})
        inside = {m.site: m for m in block.modules() if hasattr(m, "site")}
        inside["norm2"].register_forward_pre_hook(keep(delta))
        inside["up"].register_forward_pre_hook(read(delta))


RULES = {"prefix": prefix, "ia3": gain, "prompt": prompt, "adapter-fusion": fused}


@torch.no_grad()
def ours(family, name):
    m = pl.prepare(oracle.backbone(family, transformers))
    if name == "none":
        return oracle.told(m(**oracle.batch(family)).logits)
    paths = {id(c): n for n, c in m.named_modules()}
    where = "k v" if name == "ia3" and family != "t5" else None
    undo = pl.attach(m, pl.recipe(name, where, **RECIPES.get(name, {})))
    if (family, name) in oracle.UNPLACED:
        oracle.unplaced(m)
    if "parallel" in name and family != "roberta":
        before_the_norm(m, undo)
    for delta, module in undo.placed:
        for key, p in delta.named_parameters():
            p.copy_(RULES.get(name, bottleneck)(paths[id(module)], key, p))
    m.double()
    return oracle.told(m(**oracle.batch(family)).logits)


@each
def test_the_same_numbers_give_the_same_logits(family, name):
    there = torch.tensor(KEPT["logits"][family][name])
    assert torch.allclose(torch.tensor(ours(family, name)), there, atol=1e-5)
    bare = torch.tensor(KEPT["logits"][family]["none"])
    assert name == "none" or not torch.allclose(there, bare, atol=1e-2), "the adapter does something"


@pytest.mark.skipif(not PYTHON, reason="PEFTLAB_ADAPTERS does not name a Python that has AdapterHub's adapters 1.3.0")
def test_what_is_kept_is_what_they_say_today():
    made = subprocess.run([PYTHON, oracle.__file__], capture_output=True, text=True, check=True)
    fresh = json.loads(made.stdout)
    assert fresh["versions"] == KEPT["versions"] and fresh["command"] == KEPT["command"]
    for family, cases in KEPT["logits"].items():
        assert cases.keys() == fresh["logits"][family].keys()
        for name, logits in cases.items():
            assert torch.allclose(torch.tensor(fresh["logits"][family][name]), torch.tensor(logits), atol=1e-6), name
