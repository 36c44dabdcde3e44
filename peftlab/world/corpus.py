"""The corpus for masked language modelling: documents without end, each block of them fixed by its seed and number."""
import random

import torch

from .grammar import realise, sample_meaning

HELD_OUT = -1                           # the number of the block which no training step ever sees


def documents(n, seed=0, block=0):
    """`n` documents; the same seed and block give the same bytes."""
    rng = random.Random(f"{seed}/{block}")
    return [realise(sample_meaning(rng)) for _ in range(n)]


def batches(tokenizer, size, seed=0, block=0, group=16):
    """`group` batches of `size` documents, of like length inside a batch: dicts of input_ids, attention_mask (b t)."""
    ids = tokenizer(documents(size * group, seed, block))["input_ids"]
    ids.sort(key=len)                   # short with short: less padding
    chunks = [ids[i:i + size] for i in range(0, len(ids), size)]
    random.Random(f"{seed}/{block}/order").shuffle(chunks)
    return [tokenizer.pad({"input_ids": chunk}, return_tensors="pt") for chunk in chunks]


def masked(batch, tokenizer, generator, share=0.2):
    """input_ids and labels (b t) of BERT's masking: of the chosen `share`, 80 % masked, 10 % random, 10 % kept."""
    ids = batch["input_ids"]
    chosen = (torch.rand(ids.shape, generator=generator) < share) & (ids > tokenizer.mask_token_id)
    draw = torch.rand(ids.shape, generator=generator)
    other = torch.randint(tokenizer.mask_token_id + 1, len(tokenizer), ids.shape, generator=generator)
    seen = torch.where(chosen & (draw < 0.8), tokenizer.mask_token_id, ids)
    seen = torch.where(chosen & (draw >= 0.9), other, seen)
    return seen, torch.where(chosen, ids, -100)
