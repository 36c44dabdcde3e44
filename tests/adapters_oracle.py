"""Logits of AdapterHub's `adapters`, an oracle for ours; it needs an older transformers, so a Python of its own:

    python -m venv env && env/bin/pip install torch==2.13.0 adapters==1.3.0
    env/bin/python tests/adapters_oracle.py > tests/adapters_parity.json

Every tensor, of the backbone as of the adapters, follows from its name and shape alone (`drawn`); so both sides have
the same numbers without a file of weights.
"""

import json
import re
import warnings
import zlib

import numpy as np
import torch

_wide = dict(vocab_size=60, pad_token_id=1, bos_token_id=0, eos_token_id=2)
FAMILIES = {  # class of the model, of its config, settings
    "roberta": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        _wide
        | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
        | dict(max_position_embeddings=40),
    ),
    "gpt2": (
        "GPT2ForSequenceClassification",
        "GPT2Config",
        _wide | dict(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=40),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        dict(vocab_size=60, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, d_model=32, num_layers=2)
        | dict(num_heads=4, d_kv=8, d_ff=48),
    ),
}
BN = dict(reduction_factor=4)
HOULSBY = BN | dict(non_linearity="relu", cross_adapter=True)
CASES = {  # ours -> config of theirs, settings, families that they offer it for
    "none": (None, {}, ("roberta", "gpt2", "t5")),
    "adapter": ("DoubleSeqBnConfig", HOULSBY, ("roberta", "gpt2", "t5")),
    "pfeiffer": ("SeqBnConfig", BN, ("roberta", "gpt2", "t5")),
    "parallel-adapter": ("ParBnConfig", BN | dict(scaling=1.0), ("roberta", "gpt2", "t5")),
    "scaled-parallel": ("ParBnConfig", BN | dict(scaling=4.0), ("roberta", "gpt2", "t5")),
    "prefix": ("PrefixTuningConfig", dict(flat=True, prefix_length=3), ("roberta", "gpt2", "t5")),
    "prompt": ("PromptTuningConfig", dict(prompt_length=3, combine="prefix_after_bos"), ("roberta",)),
    "ia3": ("IA3Config", {}, ("roberta", "gpt2", "t5")),
    "adapter-fusion": ("DoubleSeqBnConfig", HOULSBY, ("roberta", "gpt2", "t5")),
}
UNPLACED = {("roberta", "prompt"), ("t5", "prefix")}


def drawn(name, shape):
    """The numbers of a tensor, from its name: gains near 1, a fusion's bias of the query (which ours lacks) 0."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("lora_B") or len(shape) == 1 and name.endswith("weight"):
        return torch.tensor(1 + 0.2 * noise)
    return torch.tensor((0.0 if name.endswith("a,b.query.bias") else 0.3 if len(shape) > 1 else 0.1) * noise)


@torch.no_grad()
def fill(model):
    for name, p in model.named_parameters():
        p.copy_(drawn(name, p.shape))
    model.tie_weights()
    return model


def settings_for(family, name):
    """(IA)³ only where it is the same: theirs scales what enters the activation, ours what leaves it (one for relu)."""
    return CASES[name][1] | (dict(intermediate_lora=False) if name == "ia3" and family != "t5" else {})


@torch.no_grad()
def unplaced(model):
    """No positions, where the two conventions differ in them alone.

    RoBERTa's prompt: theirs stands behind the embedding layer; ours in front, where it gets positions too and shifts
    those of the text. T5's prefix: theirs takes up positions and shifts those of the text, ours is at distance 0.
    """
    tables = ("position_embeddings.weight", "token_type_embeddings.weight", "relative_attention_bias.weight")
    for name, p in model.named_parameters():
        if name.endswith(tables):
            p.zero_()


def backbone(family, transformers, **more):
    model, config, settings = FAMILIES[family]
    return fill(getattr(transformers, model)(getattr(transformers, config)(**settings, **more)).double().eval())


def batch(family):
    """Three sentences of seven tokens, the second padded; a T5's decoder reads the first two words of each."""
    ids = torch.from_numpy(np.random.RandomState(1).randint(3, 60, (3, 7)))
    ids[:, 0], ids[:, -1], mask = 0, 2, torch.ones_like(ids)
    ids[1, 4], ids[1, 5:], mask[1, 5:] = 2, 1, 0
    more = dict(decoder_input_ids=ids[:, :2]) if family == "t5" else {}
    return dict(input_ids=ids, attention_mask=mask) | more


def told(logits):
    """At most four numbers for each sentence."""
    few = logits[:, -1, :4] if logits.ndim == 3 else logits
    return [[round(x, 9) for x in row] for row in few.tolist()]


@torch.no_grad()
def answer(family, name):
    """What `adapters` says, with eager attention: with sdpa's masks and padding it does not hear GPT-2's prefix at all,
    and with a prompt the first tokens of RoBERTa attend to padding."""
    import adapters
    import transformers

    kind, model = CASES[name][0], backbone(family, transformers, attn_implementation="eager")
    if kind is None:
        return told(model(**batch(family)).logits)
    adapters.init(model)
    before = {n for n, _ in model.named_parameters()}
    names = ("a", "b") if name == "adapter-fusion" else ("a",)
    for n in names:
        model.add_adapter(n, config=getattr(adapters, kind)(**settings_for(family, name)))
    if len(names) > 1:
        model.add_adapter_fusion([*names])
        model.set_active_adapters(adapters.composition.Fuse(*names))
    else:
        model.set_active_adapters("a")
    model.double().eval()
    if (family, name) in UNPLACED:
        unplaced(model)
    for n, p in model.named_parameters():
        if n not in before:
            p.copy_(drawn(n, p.shape))
            if name == "prompt":
                p.copy_(model.roberta.embeddings.LayerNorm(p))
    return told(model(**batch(family)).logits)


def main():
    import adapters
    import transformers

    warnings.simplefilter("ignore")
    versions = dict(adapters=adapters.__version__, transformers=transformers.__version__, torch=torch.__version__)
    found = {f: {n: answer(f, n) for n, (_, _, families) in CASES.items() if f in families} for f in FAMILIES}
    made = json.dumps(dict(command="python tests/adapters_oracle.py", versions=versions, logits=found))
    print(re.sub(r'(?<=[]}],) (?=")|(?<=: ){(?=")', lambda at: at[0].strip() + "\n", made))  # a line for each case


if __name__ == "__main__":
    main()
