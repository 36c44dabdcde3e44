"""Giving their model the numbers of ours, so that both must answer alike. `pair` has ours, attached and theirs."""

import pathlib
import tempfile

import torch

from ..backbones import QKV


def nothing(pair):
    pass


def through_a_file(pair):
    """As a user would: saved here in PEFT's format, loaded by PEFT."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from ..exchange import WEIGHTS, save_peft

    with tempfile.TemporaryDirectory() as folder:
        save_peft(pair.ours, pair.attached, folder)
        set_peft_model_state_dict(pair.theirs, load_file(pathlib.Path(folder) / WEIGHTS))


def places(pair):
    """(our delta, our module, their module), for all that is attached."""
    names = {m: name for name, m in pair.ours.named_modules()}
    for delta, m in pair.attached.placed:
        yield delta, m, pair.theirs.get_submodule(f"base_model.model.{names[m]}")


@torch.no_grad()
def adalora(pair):
    for d, _, there in places(pair):
        for ours, name in ((d.Q, "lora_A"), (d.P, "lora_B"), (d.l[:, None], "lora_E")):
            getattr(there, name)["default"].copy_(ours)
        there.ranknum["default"] -= 1e-5  # which theirs adds before it divides by it


@torch.no_grad()
def lokr(pair):
    for d, _, there in places(pair):
        there.lokr_w1["default"].copy_(d.A)
        there.lokr_w2["default"].copy_(d.B)


@torch.no_grad()
def ia3(pair):
    for d, _, there in places(pair):
        l = there.ia3_l["default"]
        l.copy_(d.l.view_as(l))


@torch.no_grad()
def shira(pair):
    """Positions and changes; ours are one list for all layers."""
    for d, m, there in places(pair):
        (a, b, start), first = d.part, d.peers[0]
        I = first.I[a:b] - start
        there.shira_indices["default"] = torch.stack([I // m.in_features, I % m.in_features])
        there.shira_weight["default"].copy_(first.v[a:b])


@torch.no_grad()
def prefix(pair):
    parts = [t for d in pair.attached.deltas for t in (d.P_k, d.P_v)]
    pair.theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(parts, 1))


@torch.no_grad()
def prompt(pair):
    pair.theirs.prompt_encoder["default"].embedding.weight.copy_(pair.attached.deltas[0].P)


@torch.no_grad()
def p_tuning(pair):
    d, there = pair.attached.deltas[0], pair.theirs.prompt_encoder["default"]
    there.embedding.weight.copy_(d.p)
    there.lstm_head.load_state_dict(d.lstm.state_dict())
    layers = [m for m in there.mlp_head if isinstance(m, torch.nn.Linear)]
    for mine, layer in zip(d.mlp, layers, strict=True):
        layer.load_state_dict(mine.state_dict())


@torch.no_grad()
def biases(pair):
    for name, m in pair.theirs.named_modules():
        if getattr(m, "bias", None) is not None:
            here = pair.ours.get_submodule(name)
            m.bias.copy_(torch.cat([x.bias for x in ((here.q, here.k, here.v) if isinstance(here, QKV) else (here,))]))
