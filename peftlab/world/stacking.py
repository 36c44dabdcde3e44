"""A deep encoder begins with half of its layers, each of which then comes a second time: early steps cost half as much.

Progressive stacking (Gong et al., ICML 2019, "Efficient Training of BERT by Progressively Stacking").
"""

import copy

import torch


def groups(model):
    """Its parameters as an optimizer has them: the matrices, and the vectors."""
    return [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]


@torch.no_grad()
def stack(model, optimizer):
    """h = f(f(x)) where it was f(x): copies of all layers on top, with their moments in the optimizer, in place."""
    layers = model.base_model.encoder.layer
    for layer in [*layers]:
        layers.append(copy.deepcopy(layer))
        for old, new in zip(layer.parameters(), layers[-1].parameters(), strict=True):
            optimizer.state[new] = {k: v.clone() for k, v in optimizer.state[old].items()}
    model.config.num_hidden_layers = len(layers)
    for group, parameters in zip(optimizer.param_groups, groups(model), strict=True):
        group["params"] = parameters  # in the model's order, as a resumed run has them
