"""Several trained deltas on one backbone: heard one at a time, averaged, or each by its own rows of one batch.

Stacking needs no function: attach twice. Where two deltas meet, the one that was attached first acts first: the second
reads what the first has changed, a later prompt or prefix stands before an earlier one. (A change of a weight is inside
of all that reads the layer's output.) Fusing by attention is a method, `adapter-fusion`; `mix` adds with any weights.

Tasks have heads of their own. An attachment carries one (`attached.head`, name -> tensor) when it was loaded with
`load(model, folder, own_head=True)` or after `keep_head(attached)`; else its rows are read by the model's head.
"""

import contextlib

import torch
from torch.nn import functional as F

from .attachment import Attachment
from .backbones import head_parameters
from .checkpoint import kept_state
from .delta import Delta, cached_tokens, text
from .errors import PeftlabError
from .mixing import mix
from .rows import Rows


def switch(model, attached=None):
    """Of all that is attached to the model only `attached` is heard from now on; None: nothing, the bare backbone.

    The head that it carries becomes the model's; with none, the model's stays as it is. PeftlabError for an attachment
    of another model, or one that was taken off.
    """
    mine = parts(model, attached)
    for d in deltas_of(model):
        hear(d, d in mine)
    if attached is not None and attached.head is not None:
        for n, p in head_parameters(model).items():
            p.data = attached.head[n].to(p, copy=True)  # in place: whoever holds the parameter holds the new head
            model.get_submodule(n.rpartition(".")[0]).out_features = len(p)
        model.num_labels = model.config.num_labels = labels(attached.head)  # T5 asks the config, the others themselves


def average(attached, others, weights=None):
    """δ = Σᵢ wᵢ δᵢ, all wᵢ = 1/n if not given: the parameters of `attached` become the mean of other trained deltas'.

    others: attachments of the same recipe, or their kept states. Heads are not averaged. PeftlabError as in `mix`.
    """
    states = [kept_state(o) if isinstance(o, Attachment) else o for o in others]
    mix(attached, states, [1 / len(states) for _ in states] if weights is None else weights)


def keep_head(attached):
    """The attachment carries a copy of the model's head as it is now; returns the attachment."""
    attached.head = {n: p.detach().clone() for n, p in head_parameters(attached.model).items()} or None
    return attached


@contextlib.contextmanager
def serving(model, attached, beams=1):
    """Within it row i of every batch has the i-th attachment (None: the bare backbone), in one pass of the backbone.

    What is attached and not named is silent. Each row is read by the head that its attachment carries, else by the
    model's; where these heads have different numbers of labels the logits that a row lacks are -inf. beams: as many as
    `generate` is told to search. PeftlabError for a delta that cannot be told to leave rows alone, as one of a weight,
    and for a batch of another number of rows.
    """
    filler, mine, heads = torch.zeros(len(attached), dtype=torch.long), {}, []
    for one in {id(a): a for a in attached if a is not None}.values():
        rows = Rows(torch.tensor([i for i, a in enumerate(attached) if a is one]), len(attached), filler)
        for d, whole in parts(model, one).items():
            if not whole.by_row:
                name = one.recipe[whole.row]["method"]
                raise PeftlabError(
                    f"{name} cannot change some rows of a batch and leave the others alone; "
                    "merge it into a backbone of its own, or take lora"
                )
            mine[d] = rows
        if one.head is not None:
            heads.append((rows, one.head))
    before = [(d, d.on, vars(d).get("rows")) for d in deltas_of(model)]
    counted = Counted(len(attached), beams, [labels(h) for _, h in heads])
    handles = [model.register_forward_pre_hook(counted, with_kwargs=True, prepend=True)]
    stacks = [text(model), *([model.get_decoder()] if model.kind == "seq2seq" else [])]
    try:
        for stack in stacks:  # each of them begins with rows that nothing fills up
            handles.append(stack.register_forward_pre_hook(lambda *_: [filler.zero_(), None][1], prepend=True))
        for name in dict.fromkeys(n.rpartition(".")[0] for n in head_parameters(model) if heads):
            handles.append(model.get_submodule(name).register_forward_hook(Heads(name, heads)))
        for d, _, _ in before:
            hear(d, d in mine)
            if d in mine:
                d.rows = mine[d]
        yield model
    finally:
        for h in handles:
            h.remove()
        for d, on, rows in before:
            hear(d, on)
            vars(d).pop("rows", None) if rows is None else setattr(d, "rows", rows)


class Counted:
    """Refuses a batch of another number of rows, and gives one without a mask a mask: rows will differ in length."""

    def __init__(self, rows, beams, widths):
        self.rows, self.beams, self.widths = rows, beams, widths

    def __call__(self, model, args, kw):
        ids = args[0] if args else next((kw[k] for k in ("input_ids", "inputs_embeds") if kw.get(k) is not None), None)
        given = kw["decoder_input_ids"] if ids is None else ids  # T5 has its text encoded before it generates
        if len(given) not in (self.rows, self.rows * self.beams):
            raise PeftlabError(
                f"a batch of {len(given)} rows came where {self.rows} are served; name one attachment, or None, for "
                "each row, and beams where generate searches with them"
            )
        if kw.get("labels") is not None and {*self.widths} - {model.config.num_labels}:
            raise PeftlabError("heads of different sizes have no common loss; leave the labels out of the batch")
        whole = ids is not None and not cached_tokens(kw.get("past_key_values"))
        if whole and len(args) < 2 and kw.get("attention_mask") is None:
            kw["attention_mask"] = ids.new_ones(ids.shape[:2], dtype=torch.long)
        return args, kw


class Heads:
    """At one layer of the head: the rows of an attachment that carries a head go through its own tensors."""

    def __init__(self, name, heads):
        self.own = [(rows, h[f"{name}.weight"], h.get(f"{name}.bias")) for rows, h in heads]

    def __call__(self, m, args, y):
        like = lambda t: None if t is None else t.to(m.weight)
        new = [(rows, F.linear(rows.pick(args[0]), like(W), like(b))) for rows, W, b in self.own]
        wide = max(len(m.weight), *(len(W) for _, W, _ in self.own))
        fill = lambda t: F.pad(t, (0, wide - t.shape[-1]), value=float("-inf"))
        y = fill(y)
        for rows, t in new:
            y = y.index_copy(0, rows.at(y), fill(t).to(y.dtype))
        return y


def parts(model, attached):
    """{delta of an attachment, also one inside of another: the outermost}."""
    if attached is None:
        return {}
    if attached.model is not model or not attached.placed and any(r["where"] for r in attached.recipe):
        raise PeftlabError("this delta is not attached to this model; attach it, or load it, first")
    return {i: d for d in attached.deltas for i in d.modules() if isinstance(i, Delta)}


def deltas_of(model):
    return [d for d in model.modules() if isinstance(d, Delta)]


def hear(delta, on):
    if delta.on != on:
        delta.on = on


def labels(head):
    """How many labels a head tells apart: its last layer comes last."""
    return len([*head.values()][-1])
