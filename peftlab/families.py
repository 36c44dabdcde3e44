"""Where the sites lie in each model family: one table, read once at load."""

from typing import NamedTuple

SITES = ("embed", "block", "attn", "q", "k", "v", "o", "norm1", "up", "down", "norm2")  # a block is a whole layer
LEAVES = tuple(s for s in SITES if s not in ("block", "attn"))


class Family(NamedTuple):
    """kind: encoder, decoder or seq2seq. stacks: (path of the layer list, site -> children of a layer), from the base.

    embed and final are the modules before the first and after the last layer (the final norm counts as the last norm2).
    text: the module that turns token ids into hidden states; new tokens enter there.
    """

    kind: str
    stacks: tuple
    embed: tuple
    final: tuple = ()
    text: str = ""


def row(**sites):
    return {s: tuple(c.split()) for s, c in sites.items()}


BERT = row(
    attn="attention.self",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    norm1="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm2="output.LayerNorm",
)
DISTIL = row(
    attn="attention",
    q="attention.q_lin",
    k="attention.k_lin",
    v="attention.v_lin",
    o="attention.out_lin",
    norm1="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norm2="output_layer_norm",
)
GPT2 = row(
    attn="attn",
    q="attn.c_attn.q",
    k="attn.c_attn.k",
    v="attn.c_attn.v",
    o="attn.c_proj",
    norm1="ln_1",
    up="mlp.c_fc",
    down="mlp.c_proj",
    norm2="ln_2",
)
OPT = row(
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.out_proj",
    norm1="self_attn_layer_norm",
    up="fc1",
    down="fc2",
    norm2="final_layer_norm",
)
LLAMA = row(
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    norm1="input_layernorm",
    up="mlp.gate_proj mlp.up_proj",
    down="mlp.down_proj",
    norm2="post_attention_layernorm",
)
GEMMA3 = LLAMA | row(norm2="pre_feedforward_layernorm")


def t5(ff, *attentions):
    """T5 keeps its sublayers in a list: self-attention, (cross-attention,) feed-forward `ff`."""
    at = [f"layer.{i}.{a}" for i, a in enumerate(attentions)]
    each = {s: tuple(f"{a}.{s}" for a in at) for s in "qkvo"}
    return dict(
        attn=tuple(at),
        norm1=tuple(f"layer.{i}.layer_norm" for i in range(len(at))),
        norm2=(f"layer.{ff}.layer_norm",),
        up=tuple(f"layer.{ff}.DenseReluDense.{w}" for w in ("wi", "wi_0", "wi_1")),
        down=(f"layer.{ff}.DenseReluDense.wo",),
        **each,
    )


_bert = Family("encoder", (("encoder.layer", BERT),), ("embeddings.word_embeddings", "embeddings.LayerNorm"))
_llama = Family("decoder", (("layers", LLAMA),), ("embed_tokens",), ("norm",))
FAMILIES = {
    "bert": _bert,
    "roberta": _bert,
    "distilbert": Family(
        "encoder", (("transformer.layer", DISTIL),), ("embeddings.word_embeddings", "embeddings.LayerNorm")
    ),
    "gpt2": Family("decoder", (("h", GPT2),), ("wte",), ("ln_f",)),
    "opt": Family(
        "decoder", (("decoder.layers", OPT),), ("decoder.embed_tokens",), ("decoder.final_layer_norm",), "decoder"
    ),
    "t5": Family(
        "seq2seq",
        (("encoder.block", t5(1, "SelfAttention")), ("decoder.block", t5(2, "SelfAttention", "EncDecAttention"))),
        ("shared",),
        ("decoder.final_layer_norm",),
        "encoder",
    ),
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma"), _llama),
    "gemma3_text": _llama._replace(stacks=(("layers", GEMMA3),)),
}
