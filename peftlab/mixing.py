"""Trained deltas of one recipe, mixed: task arithmetic, and LoRAHub's search for the weights of a new task."""

import torch

from .checkpoint import fill, tensors_of
from .errors import PeftlabError


def mix(attached, states, weights):
    """δ = Σᵢ wᵢ δᵢ, tensor by tensor: the parameters of `attached` become the sum of kept states (dicts of tensors).

    For LoRA that is ΔW = (Σᵢ wᵢ Bᵢ)(Σⱼ wⱼ Aⱼ), with cross terms: the sum of the ΔWᵢ only where a delta is linear in its
    parameters. With the state at the start among them, weights 1 - Σ λ and λ are task arithmetic. PeftlabError when
    the states are of different recipes, or differ in what is not learnt.
    """
    if len(states) != len(weights) or not states:
        raise PeftlabError(f"{len(weights)} weights do not fit {len(states)} deltas; give one for each")
    mine, first = tensors_of(attached), states[0]
    if any(s.keys() != first.keys() for s in states):
        raise PeftlabError("these deltas are of different recipes; mix deltas of one method, sites and settings")
    learnt = {n for n in first if n in mine and mine[n].requires_grad}
    if odd := [n for s in states for n in first.keys() - learnt if not torch.equal(s[n], first[n])]:
        raise PeftlabError(f"{min(odd)} is not learnt, and yet these deltas differ in it; attach them with one seed")
    added = lambda n: sum(w * s[n] for w, s in zip(weights, states, strict=True))
    fill(mine, {n: added(n) if n in learnt else t for n, t in first.items()})


def lorahub(attached, states, loss, most=1.5, budget=40):
    """min over w of loss() + 0.05·mean |wᵢ|, w in [-most, most], without a gradient; returns the weights it found.

    states: kept deltas of other tasks, all of the recipe of `attached`, which is left with the best mixture. loss():
    of a few examples of the new task, evaluated `budget` times. The paper (2307.13269) searches with NGOpt, this is
    Nelder's and Mead's simplex; both start at w = 0.
    """
    import numpy as np
    from scipy.optimize import minimize

    @torch.no_grad()
    def cost(w):
        mix(attached, states, [float(x) for x in w])
        return float(loss()) + 0.05 * float(np.abs(w).mean())

    n = len(states)
    simplex = np.vstack([np.zeros(n), np.eye(n) * most / 3])
    found = minimize(
        cost,
        simplex[0],
        method="Nelder-Mead",
        bounds=[(-most, most)] * n,
        options=dict(initial_simplex=simplex, maxfev=budget),
    )
    best = [float(w) for w in found.x]
    mix(attached, states, best)
    return best
