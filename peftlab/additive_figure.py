"""What adapters add to the states of a sentence, and how much attention a prompt gets, while they learn: for lab 01.

`python -m peftlab.additive_figure` makes data/results/additive_figure.json.
"""

import contextlib
import json

import torch

from .backbones import n_layers
from .backbones import sites as places
from .listening import passes, still
from .paths import data
from .runs import batches, laid_out
from .specs import spec
from .training import fit

PLACE = dict(task="reviews", backbone="micro-encoder", seed=0, r=8, n=8, rows=64)
STEPS = (0, 10, 25, 50, 100, 200)


@torch.no_grad()
def added(model, attached, batch):
    """By how much the deltas of a layer change what leaves it, as a share of its length: |h' - h| / |h| (b t layers).

    h' and h come from the same input, with the deltas of this layer and without them. For an encoder.
    """
    found, first = {}, lambda out: out[0] if isinstance(out, tuple) else out

    def compare(block, args, kw, out):
        attached.toggle(False)
        h = first(block.forward(*args, **kw))
        attached.toggle(True)
        found[block.block_index] = (first(out) - h).norm(dim=-1) / h.norm(dim=-1)

    blocks = [m for m in model.modules() if hasattr(m, "block_index")]
    handles = [b.register_forward_hook(compare, with_kwargs=True) for b in blocks]
    try:
        with still(model):
            model(**batch)
    finally:
        for h in handles:
            h.remove()
    return torch.stack([found[i] for i in range(n_layers(model))], -1)


def pull(model, prompt, task, rows):
    """(share, even): how much of the attention of a text's tokens goes to a prompt, and would if all places got alike.

    share (layers heads) is the mean over the real tokens of a row and over the test rows, even that of n / (n + t).
    softmax(q kᵀ / √d) as BERT and its kin have it.
    """
    seen = {}
    keep = lambda m, args, y: seen.update({(m.site, m.layer): y})
    handles = [m.register_forward_hook(keep) for m in places(model, "q k")]
    heads, shares, even = places(model, "q")[0].heads, [], []
    try:
        for batch, _ in passes(model, task, rows):
            mask = batch["attention_mask"]
            new = prompt.insert(torch.zeros_like(mask), 1).bool()  # (b n+t)
            real, texts = prompt.insert(mask, 1).bool(), prompt.insert(mask, 0)
            split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)  # (b h s d)
            each = []
            for i in range(n_layers(model)):
                q, k = split(seen["q", i]), split(seen["k", i])
                scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
                A = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)  # (b h s s)
                to_prompt = (A * new[:, None, None]).sum(-1)
                each.append((to_prompt * texts[:, None]).sum(-1) / texts.sum(-1)[:, None])
            shares.append(torch.stack(each, 1))
            even.append(prompt.n / real.sum(1))
    finally:
        for h in handles:
            h.remove()
    return torch.cat(shares).mean(0), float(torch.cat(even).mean())


def followed(wanted, look, until):
    """look(model, task, attached) before the training of a spec and after each of the STEPS up to `until`."""
    with laid_out(wanted) as (model, task, undo, accelerator):
        found, given = [look(model, task, undo)], (wanted["lr"], wanted["steps"])
        rows = fit(model, batches(wanted, task, model), undo.deltas, *given, every=5, accelerator=accelerator)
        with contextlib.closing(rows):
            for row in rows:
                if row["step"] in STEPS:
                    found.append(look(model, task, undo))
                if row["step"] == until:
                    break
    return found


def make(until=STEPS[-1], **place):
    """{place, steps, sentences, even, added, pull}: the first test row of each class, and what was seen at each step.

    added[step][sentence] has a line for each token, pull[step] one for each layer with a number for each head.
    """
    place = PLACE | place
    where = {k: place[k] for k in ("task", "backbone", "seed")} | dict(steps=STEPS[-1])
    sentences = []

    def in_sentences(model, task, attached):
        test = task.data["test"]
        texts = [test["text"][test["label"][:].index(i)] for i in range(len(task.labels))]
        batch = model.tokenizer(texts, padding=True, return_tensors="pt")
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        words = [[model.tokenizer.decode([i]).strip() for i in ids[real].tolist()] for ids, real in rows]
        sentences[:] = [dict(label=label, tokens=row) for label, row in zip(task.labels, words, strict=True)]
        found = added(model, attached, batch.to(next(model.parameters()).device))
        return [brief(one[: len(row)]) for one, row in zip(found, words, strict=True)]

    def of_prompt(model, task, attached):
        return pull(model, attached.deltas[0], task, place["rows"])

    adapters = followed(spec("adapter", r=place["r"], **where), in_sentences, until)
    prompts = followed(spec("prompt", n=place["n"], **where), of_prompt, until)
    steps = [s for s in STEPS if s <= until]
    found = dict(sentences=sentences, even=round(prompts[0][1], 4), added=adapters, pull=[brief(s) for s, _ in prompts])
    return dict(place=place, steps=steps, **found)


def brief(t):
    return [[round(v, 3) for v in line] for line in t.tolist()]


def file():
    return data() / "results" / "additive_figure.json"


if __name__ == "__main__":
    file().write_text(json.dumps(make(), separators=(",", ":")) + "\n", encoding="utf-8")
