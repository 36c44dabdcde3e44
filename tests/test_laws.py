"""The laws of every method, one table for all: a new method adds a row to SIZE (and its documented exceptions)."""

import copy
import re

import pytest
import tiny
import torch

import peftlab as pl

MASKS = "random-mask magnitude-mask sam fish child-tuning-d lt-sft child-pruning diff-pruning mask".split()


def weights(m):
    return sum(s.weight.numel() for s in pl.sites(m, "q k v o up down"))


def places(m):
    return pl.sites(m, " ".join(s for s in "q k v o up down norm1 norm2".split() if s in pl.site_names(m)))


def chosen(m, p):
    """As many of the modules as the share says, the ones that seed 0 draws."""
    torch.manual_seed(0)
    keep = torch.randperm(len(places(m)))[: max(1, round(p * len(places(m))))]
    return sum(q.numel() for i in keep for q in places(m)[i].parameters())


def tables(m):
    """The embeddings of a hypernetwork: two tasks, the layers, and as many positions as the longest layer has."""
    layers = [s.layer for s in pl.sites(m, "o down")]
    return 2 + len({*layers}) + max(map(layers.count, layers))


def ladder(m):
    """Layers an eighth as wide, with one head (8 wide in T5 and the rotary families), and what leads there and back."""
    head, total = 8 if m.config.model_type in BIASLESS | {"qwen2"} else 4, 0
    rows = {id(p): s.site for s in places(m) if s.site in ("q", "k", "v") for p in s.parameters()}
    columns = {id(s.weight) for s in pl.sites(m, "o")}
    tables = {id(a.relative_attention_bias.weight) for a in m.modules() if hasattr(a, "relative_attention_bias")}
    narrow = lambda p: torch.Size({32: 4, 48: 6}.get(n, n) for n in p.shape).numel()
    for p in (p for b in pl.sites(m, "block") for p in b.parameters()):
        bias = p.ndim == 1
        small = {id(p) in rows: head if bias else 4 * head, id(p) in columns: 4 * head, id(p) in tables: 32}
        total += small.get(True, narrow(p))
    stacks, norm = 1 + (m.kind == "seq2seq"), narrow(pl.sites(m, "norm2")[-1].weight)
    norm *= len(list(pl.sites(m, "norm2")[-1].parameters()))
    return total + stacks * (33 * 4 + norm) + pl.n_layers(m) * (33 * 4 + 1) + 5 * 32


# the paper's count on a tiny model, 32 wide and 48 inside (T5: two attentions per decoder layer, no biases)
SIZE = {
    "full": lambda m: sum({id(p): p.numel() for p in m.parameters()}.values()) - heads(m),
    "galore": lambda m: SIZE["full"](m),
    "head": lambda m: 0,
    "lora": lambda m: sum(8 * (s.in_features + s.out_features) for s in pl.sites(m, "q v")),
    "rslora": lambda m: SIZE["lora"](m),
    "lora-plus": lambda m: SIZE["lora"](m),
    "lora-fa": lambda m: sum(8 * s.out_features for s in pl.sites(m, "q v")),
    "dora": lambda m: SIZE["lora"](m) + sum(s.out_features for s in pl.sites(m, "q v")),
    "vera": lambda m: sum(64 + s.out_features for s in pl.sites(m, "q v")),
    "pissa": lambda m: SIZE["lora"](m),
    "kernel-mix-lite": lambda m: sum(
        4 * (s.in_features + s.out_features) + 2 * (s.heads * s.in_features + s.out_features)
        for s in pl.sites(m, "q v")
    ),
    "loraprune": lambda m: SIZE["qlora"](m),
    "moelora": lambda m: SIZE["lora"](m) + (2 + 4) * 8 * len(pl.sites(m, "q v")),
    "l-lora": lambda m: SIZE["lora"](m),
    "krona": lambda m: sum(16**2 + s.out_features * s.in_features // 16**2 for s in pl.sites(m, "q v")),
    "said": lambda m: 256 + len(pl.sites(m, "q k v o up down")),
    "dylora": lambda m: SIZE["lora"](m),
    "adalora": lambda m: sum(6 * (s.in_features + s.out_features + 1) for s in pl.sites(m, "q k v o up down")),
    "increlora": lambda m: sum(8 * (s.in_features + s.out_features + 1) for s in pl.sites(m, "q k v o up down")),
    "delta-lora": lambda m: SIZE["lora"](m),
    "qlora": lambda m: sum(8 * (s.in_features + s.out_features) for s in pl.sites(m, "q k v o up down")),
    "loftq": lambda m: SIZE["qlora"](m),
    "qa-lora": lambda m: sum(8 * (s.in_features // 16 + s.out_features) for s in pl.sites(m, "q k v o up down")),
    "adapter": lambda m: (2 * 32 * 8 + 8 + 32) * len(pl.sites(m, "o down")),
    "pfeiffer": lambda m: (2 * 32 * 8 + 8 + 32) * pl.n_layers(m),
    "residual-adapter": lambda m: (2 * 32 * 8 + 8 + 32 + 2 * 32) * pl.n_layers(m),
    "parallel-adapter": lambda m: (2 * 32 * 8 + 8 + 32) * pl.n_layers(m),
    "scaled-parallel": lambda m: SIZE["parallel-adapter"](m),
    "adapterdrop": lambda m: SIZE["adapter"](m) // 2,
    "tiny-attn": lambda m: (7 * 32 + 3) * len(pl.sites(m, "o")),
    "pasta": lambda m: 4 * 32 * pl.n_layers(m),
    "hadamard": lambda m: 2 * 32 * len(pl.sites(m, "o")),
    "ia3": lambda m: sum(s.out_features for s in pl.sites(m, "k v")) + 48 * len(pl.sites(m, "down")),
    "bitfit": lambda m: sum(
        p.numel() for n, p in m.base_model.named_parameters() if n.endswith("bias") and "pooler" not in n
    ),
    **{name: lambda m: int(0.005 * weights(m) + 1e-9) for name in MASKS},
    "u-bitfit": lambda m: SIZE["bitfit"](m) // 2,
    "s-bitfit": lambda m: SIZE["bitfit"](m) // 2,
    **{name: lambda m: weights(m) for name in ("child-tuning-f", "mixout", "threshold-mask")},
    "last-layer": lambda m: sum(p.numel() for s in places(m) if s.layer == pl.n_layers(m) - 1 for p in s.parameters()),
    "selective": lambda m: chosen(m, 0.1),
    "prefix": lambda m: 2 * 8 * sum(s.out_features for s in pl.sites(m, "k")),
    "prompt": lambda m: 8 * 32,
    "adapter-fusion": lambda m: 3 * 32**2 * len(pl.sites(m, "o down")) + 2 * SIZE["adapter"](m),
    "mera": lambda m: SIZE["adapter"](m),
    "hyperformer": lambda m: 16 * (tables(m) + 3 * 16 + 16 + 2 * 32 * 8 + 8 + 32),
    "spot": lambda m: 8 * 32,
    "attempt": lambda m: 3 * 8 * 32 + 2 * 16 * 32 + 2 * 32,
    "mpt": lambda m: 8 * 32 + 8 + 32,
    "ipt": lambda m: 8,
    "prefix-mlp": lambda m: 8 * 32 + 16 * 33 + sum(2 * 17 * s.out_features for s in pl.sites(m, "k")),
    "p-tuning-v2": lambda m: 2 * SIZE["prefix"](m),
    "p-tuning": lambda m: 8 * 32 + 2 * 4 * 32 * (32 + 32 + 2) + 64 * 65 + 32 * 65,
    "warp": lambda m: 8 * 32 + 2 * 32,
    "attention-fusion": lambda m: 32,
    "coda": lambda m: 2 * (32 + 2 * 32 * 8 + 8 + 32),
    "lst": lambda m: ladder(m),
}
MOVES_AT_START = {"prefix", "prompt", "qlora", "loftq", "qa-lora"}  # the last three: as far as few bits are wrong
SOFT = {"prefix-mlp", "p-tuning-v2", "p-tuning", "warp"}
MOVES_AT_START |= SOFT
ONWARD = {"adapter-fusion", "mera", "hyperformer", "spot", "attempt", "mpt", "ipt"}  # from other tasks
MOVES_AT_START |= {"spot", "attempt", "mpt", "ipt"}
BESIDE = {"pfeiffer", "residual-adapter", "parallel-adapter", "scaled-parallel", "adapterdrop", "tiny-attn", "pasta"}
MOVES_AT_START |= {"attention-fusion", "coda", "lst"}
BIASLESS = {"t5", "llama", "qwen3", "mistral", "gemma", "gemma3_text"}
REFUSES = dict.fromkeys(("bitfit", "u-bitfit", "s-bitfit"), BIASLESS)
REFUSES["coda"] = set(tiny.CONFIGS) - {"bert", "roberta", "distilbert", "t5"}
REFUSES["warp"] = set(tiny.CONFIGS) - {"bert", "roberta", "distilbert"}
ALL = [(f, m) for f in tiny.CONFIGS for m in pl.METHODS if f not in REFUSES.get(m, ())]
SOME = [(f, m) for f, m in ALL if f in ("roberta", "gpt2", "t5", "llama")]
each = pytest.mark.parametrize("family, name", ALL)
some = pytest.mark.parametrize("family, name", SOME)


def heads(m):
    return sum(p.numel() for p in pl.head_parameters(m).values())


def state(m):
    return {n: t.clone() for n, t in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_every_method_has_a_row():
    assert set(SIZE) == set(pl.METHODS)


@each
def test_life(family, name):
    """Laws 1, 2, 3, 5, 6: identity at the start, own gradients only, it learns, honest count, undo bit for bit."""
    m = tiny.model(family)
    before, y = state(m), tiny.logits(m)
    undo = pl.attach(m, name)
    assert torch.allclose(tiny.logits(m), y, atol=1e-5) == (name not in MOVES_AT_START)
    assert pl.counts(m)["delta"] == SIZE[name](tiny.model(family))
    pl.set_head(m, "trained" if name == "head" else "frozen")
    frozen = {n: p.detach().clone() for n, p in m.named_parameters() if not p.requires_grad}
    losses = tiny.train(m, lr=pl.METHODS[name].lr)
    assert min(losses[1:]) < losses[0] - 1e-4
    for n, p in m.named_parameters():
        assert p.requires_grad or (p.grad is None and torch.equal(p, frozen[n]))
    pl.set_head(m, "trained")
    undo()
    after = state(m)
    if name == "head":
        after |= {n: before[n] for n in pl.head_parameters(m)}
    assert same(before, after) and torch.equal(tiny.logits(m), y) == (name != "head")


@each
def test_padding_never_matters(family, name):
    """A delta must respect the mask: a padded sentence gets the logits that it gets alone."""
    m = tiny.model(family)
    pl.attach(m, name)
    tiny.train(m, 3)
    b = tiny.batch(m, labels=False)
    with torch.no_grad():
        alone = m(input_ids=b["input_ids"][1:2, :5], attention_mask=b["attention_mask"][1:2, :5]).logits
        assert torch.allclose(m(**b).logits[1], alone[0], atol=1e-4)


@some
def test_copies_and_files(family, name, tmp_path):
    """Law 4: a deep copy, and a save and load into a fresh backbone, are the same function, head included."""
    m = tiny.model(family)
    undo = pl.attach(m, name)
    tiny.train(m, 5)
    y = tiny.logits(m)
    assert torch.equal(tiny.logits(copy.deepcopy(m)), y)
    pl.save(m, undo, tmp_path)
    fresh = tiny.model(family)
    pl.load(fresh, tmp_path)
    assert torch.equal(tiny.logits(fresh), y)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta.json", "delta.safetensors"]


@some
def test_merge(family, name):
    """Law 7: merged equals unmerged where the update is affine, and says so where it is not."""
    m = tiny.model(family)
    undo = pl.attach(m, name)
    tiny.train(m, 5)
    y, names = tiny.logits(m), set(m.state_dict())
    if not pl.METHODS[name].merges or (name == "hadamard" and family in BIASLESS):  # its shift needs a bias
        with pytest.raises(pl.PeftlabError, match="cannot be merged"):
            pl.merge(m, undo)
        assert set(m.state_dict()) == names and torch.equal(tiny.logits(m), y)
        return
    unmerge = pl.merge(m, undo)
    assert set(m.state_dict()) == set(tiny.model(family).state_dict())
    assert torch.allclose(tiny.logits(m), y, atol=1e-4)
    again = unmerge()
    assert torch.allclose(tiny.logits(m), y, atol=1e-6)
    again()
    assert same(state(m.base_model), state(tiny.model(family).base_model))


def test_what_merges():
    kept = BESIDE | {"adapter", "prefix", "prompt", "coda", "lst", "attention-fusion", *SOFT, *ONWARD}
    assert {n for n, m in pl.METHODS.items() if not m.merges} == kept


@some
def test_same_seed_same_run(family, name):
    """Law 8, and the seed alone decides: not what was drawn before."""

    def run(seed):
        m = tiny.model(family)
        torch.manual_seed(torch.seed())
        pl.attach(m, name, seed=seed)
        return tiny.train(m, 4)

    assert run(3) == run(3)
    if name in ("lora", "adapter", "random-mask", "prefix", "prompt"):
        assert run(3) != run(4)


@pytest.mark.parametrize("name", sorted(REFUSES))
def test_refusals(name):
    """Law 10: a family without the sites is refused in one sentence, and nothing has changed."""
    for family in REFUSES[name]:
        m = tiny.model(family)
        before = state(m)
        with pytest.raises(pl.PeftlabError, match=f"{name} {re.escape(pl.METHODS[name].cls.needs)} and .* none"):
            pl.attach(m, name)
        assert same(before, state(m))


HEADS = [
    (f, h)
    for f, h in (
        ("roberta", "mlm"),
        ("gpt2", "lm"),
        ("opt", "lm"),
        ("llama", "lm"),
        ("gemma3_text", "lm"),
        ("t5", "seq2seq"),
    )
]


@pytest.mark.parametrize("family, head", HEADS)
@pytest.mark.parametrize("name", [n for n in pl.METHODS if n != "head"])
def test_language_model_heads(family, head, name):
    """The same life on masked, causal and seq2seq language models, whose embeddings and heads are often tied."""
    if family in REFUSES.get(name, ()) or name == "warp":  # its head is its own
        return
    if name == "pasta" and head == "lm" and family != "roberta":
        return  # the only special token of these texts is the last, and no later one reads it: see test_adapters
    if name == "attempt" and head == "lm" and family != "roberta":  # it would see the words that it is to predict
        return
    m = tiny.model(family, head)
    before, y = state(m), tiny.logits(m)
    undo = pl.attach(m, name)
    assert tiny.logits(m).shape == y.shape or family == "t5"
    assert torch.allclose(tiny.logits(m), y, atol=1e-5) == (name not in MOVES_AT_START)
    losses = tiny.train(m, lr=pl.METHODS[name].lr)
    assert min(losses[1:]) < losses[0] - 1e-4
    undo()
    assert same(before, state(m)) and torch.equal(tiny.logits(m), y)
