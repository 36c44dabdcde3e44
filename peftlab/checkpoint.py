"""Fold a delta into its backbone, or keep it in a folder: `delta.safetensors` and `delta.json` (recipe, backbone)."""

import contextlib
import json
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from .attachment import attach
from .backbones import head_parameters
from .delta import Delta, OutputDelta, WeightDelta
from .errors import PeftlabError
from .methods import get

WEIGHTS, CARD = "delta.safetensors", "delta.json"


@torch.no_grad()
def merge(model, attached):
    """Fold `attached` into the weights, W' and b' read off the modules themselves; returns an undo that restores both.

    The model then computes the same function with no delta left on it. Raises PeftlabError, before anything
    changes, for a method whose update is not affine in its input.
    """
    for row in attached.recipe:
        if not get(row["method"]).merges:
            raise PeftlabError(
                f"{row['method']} cannot be merged: no fixed weight does the same for every input; keep it attached"
            )
    with alone(model, attached):
        outer = sorted(
            attached.placed, key=lambda pair: (isinstance(pair[0], OutputDelta), isinstance(pair[0], WeightDelta))
        )
        folded = {key: t.clone() for d, m in outer for key, t in tensors(d, m)}  # an output has all that is below it
    recipe, seed, kept = attached.recipe, attached.seed, kept_state(attached)
    attached()
    before = {(m, name): slot(m, name)[0][slot(m, name)[1]] for m, name in folded}
    for (m, name), t in folded.items():
        owner, key = slot(m, name)
        owner[key] = nn.Parameter(t, requires_grad=False)

    def undo():
        for (m, name), p in before.items():
            owner, key = slot(m, name)
            owner[key] = p
        again = attach(model, recipe, seed)
        restore(again, kept)
        again.head = attached.head
        return again

    return undo


@contextlib.contextmanager
def alone(model, attached):
    """Silence every other delta of the model for a while."""
    mine = set(attached.deltas)
    others = [d for d in model.modules() if isinstance(d, Delta) and d not in mine and d.on]
    for d in others:
        d.on = False
    try:
        yield
    finally:
        for d in others:
            d.on = True


def tensors(delta, m):
    """Yield ((module, parameter name), new tensor) for what `delta` changes at `m`."""
    if isinstance(delta, WeightDelta):
        yield (m, delta.tensor), getattr(m, delta.tensor)
    elif hasattr(delta, "places"):
        for _, owner, key, _, copy in delta.places:
            yield (owner, key), copy
    else:  # affine: the images of zero and of the unit vectors are b' and the columns of W'
        W = m.weight
        b = m(W.new_zeros(1, m.in_features))
        yield (m, "weight"), (m(torch.eye(m.in_features, device=W.device, dtype=W.dtype)) - b).T.contiguous()
        if m.bias is not None:
            yield (m, "bias"), b[0]
        elif b.any():
            raise PeftlabError(
                f"this delta cannot be merged: the layer at {m.site} has no bias to take its shift; keep it attached"
            )


def slot(m, name):
    """(dict, key) where the raw tensor lives, also below the parametrization of another delta."""
    if parametrize.is_parametrized(m, name):
        return m.parametrizations[name]._parameters, "original"
    return m._parameters, name


def tensors_of(attached, what="own"):
    """Name -> tensor over all deltas, named by their order and their own tensor names; what: "own", or as "stored"."""
    return {f"{i}.{n}": t for i, d in enumerate(attached.deltas) for n, t in getattr(d, what)().items()}


def kept_state(attached, what="own"):
    """A copy of `tensors_of`, which later training leaves alone."""
    return {n: t.detach().clone().contiguous() for n, t in tensors_of(attached, what).items()}


def restore(attached, state, what="own"):
    """Copy a kept state back; as `fill`."""
    fill(tensors_of(attached, what), state)
    for i, delta in enumerate(attached.deltas):
        if what == "stored" and hasattr(delta, "unpack"):
            delta.unpack({n: state[f"{i}.{n}"] for n in delta.stored()})
        if hasattr(delta, "restored") and delta.own():
            delta.restored()


@torch.no_grad()
def fill(mine, state):
    """Copy tensors by name. Raises PeftlabError for a missing one or another shape, before anything is copied."""
    for n in mine.keys() | state.keys():
        if n not in mine or n not in state or mine[n].shape != state[n].shape:
            a, b = (tuple(s[n].shape) if n in s else "absent" for s in (state, mine))
            raise PeftlabError(f"the checkpoint does not fit this backbone: tensor {n} is {a} there and {b} here")
    for n, t in mine.items():
        t.copy_(state[n])


def fingerprint(model):
    """What a checkpoint must agree with: the backbone's name and the shapes that decide whether a delta fits."""
    c = model.config
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(name=pathlib.Path(model.backbone_name).name, **{k: getattr(c, k, None) for k in keys})


def save(model, attached, folder):
    """Write delta, head and recipe to `folder` (made when missing): safetensors and JSON. Returns the folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    heads = head_parameters(model) if attached.head is None else attached.head
    head = {f"head.{n}": p.detach().clone().contiguous() for n, p in heads.items()}
    save_file({f"delta.{n}": t for n, t in kept_state(attached, "stored").items()} | head, str(folder / WEIGHTS))
    card = dict(recipe=attached.recipe, seed=attached.seed, backbone=fingerprint(model), head=model.head_kind)
    (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def load(model, folder, own_head=False):
    """Attach the delta kept in `folder` and set the head; returns the Attachment.

    own_head=True leaves the model's head as it is: the attachment carries its own, of any number of labels, to
    `serving` and `switch`. Raises PeftlabError, with the model as it was, for a folder without a delta, a backbone of
    another name or shape, and for a head of another kind or size.
    """
    folder = pathlib.Path(folder)
    if not (folder / CARD).exists() or not (folder / WEIGHTS).exists():
        raise PeftlabError(f"{folder} holds no {CARD} and {WEIGHTS}; save one there with peftlab.save")
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    for key, here in fingerprint(model).items():
        if card["backbone"].get(key) != here:
            raise PeftlabError(
                f"the checkpoint was made for {card['backbone']['name']} ({key} {card['backbone'].get(key)}), "
                f"this backbone is {fingerprint(model)['name']} ({key} {here})"
            )
    with safe_open(str(folder / WEIGHTS), "pt") as f:
        state = {n: f.get_tensor(n) for n in f.keys()}
    heads, kept = head_parameters(model), {n[5:]: t for n, t in state.items() if n.startswith("head.")}
    size = lambda tensors: {n: None if own_head else t.shape for n, t in tensors.items()}
    if card["head"] != model.head_kind or size(kept) != size(heads):
        raise PeftlabError(
            f"the checkpoint carries a {card['head']} head of another size; load the backbone with that head first"
        )
    attached = attach(model, card["recipe"], card["seed"])
    try:
        restore(attached, {n[6:]: t for n, t in state.items() if n.startswith("delta.")}, "stored")
    except PeftlabError:
        attached()
        raise
    if own_head:
        attached.head = kept or None
        return attached
    with torch.no_grad():
        for n, p in heads.items():
            p.copy_(kept[n])
    return attached
