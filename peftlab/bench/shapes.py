"""Backbones of random weights, by name, and batches for them.

Without dropout, so that both sides must give the same loss. The vocabulary is small: a table of 50,000 words is the
same for every method and would only hide them.
"""

import math
from typing import NamedTuple

import torch

from ..errors import choose

VOCABULARY = 2048


class Shape(NamedTuple):
    """One backbone. where: the sites at which methods with a choice are put. GPT-2's q, k and v are one module for
    others, which is another function; its o and down are modules for everybody."""

    name: str
    family: str
    layers: int
    width: int
    heads: int
    where: str = "q v"

    def model(self, seed=0):
        """A plain transformers model with a classifier (RoBERTa) or a language model's head, fp32, on the CPU."""
        import transformers

        kind, config, settings = self.classes()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        if self.family == "gpt2":
            model.loss_type = "ForCausalLM"  # what transformers takes as well, after a warning
        return model

    def classes(self):
        """Names of the model's class and of its configuration's, and the settings of that."""
        kind, config, settings = FAMILIES[self.family]
        return kind, config, dict(vocab_size=VOCABULARY) | settings(self)

    def thin(self):
        """A narrow twin, whose modules have the same names."""
        return self._replace(width=32, heads=2)

    def batch(self, rows, tokens, device="cpu"):
        """Inputs and labels, full rows without padding (rows tokens).

        The first token of a decoder has no label: with a prompt in front, one side would have to guess it as well.
        """
        ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)
        labels = ids.clone()
        labels[:, 0] = -100
        labels = torch.arange(rows, device=device) % 2 if self.family == "roberta" else labels
        return dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


def roberta(s):
    sizes = dict(hidden_size=s.width, num_hidden_layers=s.layers, num_attention_heads=s.heads)
    more = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=514)
    return sizes | more | dict(intermediate_size=4 * s.width)


def gpt2(s):
    sizes = dict(n_embd=s.width, n_layer=s.layers, n_head=s.heads, n_positions=1024)
    more = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return sizes | more | dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)


def t5(s):
    sizes = dict(d_model=s.width, num_layers=s.layers, num_heads=s.heads, d_kv=s.width // s.heads, d_ff=4 * s.width)
    return sizes | dict(dropout_rate=0.0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1)


FAMILIES = dict(  # the classes of transformers, and the settings of a configuration
    roberta=("RobertaForSequenceClassification", "RobertaConfig", roberta),
    gpt2=("GPT2LMHeadModel", "GPT2Config", gpt2),
    t5=("T5ForConditionalGeneration", "T5Config", t5),
)
SHAPES = {
    s.name: s
    for s in (
        Shape("roberta-6x384", "roberta", 6, 384, 12),
        Shape("roberta-12x768", "roberta", 12, 768, 12),
        Shape("gpt2-12x768", "gpt2", 12, 768, 12, "o down"),
        Shape("t5-6x512", "t5", 6, 512, 8),
        Shape("roberta-tiny", "roberta", 2, 64, 2),
        Shape("gpt2-tiny", "gpt2", 2, 64, 2, "o down"),
        Shape("t5-tiny", "t5", 2, 64, 2),
    )
}
SIZES = dict(  # what is measured unless the command says otherwise
    small=dict(shapes=("roberta-tiny", "gpt2-tiny", "t5-tiny"), batch=2, tokens=16, repeats=2, builds=2),
    full=dict(
        shapes=("roberta-6x384", "roberta-12x768", "gpt2-12x768", "t5-6x512"), batch=4, tokens=128, repeats=5, builds=4
    ),
)


def shape(name):
    """The Shape of that name. PeftlabError with the nearest names."""
    return SHAPES[choose(name, SHAPES, "shape")]


def parts(n):
    """A divisor of n near its root, at most 16: the size of a Kronecker factor."""
    return math.gcd(n, 16) if n >= 256 else math.gcd(n, 4)
