"""Scoring: what a model predicts on a split, and the task's metric of it."""

import contextlib
import math

import torch
from torch.nn import functional as F

from .collate import by_length
from .metrics import TEXTS
from .training import memory


@torch.no_grad()
def evaluate(model, task, split, batch=128, rows=None, accelerator=None):
    """The task's metric on a split; the model ends in eval mode.

    rows: score at most so many, evenly over lengths, but one of each batch at least.
    A generated text is compared with all references of its row, where the task has them.
    """
    model.eval()
    predict = PREDICT.get(task.metric) or PREDICT[task.kind]
    device = next(model.parameters()).device
    predictions, references = [], []
    stride = 1 if rows is None else max(1, math.ceil(len(task.data[split]) / rows))
    columns = task.data[split]
    right = columns["references"][:] if task.metric in TEXTS and "references" in columns.column_names else None
    order = by_length(columns["text"][:])
    for start, part in enumerate(task.batches(model.tokenizer, split, batch)):
        part = {k: v[::stride].to(device) for k, v in part.items()}
        with accelerator.autocast() if accelerator else contextlib.nullcontext():
            with memory("while scoring"):
                p, y = predict(model, part)
        predictions += p
        here = order[start * batch :][:batch:stride]
        references += [written(model.tokenizer, right[i]) for i in here] if right else y
    return task.score(predictions, references)


def classes(model, batch):
    return model(**batch).logits.argmax(-1).tolist(), batch["labels"].tolist()


def values(model, batch):
    return model(**batch).logits.float().flatten().tolist(), batch["labels"].tolist()


def aligned(model, batch):
    """Logits (b t V) and the labels (b t) that they predict; prompt tokens before the text are left out."""
    labels = batch["labels"]
    logits = model(**batch).logits[:, -labels.shape[1] :].float()
    return (logits, labels) if model.config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])


def likelihoods(model, batch):
    logits, labels = aligned(model, batch)
    return (-F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100))[
        labels.flatten() != -100
    ].tolist(), []


def answers(model, batch):
    """Greedy answers as tuples of tokens. Greedy decoding gives the target exactly when every next token of the target,
    given the true ones before it, is the likeliest: so one forward pass decides, and nothing is generated."""
    logits, labels = aligned(model, batch)
    best, told = logits.argmax(-1), labels != -100
    rows = range(len(labels))
    return [tuple(best[i][told[i]].tolist()) for i in rows], [tuple(labels[i][told[i]].tolist()) for i in rows]


def texts(model, batch):
    """Generated and target texts, by greedy decoding without a cache (which every delta can follow)."""
    labels, tok = batch["labels"], model.tokenizer
    told, end = labels != -100, tok.eos_token_id
    longest = int(told.sum(1).max()) + 1
    targets = [tok.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(labels, told, strict=True)]
    if model.config.is_encoder_decoder:
        ids = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
        lengths, source = torch.ones_like(ids[:, 0]), {k: v for k, v in batch.items() if k != "labels"}
        call = lambda: model(**source, decoder_input_ids=ids).logits
    else:
        lengths = (batch["attention_mask"].bool() & ~told).sum(1)
        ids = batch["input_ids"][:, : int(lengths.max())].clone()
        call = lambda: (
            model(
                input_ids=ids, attention_mask=(torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
            ).logits
        )
    begin, alive, row = (
        lengths.clone(),
        torch.ones_like(lengths, dtype=torch.bool),
        torch.arange(len(ids), device=ids.device),
    )
    for _ in range(longest):
        best = call()[:, -ids.shape[1] :][row, lengths - 1].argmax(-1)
        alive &= best != end
        if not alive.any():
            break
        if int(lengths.max()) == ids.shape[1]:
            ids = F.pad(ids, (0, 1), value=tok.pad_token_id)
        ids[row[alive], lengths[alive]] = best[alive]
        lengths = lengths + alive.long()
    return [
        tok.decode(i[b:e], skip_special_tokens=True).strip() for i, b, e in zip(ids, begin, lengths, strict=True)
    ], targets


def written(tok, right):
    """All right texts of a row as the tokenizer writes them, with its capitals and spaces, like what is generated."""
    return [tok.decode(ids, skip_special_tokens=True).strip() for ids in tok(text_target=right)["input_ids"]]


PREDICT = dict(
    classification=classes,
    regression=values,
    lm=answers,
    seq2seq=answers,
    perplexity=likelihoods,
    **dict.fromkeys(TEXTS, texts),
)
