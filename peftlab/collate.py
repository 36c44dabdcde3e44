"""From rows of text to tensors: tokenised batch by batch, padded to the longest row of the batch."""

import torch

from .errors import PeftlabError


def batches(task, tokenizer, split, batch, seed=None):
    """Dicts of input_ids (b t), attention_mask (b t), labels; see Task.batches."""
    rows = task.data[split]
    columns = {c: rows[c][:] for c in rows.column_names}
    make = COLLATE[task.kind]
    if seed is None:
        order = by_length(columns["text"])
        for i in range(0, len(order), batch):
            yield make(task, tokenizer, pick(columns, order[i : i + batch]))
        return
    if len(rows) == 0:
        raise PeftlabError(f"{task.name}: the split {split} is empty")
    # Not by length: that would be another training. The same batch in two halves of like length is not, but on nano and
    # micro its calls cost more than the padding that it saves.
    generator = torch.Generator().manual_seed(seed)
    queue = []
    while True:  # a batch may span two epochs, so all batches are equally large
        while len(queue) < batch:
            queue += torch.randperm(len(rows), generator=generator).tolist()
        taken, queue = queue[:batch], queue[batch:]
        yield make(task, tokenizer, pick(columns, taken))


def by_length(texts):
    """The order in which each row is taken once: so that little is padded."""
    return sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))


def pick(columns, order):
    return {name: [values[i] for i in order] for name, values in columns.items()}


def encode(task, tokenizer, rows):
    limit = min(task.max_length, tokenizer.model_max_length)
    out = dict(
        tokenizer(rows["text"], rows.get("text2"), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    )
    if "token_type_ids" in out and not out["token_type_ids"].any():
        del out["token_type_ids"]  # all zeros is every model's default, and some models take none
    return out


def classification(task, tokenizer, rows):
    return encode(task, tokenizer, rows) | dict(labels=torch.tensor(rows["label"], dtype=torch.long))


def regression(task, tokenizer, rows):
    return encode(task, tokenizer, rows) | dict(labels=torch.tensor(rows["label"], dtype=torch.float))


def seq2seq(task, tokenizer, rows):
    limit = min(task.max_length, tokenizer.model_max_length)
    targets = tokenizer(text_target=rows["target"], truncation=True, max_length=limit)["input_ids"]
    return encode(task, tokenizer, rows) | dict(labels=pad([ended(t, tokenizer) for t in targets], -100))


def lm(task, tokenizer, rows):
    """Text, then target and end token; the loss is on the target (on the whole text when there is none)."""
    limit = min(task.max_length, tokenizer.model_max_length)
    prompts = tokenizer(rows["text"], rows.get("text2"), truncation=True, max_length=limit)["input_ids"]
    if "target" not in rows:
        ids = [ended(p, tokenizer) for p in prompts]
        labels = ids
    else:
        targets = tokenizer(
            [" " + t for t in rows["target"]], add_special_tokens=False, truncation=True, max_length=limit
        )["input_ids"]
        targets = [ended(t, tokenizer) for t in targets]
        ids = [p + t for p, t in zip(prompts, targets, strict=True)]
        labels = [[-100] * len(p) + t for p, t in zip(prompts, targets, strict=True)]
    return dict(
        input_ids=pad(ids, tokenizer.pad_token_id),
        attention_mask=pad([[1] * len(i) for i in ids], 0),
        labels=pad(labels, -100),
    )


def ended(ids, tokenizer):
    """The ids with the tokenizer's end token last (some tokenizers add it, some do not)."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else ids + [end]


def pad(rows, value):
    width = max(map(len, rows))
    return torch.tensor([r + [value] * (width - len(r)) for r in rows])


COLLATE = dict(classification=classification, regression=regression, lm=lm, seq2seq=seq2seq)
