"""What a trained delta listens to: which adapters a fusion hears, which prompts a mixture, a side network its backbone.

`peftlab.plots` draws what these give.
"""

import contextlib
import dataclasses
from collections import Counter

import torch

from .collate import by_length
from .delta import stack_of
from .errors import PeftlabError
from .methods.fusion import AdapterFusion
from .methods.side import LST
from .methods.transfer import Attempt


def heard(model, attached, task, rows=64):
    """The weights of AdapterFusion: [{place, layer, site, source, weight, rows, tokens}], means over real tokens.

    It reads at most so many test rows, evenly over their lengths. `place` tells apart what shares layer and site, as
    the two attentions in a layer of T5's decoder do. A fusion without sources has fresh adapters, which are numbered.
    """
    fused = of_kind(attached, AdapterFusion, "adapter-fusion")
    stacks = [stack_of(m, model)[0] for _, m in fused]
    total, tokens, read = [0.0] * len(fused), [0] * len(fused), 0
    for batch, masks in passes(model, task, rows, stacks):
        read += len(batch["input_ids"])
        for i, (d, _) in enumerate(fused):
            real = real_tokens(masks[stacks[i]], batch, d.heard)
            total[i], tokens[i] = total[i] + d.heard[real].double().sum(0), tokens[i] + int(real.sum())
    found, seen = [], Counter()
    for (d, m), weights, n in zip(fused, total, tokens, strict=True):
        seen[m.layer, m.site] += 1
        place = f"{m.site}, layer {m.layer}" + ("" if seen[m.layer, m.site] == 1 else f" ({seen[m.layer, m.site]})")
        for source, weight in zip(sources(attached, d, len(weights)), (weights / n).tolist(), strict=True):
            one = dict(place=place, layer=m.layer, site=m.site, source=source)
            found.append(one | dict(weight=weight, rows=read, tokens=n))
    return found


def mixture(model, attached, task, rows=64):
    """What ATTEMPT mixes for each row: [{text, label, weights: {prompt: a}}], of at most so many test rows.

    They lie evenly over the lengths. label is the name of the class, or None where a task has no classes. The prompt
    "its own" is there once in any case; its weight here comes on top.
    """
    (d, _), *_ = of_kind(attached, Attempt, "attempt")
    names = [*sources(attached, d, len(d.S)), "its own"]
    found = []
    for batch, _ in passes(model, task, rows):
        for ids, label, a in zip(batch["input_ids"], batch["labels"], d.heard.tolist(), strict=True):
            text = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
            label = task.labels[int(label)] if task.kind == "classification" else None
            found.append(dict(text=text, label=label, weights=dict(zip(names, a, strict=True))))
    return found


def gates(attached):
    """Of each layer of LST the share μ of what comes from the side layer below: [{place, layer, below}]; 0.5 at first.

    The rest, 1 - μ, is that of what the backbone's layer gives.
    """
    (d, _), *_ = of_kind(attached, LST, "lst")
    stack = lambda i: ("encoder ", "decoder ")[i >= d.firsts[1]] if len(d.firsts) > 1 else ""
    shares = torch.sigmoid(d.a.detach().float() / 0.1).tolist()
    return [dict(place=f"{stack(i)}layer {i}", layer=i, below=share) for i, share in enumerate(shares)]


def of_kind(attached, kind, name):
    """[(delta, module)] of this class; a PeftlabError where there is none that acts."""
    found = [(d, m) for d, m in attached.placed if isinstance(d, kind) and d.on]
    if not found:
        raise PeftlabError(f"none of these deltas is of {name}, or it is toggled off; attach {name}")
    return found


def sources(attached, d, k):
    """Names of what a delta builds on."""
    return attached.recipe[d.row]["settings"]["sources"].split() or [f"fresh {i}" for i in range(1, k + 1)]


def some(task, rows, split="test"):
    """The task with at most so many rows of a split, evenly over their lengths."""
    if not isinstance(rows, int) or rows < 1:
        raise PeftlabError(f"rows must be a whole number from 1 on, not {rows!r}")
    order = by_length(task.data[split]["text"][:])
    n = min(rows, len(order))
    taken = task.data[split].select([order[i * len(order) // n] for i in range(n)])
    return dataclasses.replace(task, data={split: taken})


@torch.no_grad()
def passes(model, task, rows, stacks=()):
    """Send test rows through the model; yields each batch and the masks that the stacks got, a prompt's included."""
    masks, device = {}, next(model.parameters()).device
    note = lambda stack, args, kw: masks.update({stack: kw.get("attention_mask")})
    # hooked last, so that it sees what a prompt has widened
    handles = [stack.register_forward_pre_hook(note, with_kwargs=True) for stack in dict.fromkeys(stacks)]
    try:
        with still(model):
            for batch in some(task, rows).batches(model.tokenizer, "test", 64):
                batch = {k: v.to(device) for k, v in batch.items()}
                model(**batch)
                yield batch, masks
    finally:
        for h in handles:
            h.remove()


@contextlib.contextmanager
def still(model):
    """Without dropout for a while."""
    was = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, training in was.items():
            m.training = training


def real_tokens(mask, batch, like):
    """Which of the tokens (b t) are no padding; T5's decoder is given no mask, its tokens are those of its labels."""
    if mask is None:
        labels = batch["labels"]
        mask = labels != -100 if labels.ndim == 2 else batch.get("attention_mask")
    return like.new_ones(like.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
