"""A backbone is a plain `transformers` model, frozen, normalised once at load, with every site labelled.

After `backbone(...)` or `prepare(...)` no method ever asks for an architecture: GPT-2's fused Conv1D are Linears, each
module at a site carries `site` and `layer`, and attention runs through the registry function of `peftlab.attention`.
"""

import contextlib
import pathlib
import re

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from . import attention, grouping, hub, paths
from .errors import PeftlabError, choose
from .families import FAMILIES, SITES

HEADS = ("classification", "regression", "lm", "seq2seq")
AUTO = {  # (head, kind of backbone) -> the transformers class that carries such a head
    "classification": dict.fromkeys(("encoder", "decoder", "seq2seq"), transformers.AutoModelForSequenceClassification),
    "regression": dict.fromkeys(("encoder", "decoder", "seq2seq"), transformers.AutoModelForSequenceClassification),
    "lm": {
        "encoder": transformers.AutoModelForMaskedLM,
        "decoder": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
    },
    "seq2seq": {"decoder": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM},
}


def embedded():
    """Names of the backbones that travel with the package."""
    return sorted(p.parent.name for p in (paths.data() / "backbones").glob("*/config.json"))


def locate(name):
    """The folder or Hub id that `name` stands for. Raises PeftlabError with the nearest embedded names."""
    if name in embedded():
        return str(paths.data() / "backbones" / name)
    folder = pathlib.Path(str(name)).expanduser()
    if str(name) and folder.is_dir():
        if not (folder / "config.json").exists():
            raise PeftlabError(f"the folder {name} holds no config.json; a backbone folder is in Hugging Face format")
        return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return str(name)
    return choose(
        name, embedded(), "backbone", "; a folder or a Hub id such as FacebookAI/roberta-base will do as well"
    )


@contextlib.contextmanager
def told(name, where):
    """Reading under this says in one sentence when the Hub, the network or a readable folder is missing."""
    there = pathlib.Path(where).is_dir() or hub.reachable(where, "model")
    try:
        with contextlib.nullcontext() if there else hub.offline():
            yield
    except (OSError, ValueError) as e:
        if there:
            raise PeftlabError(f"the backbone {name} cannot be read: {str(e).splitlines()[0]}") from e
        raise PeftlabError(
            f"{name}: no network to the Hub and no local copy; the embedded backbone 'micro-encoder' needs none"
        ) from e


def backbone(name="micro-encoder", head="classification", labels=2, seed=0, pretrained=True):
    """A frozen model in eval mode, fp32, with a fresh head (drawn from `seed`), its `tokenizer` and labelled sites.

    name: an embedded name, a local folder or a Hub id. head: classification, regression, lm or seq2seq.
    pretrained=False draws all weights afresh (the "from scratch" baseline).
    Raises PeftlabError for an unknown name, an unsupported family or a head that the family cannot carry.
    """
    choose(head, HEADS, "head")
    where = locate(name)
    with told(name, where):
        config = transformers.AutoConfig.from_pretrained(where)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    family = FAMILIES[choose(config.model_type, FAMILIES, "model family")]
    if family.kind not in AUTO[head]:
        raise PeftlabError(f"{name} is an {family.kind} and cannot carry a {head} head; take a decoder or a T5")
    auto = AUTO[head][family.kind]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    if auto is transformers.AutoModelForSequenceClassification:
        config.num_labels = 1 if head == "regression" else labels
        config.problem_type = "regression" if head == "regression" else "single_label_classification"
    with torch.random.fork_rng(devices=[]), quiet(), told(name, where):
        torch.manual_seed(seed)
        model = (
            auto.from_pretrained(where, config=config, dtype=torch.float32)
            if pretrained
            else auto.from_config(config, dtype=torch.float32)
        )
    model.head_kind, model.backbone_name = head, str(name)
    return prepare(model, tokenizer)


def prepare(model, tokenizer=None):
    """Normalise a transformers model in place: plain Linears, labelled sites, our attention, frozen but its head."""
    family = FAMILIES[choose(model.config.model_type, FAMILIES, "model family")]
    model.tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    model.kind = family.kind
    if not hasattr(model, "head_kind"):
        model.head_kind = "classification" if "SequenceClassification" in type(model).__name__ else "lm"
    if not hasattr(model, "backbone_name"):
        model.backbone_name = model.config.name_or_path or model.config.model_type
    if model.head_kind == "lm" and getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # what transformers takes as well, after a warning
    plain(model)
    attention.use(model)
    label(model, family)
    model.requires_grad_(False).eval()
    set_head(model, "trained")
    return model


class QKV(nn.Module):
    """GPT-2's fused (in, 3·out) Conv1D as three Linears; the output is the same concatenation."""

    def __init__(self, fused):
        super().__init__()
        self.q, self.k, self.v = (
            linear(W, b) for W, b in zip(fused.weight.T.chunk(3), fused.bias.chunk(3), strict=True)
        )

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def linear(W, b):  # W (out in)
    m = nn.Linear(W.shape[1], W.shape[0], device="meta")
    m.weight, m.bias = (
        nn.Parameter(W.detach().clone(memory_format=torch.contiguous_format)),
        nn.Parameter(b.detach().clone()),
    )
    return m


def plain(model):
    """Every Conv1D becomes a Linear, once, so that no method needs to know that GPT-2 stores W transposed."""
    for name in [n for n, m in model.named_modules() if isinstance(m, Conv1D)]:  # by name: m goes when it is replaced
        (parent, _, child), m = name.rpartition("."), model.get_submodule(name)
        setattr(model.get_submodule(parent), child, QKV(m) if child == "c_attn" else linear(m.weight.T, m.bias))
    return model


def label(model, family):
    """Write `site` and `layer` on each module that the family's table names, and `block_index` on each layer.

    A layer also gets `ends_in_norm`: whether its norm2 comes last, over the sum, and not before the feed-forward part.

    At q, k, v and o also `heads`: how many attention heads its outputs (o: its inputs) are divided into; and
    `shares_bias`: whether these heads have biases that other layers use too.
    """
    base, layer, c = model.base_model, 0, model.config
    width = getattr(c, "head_dim", None) or getattr(c, "d_kv", None) or c.hidden_size // c.num_attention_heads
    for path, names in family.stacks:
        for block in base.get_submodule(path):
            block.site, block.block_index = "block", layer
            block.ends_in_norm = family.kind == "encoder" or not getattr(c, "do_layer_norm_before", True)
            for site, children in names.items():
                for child in children:
                    _mark(block, child, site, layer)
            layer += 1
    for m in (m for m in base.modules() if getattr(m, "site", None) in ("q", "k", "v", "o")):
        m.heads = (m.in_features if m.site == "o" else m.out_features) // width
        m.shares_bias = hasattr(c, "relative_attention_num_buckets")
    for site, layer_of, children in (("embed", 0, family.embed), ("norm2", layer - 1, family.final)):
        for child in children:
            _mark(base, child, site, layer_of)


def _mark(root, path, site, layer):
    """Optional children (T5's gate, its cross-attention) are simply absent in some configurations."""
    try:
        m = root.get_submodule(path)
    except AttributeError:
        return
    m.site, m.layer = site, layer


def attention_of(model, m):
    """The attention that a layer is a part of, or None."""
    return next((a for a in model.modules() if getattr(a, "site", None) == "attn" and m in {*a.modules()}), None)


def n_layers(model):
    return 1 + max(m.block_index for m in model.modules() if hasattr(m, "block_index"))


def site_names(model):
    """The sites that this model has, in reading order."""
    have = {m.site for m in model.modules() if isinstance(getattr(m, "site", None), str)}
    return [s for s in SITES if s in have]


def sites(model, where="q v", layers=None):
    """The modules at the named sites and layers, in model order. PeftlabError for a site or layer that is not there."""
    names, L = where.split(), n_layers(model)
    if "model" in names:
        return [model]
    for w in names:
        choose(w, site_names(model), "site")
    layers = grouping.layers_of(model, layers) if isinstance(layers, str) else layers
    for i in layers if layers is not None else ():
        if not 0 <= i < L:
            raise PeftlabError(f"layer {i} does not exist: {model.backbone_name} has layers 0 to {L - 1}")
    keep = range(L) if layers is None else set(layers)
    return [m for m in model.modules() if getattr(m, "site", None) in names and layer_of(m) in keep]


def layer_of(m):
    """The number of the layer that a module at a site is in, or is."""
    return m.block_index if m.site == "block" else m.layer


def head_parameters(model):
    """Name -> parameter of the task head, outside the pretrained base; a language model's is pretrained: none."""
    if model.head_kind not in ("classification", "regression"):
        return {}
    base = {id(p) for p in model.base_model.parameters()}
    return {n: p for n, p in model.named_parameters() if id(p) not in base}


def set_head(model, policy):
    """trained: the head learns with the delta. frozen, shared: it does not (a shared head was trained once before)."""
    choose(policy, ("trained", "frozen", "shared"), "head policy")
    for p in head_parameters(model).values():
        p.requires_grad_(policy == "trained")


def max_tokens(model):
    """The longest sequence that the position table holds; None where positions are relative or rotary."""
    n = getattr(model.config, "max_position_embeddings", None)
    return n - model.config.pad_token_id - 1 if n and model.config.model_type == "roberta" else n


class quiet:
    """Silence transformers' notice that a head is freshly initialised: here it always is, and on purpose."""

    def __enter__(self):
        self.level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_):
        transformers.logging.set_verbosity(self.level)
