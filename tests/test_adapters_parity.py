"""AdapterHub's `adapters` as the oracle: the same numbers in its adapters and in ours give the same logits."""

import functools
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
GATE = dict(w="weight", b="bias")
FACTORS = dict(s="adapter_down.0.W_right", t="adapter_down.0.W_left", c="adapter_down.0.b") | dict(
    u="adapter_up.W_right", v="adapter_up.W_left", e="adapter_up.b"
)
RECIPES = dict.fromkeys(("prefix", "prompt", "mam", "unipelt"), dict(n=3))


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


def lora(path, key, p):
    return oracle.drawn(f"{path}.loras.a.lora_{key}", p.shape)


def gated(rule, gate):
    """As `rule`, and a gate that is a Linear to one number in theirs."""

    def of_both(path, key, p):
        return oracle.drawn(f"{gate(path)}.{GATE[key]}", (1, *p.shape))[0] if key in GATE else rule(path, key, p)

    return of_both


def kronecker(path, key, p):
    """Their matrices multiply from the right, so that their rules are ours transposed, as are the other factors."""
    if key == "A":
        stack = {"r": "roberta.", "t": "transformer."}.get(path[0], "")
        return oracle.drawn(f"{stack}shared_parameters.a.phm_rule", p.shape).mT
    axes = p.shape if p.ndim == 1 else (*p.shape, 1)
    return oracle.drawn(f"{place(path)}.adapters.a.{FACTORS[key]}", axes).view_as(p)


def before_the_norm(model, attached):
    """Where a norm comes first, a parallel adapter of theirs reads what enters it; ours, as `up`, what leaves it."""

    def keep(delta):
        return lambda norm, args: setattr(delta, "early", args[0])

    def read(delta):
        return lambda up, args: setattr(delta, "x", delta.early)

    blocks = [b for b in model.modules() if hasattr(b, "block_index")]
    for delta, down in (pair for pair in attached.placed if "parallel" in method(attached, pair[0])):
        block = next(b for b in blocks if down in {*b.modules()})
        inside = {m.site: m for m in block.modules() if hasattr(m, "site")}
        inside["norm2"].register_forward_pre_hook(keep(delta))
        inside["up"].register_forward_pre_hook(read(delta))


RULES = {"prefix": prefix, "ia3": gain, "prompt": prompt, "adapter-fusion": fused, "compacter": kronecker} | {
    "gated-adapter": gated(bottleneck, lambda path: f"{place(path)}.adapters.a.gate"),
    "gated-prefix": gated(prefix, lambda path: f"{path}.prefix_tuning.prefix_gates.a"),
    "gated-lora": gated(lora, lambda path: f"{path}.loras.a.gate"),
}


def method(attached, delta):
    return attached.recipe[delta.row]["method"]


@functools.cache
@torch.no_grad()
def ours(family, name):
    """Our logits and how many parameters are attached, with those that theirs has on top of ours.

    An AdapterFusion of theirs has biases for queries and keys: the first are drawn as 0, the second move all scores
    of a query alike.
    """
    m = pl.prepare(oracle.backbone(family, transformers))
    if name == "none":
        return oracle.told(m(**oracle.batch(family)).logits), 0
    paths = {id(c): n for n, c in m.named_modules()}
    where = "k v" if name == "ia3" and family != "t5" else None
    undo = pl.attach(m, pl.recipe(name, where, **RECIPES.get(name, {})))
    if (family, name) in oracle.UNPLACED:
        oracle.unplaced(m)
    if family != "roberta":
        before_the_norm(m, undo)
    for delta, module in undo.placed:
        for key, p in delta.named_parameters():
            p.copy_(RULES.get(method(undo, delta), bottleneck)(paths[id(module)], key, p))
    m.double()
    size = sum(p.numel() for d in undo.deltas for p in d.parameters())
    spare = sum(2 * 32 for d in undo.deltas if method(undo, d) == "adapter-fusion")
    return oracle.told(m(**oracle.batch(family, name)).logits), size + spare


@each
def test_the_same_numbers_give_the_same_logits(family, name):
    there = torch.tensor(KEPT["logits"][family][name])
    assert torch.allclose(torch.tensor(ours(family, name)[0]), there, atol=1e-5)
    bare = torch.tensor(KEPT["logits"][family]["none"])[:: 2 if name == "unipelt" else 1]
    assert name == "none" or not torch.allclose(there, bare, atol=1e-2), "the adapter does something"


@each
def test_both_have_the_same_number_of_parameters(family, name):
    assert ours(family, name)[1] == KEPT["sizes"][family][name]


@pytest.mark.skipif(not PYTHON, reason="PEFTLAB_ADAPTERS does not name a Python that has AdapterHub's adapters 1.3.0")
def test_what_is_kept_is_what_they_say_today():
    made = subprocess.run([PYTHON, oracle.__file__], capture_output=True, text=True, check=True)
    fresh = json.loads(made.stdout)
    assert all(fresh[what] == KEPT[what] for what in ("versions", "command", "sizes"))
    for family, cases in KEPT["logits"].items():
        assert cases.keys() == fresh["logits"][family].keys()
        for name, logits in cases.items():
            assert torch.allclose(torch.tensor(fresh["logits"][family][name]), torch.tensor(logits), atol=1e-6), name
