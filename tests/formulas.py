"""How many numbers each method trains on a tiny model, by the formula of its paper: a row for every method."""

import functools

import torch

import peftlab as pl

BIASLESS = {"t5", "llama", "qwen3", "mistral", "gemma", "gemma3_text"}
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


def spindle(m):
    """Two layers in a stack are the two middle groups of S4: adapter and prefix, and in the second biases too."""
    upper = [i for i in range(pl.n_layers(m)) if i % 2]
    return SIZE["adapter"](m) + SIZE["prefix"](m) + sum(
        s.out_features for s in pl.sites(m, "q k v o up down", layers=upper)
    )


def candidates(m, name):
    """Numbers of all candidates of S³Delta, or of one kind of them; a quarter of them is kept."""
    kinds = {
        "gate-lora": sum(4 * (s.in_features + s.out_features) for s in pl.sites(m, "q k v o up down")),
        "gate-adapter": (2 * 32 * 4 + 4 + 32) * len(pl.sites(m, "o down")),
        "gate-bias": sum(s.out_features for s in pl.sites(m, "q k v o up down")),
        "gate-norm": 32 * len(pl.sites(m, "norm1 norm2")),
    }
    return int(0.25 * kinds.get(name, sum(kinds.values())))


GATES = "gate-lora gate-adapter gate-bias gate-norm s3delta".split()


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
    "loha": lambda m: sum(2 * 4 * (s.out_features + s.in_features) for s in pl.sites(m, "q v")),
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
    "mam": lambda m: SIZE["prefix"](m) + SIZE["scaled-parallel"](m),
    "compacter": lambda m: 4**3 + (2 * (8 + 32) + 8 + 32) * len(pl.sites(m, "o down")),
    "compacter++": lambda m: 4**3 + 120 * len(pl.sites(m, "down")),
    "gated-adapter": lambda m: (2 * 32 * 8 + 8 + 32 + 33) * 2,  # of a T5 the encoder's two layers
    "gated-lora": lambda m: 4 * (2 * 32 * 8 + 33),
    "gated-prefix": lambda m: 2 * (2 * 8 * 32 + 33),
    "unipelt": lambda m: sum(SIZE[f"gated-{part}"](m) for part in ("adapter", "prefix", "lora")),
    "added-bias": lambda m: sum(s.out_features for s in pl.sites(m, "q k v o up down")),
    "s4": lambda m: spindle(m),
    "sparse-adapter": lambda m: (16 * 32 + 16 + 32) * len(pl.sites(m, "o down")),
    "pruned-prefix": lambda m: SIZE["prefix"](m) // 2,
    "pruned-parallel": lambda m: SIZE["parallel-adapter"](m) // 2,
    "u-mam": lambda m: SIZE["mam"](m) // 2,
    "s-mam": lambda m: SIZE["mam"](m) // 2,
    "adamix": lambda m: 4 * (2 * 32 * 8 + 8 + 32) * len(pl.sites(m, "down")),
    "adamix-lora": lambda m: 4 * SIZE["lora"](m),
    "propetl-adapter": lambda m: 2 * 32 * 8 * (1 + pl.n_layers(m)) + 8 + 32,
    "propetl-prefix": lambda m: SIZE["prefix"](m) + 2 * 8 * pl.sites(m, "k")[0].out_features,
    "propetl-lora": lambda m: SIZE["lora"](m) + sum(8 * sum(s) for s in {s.weight.shape for s in pl.sites(m, "q v")}),
    **{name: functools.partial(candidates, name=name) for name in GATES},
    "autopeft": lambda m: SIZE["pfeiffer"](m) + SIZE["parallel-adapter"](m) + SIZE["prefix"](m),
}


def heads(m):
    return sum(p.numel() for p in pl.head_parameters(m).values())
