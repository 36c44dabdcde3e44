"""The embedded backbones: one line each. A new size is a new line, a new family is one function and one line."""

from typing import NamedTuple

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ..errors import choose
from .objectives import MaskedWords, MissingSpans, NextWord
from .tokenizer import LENGTH, SPECIAL


class Backbone(NamedTuple):
    """`layers` of `width` in `heads` heads (a seq2seq has as many layers on each side), and how it is trained.

    peak: the highest learning rate. snapshots: at which shares of the steps, in percent, it is saved as well.
    half: which share of the steps, in percent, an encoder takes with half of its layers (see `stacking`).
    """

    family: str
    layers: int
    width: int
    heads: int
    steps: int
    peak: float
    snapshots: tuple = ()
    half: int = 0


BACKBONES = {
    "nano-encoder": Backbone("roberta", 2, 64, 2, 24000, 2e-3),
    "micro-encoder": Backbone("roberta", 4, 128, 4, 20000, 1e-3, (10, 30)),
    "deep-encoder": Backbone("roberta", 12, 80, 4, 12000, 7e-4),  # the norm comes after the sum: deep needs slow
    "mini-encoder": Backbone("roberta", 6, 256, 8, 21000, 5e-4, half=40),
    "nano-decoder": Backbone("gpt2", 2, 64, 2, 10000, 3e-3),
    "micro-decoder": Backbone("gpt2", 4, 128, 4, 8000, 3e-3),
    "mini-decoder": Backbone("gpt2", 6, 256, 8, 5000, 1.5e-3),
    "nano-seq2seq": Backbone("t5", 2, 64, 2, 10000, 2e-3),
    "micro-seq2seq": Backbone("t5", 4, 128, 4, 8000, 1e-3),
}


def spread(width):
    """Standard deviation of the first weights. From width 128 on, a sum over all inputs stays as large as it is."""
    return min(0.05, 0.57 / width**0.5)


def roberta(b):
    """An encoder. Its positions are counted from the padding id + 1, hence two more rows in their table."""
    return dict(
        hidden_size=b.width,
        num_hidden_layers=b.layers,
        num_attention_heads=b.heads,
        intermediate_size=4 * b.width,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=spread(b.width),
    )


def gpt2(b):
    """A decoder."""
    return dict(
        n_embd=b.width,
        n_layer=b.layers,
        n_head=b.heads,
        n_positions=LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        initializer_range=spread(b.width),
    )


def t5(b):
    """An encoder and a decoder; they share their embeddings with each other and with the output."""
    return dict(
        d_model=b.width,
        num_layers=b.layers,
        num_decoder_layers=b.layers,
        num_heads=b.heads,
        d_kv=b.width // b.heads,
        d_ff=4 * b.width,
        dropout_rate=0.0,
        decoder_start_token_id=SPECIAL.index("<pad>"),
        tie_word_embeddings=True,
    )


class Family(NamedTuple):
    """What each family is made of and learns from; `phrase` opens its card."""

    config: type
    model: type
    sizes: object
    objective: type
    phrase: str


FAMILIES = {
    "roberta": Family(RobertaConfig, RobertaForMaskedLM, roberta, MaskedWords, "An encoder (RoBERTa architecture)"),
    "gpt2": Family(GPT2Config, GPT2LMHeadModel, gpt2, NextWord, "A decoder (GPT-2 architecture)"),
    "t5": Family(T5Config, T5ForConditionalGeneration, t5, MissingSpans, "An encoder-decoder (T5 architecture)"),
}


def plan(name):
    """The line of `name` in the table. PeftlabError with the nearest names when there is none."""
    return BACKBONES[choose(name, BACKBONES, "embedded backbone")]


def build(name, tokenizer, layers=None):
    """The model `name` with random weights, or `layers` of it. No dropout: no document of the corpus comes twice."""
    b = plan(name)
    b = b._replace(layers=layers or b.layers)
    family = FAMILIES[b.family]
    ids = {f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("bos", "pad", "eos")}
    model = family.model(family.config(vocab_size=len(tokenizer), **ids, **family.sizes(b)))
    family.objective.prepare(model)
    model.set_attn_implementation("eager")  # on a CPU, fused attention takes 40 ms a layer backwards in bfloat16
    return model
