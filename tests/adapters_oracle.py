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
SCALED, PREFIX = BN | dict(scaling=4.0), dict(flat=True, prefix_length=3)
CASES = {  # ours -> config of theirs, settings, families that they offer it for
    "none": (None, {}, ("roberta", "gpt2", "t5")),
    "adapter": ("DoubleSeqBnConfig", HOULSBY, ("roberta", "gpt2", "t5")),
    "pfeiffer": ("SeqBnConfig", BN, ("roberta", "gpt2", "t5")),
    "parallel-adapter": ("ParBnConfig", BN | dict(scaling=1.0), ("roberta", "gpt2", "t5")),
    "scaled-parallel": ("ParBnConfig", SCALED, ("roberta", "gpt2", "t5")),
    "prefix": ("PrefixTuningConfig", PREFIX, ("roberta", "gpt2", "t5")),
    "prompt": ("PromptTuningConfig", dict(prompt_length=3, combine="prefix_after_bos"), ("roberta",)),
    "ia3": ("IA3Config", {}, ("roberta", "gpt2", "t5")),
    "adapter-fusion": ("DoubleSeqBnConfig", HOULSBY, ("roberta", "gpt2", "t5")),
    "mam": (
        "MAMConfig",
        dict(prefix_tuning=("PrefixTuningConfig", PREFIX), adapter=("ParBnConfig", SCALED)),
        ("roberta", "gpt2", "t5"),
    ),
    "unipelt": (
        "UniPELTConfig",
        dict(prefix_tuning=("PrefixTuningConfig", PREFIX), adapter=("SeqBnConfig", BN), lora=("LoRAConfig", dict(r=8))),
        ("roberta", "t5"),  # ours refuses GPT-2: the mean of a gate would show each token those that follow
    ),
    "compacter": ("CompacterConfig", HOULSBY, ("roberta", "gpt2", "t5")),
    "compacter++": (  # their own is where Pfeiffer's adapter is; ours, as its authors', where Houlsby's second one is
        "CompacterPlusPlusConfig",
        BN | dict(non_linearity="relu", original_ln_before=False),
        ("roberta", "gpt2", "t5"),
    ),
}
UNPLACED = {("roberta", "prompt"), ("t5", "prefix"), ("t5", "mam"), ("t5", "unipelt")}


def drawn(name, shape):
    """The numbers of a tensor, from its name: gains near 1, a fusion's bias of the query (which ours lacks) 0, factors
    of products (three axes) large, as there are three in each."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("lora_B") and shape[-1] == 1 or len(shape) == 1 and name.endswith("weight"):
        return torch.tensor(1 + 0.2 * noise)
    return torch.tensor((0.0 if name.endswith("a,b.query.bias") else (0.1, 0.3, 0.5)[len(shape) - 1]) * noise)


@torch.no_grad()
def fill(model):
    for name, p in model.named_parameters():
        p.copy_(drawn(name, p.shape))
    model.tie_weights()
    return model


def settings_for(family, name):
    """(IA)³ only where it is the same: theirs scales what enters the activation, ours what leaves it (one for relu).
    UniPELT in a T5's encoder only, where each token may see all others."""
    settings = CASES[name][1]
    if (family, name) == ("t5", "unipelt"):
        return {part: (kind, own | dict(leave_out=[2, 3])) for part, (kind, own) in settings.items()}
    return settings | (dict(intermediate_lora=False) if name == "ia3" and family != "t5" else {})


def config(kind, settings):
    """One of theirs; a union is made of others."""
    import adapters

    return getattr(adapters, kind)(**{k: config(*v) if isinstance(v, tuple) else v for k, v in settings.items()})


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


def batch(family, name="none"):
    """Three sentences of seven tokens, the second padded; a T5's decoder reads the first two words of each.

    UniPELT gets the other two only: the gates of `adapters` are means over the padding as well, ours over the text.
    """
    ids = torch.from_numpy(np.random.RandomState(1).randint(3, 60, (3, 7)))
    ids[:, 0], ids[:, -1], mask = 0, 2, torch.ones_like(ids)
    ids[1, 4], ids[1, 5:], mask[1, 5:] = 2, 1, 0
    more = dict(decoder_input_ids=ids[:, :2]) if family == "t5" else {}
    whole = slice(None, None, 2 if name == "unipelt" else 1)
    return {k: t[whole] for k, t in (dict(input_ids=ids, attention_mask=mask) | more).items()}


def told(logits):
    """At most four numbers for each sentence."""
    few = logits[:, -1, :4] if logits.ndim == 3 else logits
    return [[round(x, 9) for x in row] for row in few.tolist()]


@torch.no_grad()
def answer(family, name):
    """What `adapters` says and how many parameters it adds.

    With eager attention: with sdpa's masks and padding it does not hear GPT-2's prefix at all, and with a prompt the
    first tokens of RoBERTa attend to padding.
    """
    import adapters
    import transformers

    kind, model = CASES[name][0], backbone(family, transformers, attn_implementation="eager")
    if kind is None:
        return told(model(**batch(family)).logits), 0
    adapters.init(model)
    before = {n for n, _ in model.named_parameters()}
    names = ("a", "b") if name == "adapter-fusion" else ("a",)
    for n in names:
        model.add_adapter(n, config=config(kind, settings_for(family, name)))
    if len(names) > 1:
        model.add_adapter_fusion([*names])
        model.set_active_adapters(adapters.composition.Fuse(*names))
    else:
        model.set_active_adapters("a")
    model.double().eval()
    if (family, name) in UNPLACED:
        unplaced(model)
    added = {n: p for n, p in model.named_parameters() if n not in before}
    for n, p in added.items():
        p.copy_(drawn(n, p.shape))
        if name == "prompt":
            p.copy_(model.roberta.embeddings.LayerNorm(p))
    return told(model(**batch(family, name)).logits), sum(p.numel() for p in added.values())


def main():
    import adapters
    import transformers

    warnings.simplefilter("ignore")
    versions = dict(adapters=adapters.__version__, transformers=transformers.__version__, torch=torch.__version__)
    found = {f: {n: answer(f, n) for n, (_, _, families) in CASES.items() if f in families} for f in FAMILIES}
    logits, sizes = ({f: {n: one[i] for n, one in cases.items()} for f, cases in found.items()} for i in range(2))
    made = json.dumps(dict(command="python tests/adapters_oracle.py", versions=versions, sizes=sizes, logits=logits))
    print(re.sub(r'(?<=[]}],) (?=")|(?<=: ){(?=")', lambda at: at[0].strip() + "\n", made))  # a line for each case


if __name__ == "__main__":
    main()
