"""Deltas in the files of Hugging Face PEFT, `adapter_config.json` and `adapter_model.safetensors`, out and in.

A method whose entry in the registry has a `Peft` can travel. Others are refused, as are layers that PEFT does not see
(GPT-2's q, k and v, which are one module there).
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file

from .attachment import attach
from .backbones import QKV, head_parameters, sites
from .checkpoint import fill
from .errors import PeftlabError
from .methods import METHODS, get

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def save_peft(model, attached, folder):
    """Write delta and head as `PeftModel.from_pretrained(backbone, folder)` reads them. Returns the folder.

    PeftlabError for a recipe of several methods, a method or a layer that the format does not have.
    """
    names = {row["method"] for row in attached.recipe}
    if len(names) > 1:
        raise PeftlabError(f"PEFT's format holds one method, not {', '.join(sorted(names))}; save them one by one")
    how, paths = known(*names), {m: name for name, m in model.named_modules()}
    placed = {paths[m]: delta for delta, m in attached.placed}
    for path in placed:
        if isinstance(model.get_submodule(path.rpartition(".")[0]), QKV):
            raise PeftlabError(f"{path} is a part of one module in PEFT; attach at o, up or down, or merge instead")
    tensors = {f"{path}.{how.tensors[n]}": t for path, delta in placed.items() for n, t in delta.own().items()}
    head = head_parameters(model)
    config = how.facts | how.more | common(model, attached, how, paths)
    config |= dict(target_modules=sorted(placed), modules_to_save=sorted({n.split(".")[0] for n in head}) or None)
    config |= dict(base_model_name_or_path=model.backbone_name, inference_mode=True)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors |= head
    save_file({PREFIX + n: t.detach().clone().contiguous() for n, t in tensors.items()}, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def load_peft(model, folder):
    """Attach what PEFT has saved in `folder`, and set the head when one is there; returns the Attachment.

    PeftlabError, with the model as it was, for a method or a layer that is not here, or a tensor without a place.
    """
    folder = pathlib.Path(folder)
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        raise PeftlabError(f"{folder} holds no {CONFIG} and {WEIGHTS}; PEFT's save_pretrained makes them")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    state = {n.removeprefix(PREFIX): t for n, t in load_file(folder / WEIGHTS).items()}
    method = ours(config)
    how, modules = method.peft, dict(model.named_modules())
    paths = sorted({n.removesuffix(f".{end}") for n in state for end in how.tensors.values() if n.endswith(f".{end}")})
    for path in paths:
        if not hasattr(modules.get(path), "site"):
            raise PeftlabError(f"{folder} changes {path}, which is no site of {model.backbone_name}")
    rows = [row(method, config, path, modules[path]) for path in paths]
    rows = [r for i, r in enumerate(rows) if r not in rows[:i]]  # a site may be two modules: gate and up, or T5's two q
    if len({(r["where"], *r["layers"]) for r in rows}) < len(rows):
        raise PeftlabError(f"{folder} has several settings for the modules of one site and layer, which is one here")
    attached = attach(model, rows)
    names = {m: path for path, m in modules.items()}
    target = {f"{names[m]}.{how.tensors[n]}": t for d, m in attached.placed for n, t in d.own().items()}
    target |= {n: p for n, p in head_parameters(model).items() if n in state}
    drawn = {n: state.pop(theirs) for n, theirs in how.frozen.items() if theirs in state}
    try:
        for n, t in ((n, getattr(d, n)) for n in drawn for d in attached.deltas):
            if not torch.equal(drawn[n][: t.shape[0], : t.shape[1]], t):
                raise PeftlabError(f"the frozen {n} in {folder} was drawn in another way than here")
        fill(target, state)
    except PeftlabError:
        attached()
        raise
    return attached


def known(method):
    """The `Peft` of a method. PeftlabError where the format has no such method."""
    if how := get(method).peft:
        return how
    there = ", ".join(n for n, m in METHODS.items() if m.peft)
    raise PeftlabError(f"PEFT's files have no {method} as it is here; they have {there}. A merged model is a plain one")


def ours(config):
    """The Method that a config of PEFT means."""
    unusual = "layer_replication lora_bias use_qalora use_bdlora alora_invocation_tokens"
    odd = [key for key in unusual.split() if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if odd or config.get("projection_prng_key", 0):
        raise PeftlabError(f"PEFT's {', '.join(odd) or 'projection_prng_key'} has no counterpart here")
    for m in METHODS.values():
        if m.peft and all(config.get(key, False) == value for key, value in m.peft.facts.items()):
            return m
    raise PeftlabError(f"PEFT's {config.get('peft_type')} as it is configured there has no counterpart here")


def row(method, config, path, m):
    """One row of a recipe: the settings of one module."""
    how = method.peft
    own = lambda theirs: (config.get(how.patterns.get(theirs)) or {}).get(path, config[theirs])
    settings = {n: own(theirs) for n, theirs in how.settings.items()}
    return dict(method=method.name, where=m.site, layers=[m.layer], settings=settings)


def common(model, attached, how, paths):
    """The settings of the first row, and the patterns of the modules whose own ones differ."""
    rows = {paths[m]: row["settings"] for row in attached.recipe for m in sites(model, row["where"], row["layers"])}
    if len(rows) < len(attached.placed):
        raise PeftlabError("PEFT's format holds one delta for each layer, and here are several; merge one first")
    found = {}
    for name, theirs in how.settings.items():
        found[theirs] = first = attached.recipe[0]["settings"][name]
        other = {path: settings[name] for path, settings in rows.items() if settings[name] != first}
        if other and theirs not in how.patterns:
            raise PeftlabError(f"PEFT's format holds one {name} for all layers, not {first} and {min(other.values())}")
        found |= {how.patterns[theirs]: other} if other else {}
    return found
