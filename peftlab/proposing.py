"""The Bayesian part of a search: the design that promises the greatest gain of hypervolume."""

import contextlib

import torch

RESTARTS, SAMPLES = 5, 512  # of the local search for it


def proposer(space):
    """For optuna's BoTorchSampler: a function (x, y, constraints, bounds, pending) -> the next x.

    Validation has a Gaussian process, whose noise is learned from it. What a design trains needs no model, it is
    counted. The gain is expected over what the process holds possible, also of the designs that were tried (qLogNEHVI,
    2310.20708). Designs are points of a grid, and the search for the best of them goes from neighbour to neighbour.
    """
    from botorch.acquisition.multi_objective import logei
    from botorch.exceptions import ModelFittingError
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelList, SingleTaskGP
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.models.transforms import Standardize
    from botorch.optim import optimize_acqf_discrete_local_search
    from botorch.utils.transforms import normalize, unnormalize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    logei._load_attempted = True  # else the first search compiles C++, half a minute, and each machine rounds its way
    Gain = logei.qLogNoisyExpectedHypervolumeImprovement
    names = sorted(space.distributions())  # the columns of x

    def propose(x, y, constraints, bounds, pending):  # x (t d) steps and bits, y (t 2)
        z, width = normalize(x, bounds), bounds[1] - bounds[0]
        process = SingleTaskGP(z, y[:, :1], outcome_transform=Standardize(1))
        with contextlib.suppress(ModelFittingError):  # it then is what its priors say
            fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
        count = GenericDeterministicModel(lambda z: -decades(space, names, unnormalize(z, bounds)))
        waiting = normalize(pending, bounds) if pending is not None and len(pending) else None
        worst = (y.min(0).values - 1e-8).tolist()
        gain = Gain(ModelList(process, count), worst, z, prune_baseline=True, cache_root=False, X_pending=waiting)
        steps = [torch.arange(len(space.sizes) if name in space.prices else 2).to(x) for name in names]
        grid = [(step - low) / (high - low) for step, (low, high) in zip(steps, bounds.T, strict=True)]
        known = z if waiting is None else torch.cat([z, waiting])
        best, _ = optimize_acqf_discrete_local_search(
            gain, grid, 1, min(RESTARTS, space.designs - len(known)), SAMPLES, something(space, names, width), known
        )
        return unnormalize(best, bounds)

    return propose


def decades(space, names, x):
    """log₁₀ of the numbers that designs train: x (… d) -> (… 1)"""
    step = lambda name: x[..., names.index(name)].round().long()
    sizes = torch.tensor(space.sizes).to(x)
    bits = torch.stack([step(f"layer {i}") for i in range(space.layers)], -1)  # (… L)
    numbers = 0
    for part, prices in space.prices.items():
        a, b = torch.tensor(prices).to(x).T  # (L)
        r = sizes[step(part)][..., None]  # (… 1)
        numbers = numbers + (bits * (r > 0) * (a * r + b)).sum(-1, keepdim=True)
    return numbers.log10()


def something(space, names, width):
    """Linear constraints Σ wᵢ zᵢ ≥ bound: one layer at least is on, and one part at least has a size."""
    groups = [[i for i, name in enumerate(names) if name not in space.prices]]
    if 0 in space.sizes:
        groups.append([i for i, name in enumerate(names) if name in space.prices])
    return [(torch.tensor(g), width[g], 0.5 * len(g) + 0.5) for g in groups]  # step i is at zᵢ = (step + ½) / wᵢ
