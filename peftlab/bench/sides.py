"""The sides of a comparison, each on a copy of one backbone: ours, theirs, full fine-tuning and the floor."""

import copy
import warnings
from typing import NamedTuple

import torch
from torch import nn

from ..attachment import attach
from ..backbones import prepare, set_head
from .peers import PEERS


class Ours(NamedTuple):
    model: nn.Module
    attached: object


class Pair(NamedTuple):
    ours: nn.Module
    attached: object
    theirs: nn.Module


def ours(base, shape, peer, seed=0):
    """Our method on a copy of the backbone, its head frozen."""
    model = prepare(copy.deepcopy(base))
    set_head(model, "frozen")
    return Ours(model.train(), attach(model, [peer.row(shape)], seed=seed))


def theirs(base, shape, peer):
    """Their method on a copy of the backbone, its head frozen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of Conv1D and of heads is known here
        model = peer.make(copy.deepcopy(base).requires_grad_(False), shape)
    return model.to(next(base.parameters()).dtype).train()


def full(base, shape):
    """Full fine-tuning with plain transformers."""
    return theirs(base, shape, PEERS["full"])


def floor(base, shape):
    """No method at all: forward, and backward through the activations of all layers, which every delta has to pay.

    One number that is added to the embeddings learns, so that autograd goes all the way down.
    """
    model = copy.deepcopy(base).requires_grad_(False)
    Lifted(model)
    return model.train()


class Lifted(nn.Module):
    def __init__(self, model):
        super().__init__()
        table = model.get_input_embeddings().weight
        self.e = nn.Parameter(table.new_zeros(()))
        for m in [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is table]:  # T5 has several
            m.register_forward_hook(self.add)
        model.add_module("lifted", self)

    def add(self, m, args, y):
        return y + self.e


@torch.no_grad()
def wide(model):
    """The model with weights that all show in its loss: as they are drawn for training they hardly do."""
    drawn = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.add_(p.shape[-1] ** -0.5 * torch.randn(p.shape, generator=drawn).to(p))
    return model


@torch.no_grad()
def unsettle(attached, size=0.1):
    """Numbers as training might leave them: many deltas start as the identity, and equality would say nothing."""
    drawn = torch.Generator().manual_seed(1)
    for d in attached.deltas:
        for p in d.parameters():
            p.add_(size * torch.randn(p.shape, generator=drawn).to(p))


def learning(model):
    """How many numbers learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
