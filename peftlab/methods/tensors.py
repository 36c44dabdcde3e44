"""New parameters, on the device and in the floating type of the module they join."""

import torch
from torch import nn


def normal(m, *shape, std):
    """A Gaussian parameter on the device of module `m`, in its floating type."""
    return nn.Parameter(torch.randn(shape).mul_(std).to(like(m)))


def zeros(m, *shape):
    return nn.Parameter(torch.zeros(shape).to(like(m)))


def ones(m, *shape):
    return nn.Parameter(torch.ones(shape).to(like(m)))


def like(m):
    """A tensor whose device and dtype new parameters of `m` follow; float32 where the weight is packed integers."""
    t = next(m.parameters())
    return t.detach() if t.is_floating_point() else torch.empty(0, device=t.device)
