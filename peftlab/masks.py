"""Sparse masks: which entries of a backbone may change, what a recipe does change, what two masks share.

A selection takes the entries with the best scores (`peftlab.scores`): positions in all the tensors, laid end to end, in
ascending order; of equal entries the first.
"""

import math

import torch

from .backbones import layer_of
from .errors import PeftlabError

# Selection ----------------------------------------------------------------------------------------

SELECTIONS = {}


def selection(choose):
    """Register a way to choose: choose(scores, p, places) -> positions."""
    SELECTIONS[choose.__name__.strip("_").replace("_", "-")] = choose
    return choose


def select(scores, p, how="global", places=()):
    """Positions of the share p of all entries with the best scores, as the selection `how` takes them.

    scores: a tensor for each of `places`, the modules that they belong to. PeftlabError where p picks nothing.
    """
    many = sum(s.numel() for s in scores)
    if not 0 < p <= 1 or not len(found := SELECTIONS[how](scores, p, places)):
        what = f"at site {getattr(places[0], 'site', '?')}" if len(places) == 1 else f"of {len(places)} tensors"
        raise PeftlabError(
            f"density p = {p} picks {math.floor(p * many) if p < 1 else 'more than all'} of the {many} entries {what}; "
            f"take p between {1 / many:.1g} and 1"
        )
    return found


def best(score, k):
    """Positions of the k largest entries, ascending; of equal ones the first."""
    score = score.flatten()
    if not k:
        return score.new_empty(0, dtype=torch.long)
    least = score.topk(k).values[-1]
    over, tied = (mask.nonzero()[:, 0] for mask in (score > least, score == least))
    return torch.cat([over, tied[: k - len(over)]]).sort().values


def share_of(p, n):
    """⌊p·n⌋, unless p·n is a whole number that the machine has missed."""
    return math.floor(p * n + 1e-9)


def end_to_end(parts, sizes):
    """Positions in each tensor as positions in all of them."""
    offsets = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return torch.cat([part + offset for part, offset in zip(parts, offsets, strict=False)])


@selection
def global_(scores, p, places):
    """The best ⌊p·m⌋ of all m entries."""
    flat = torch.cat([s.flatten() for s in scores])
    return best(flat, share_of(p, len(flat)))


@selection
def tensor(scores, p, places):
    """The best ⌊p·n⌋ of the n entries of every tensor."""
    return end_to_end([best(s, share_of(p, s.numel())) for s in scores], [s.numel() for s in scores])


@selection
def row(scores, p, places):
    """The best ⌊p·n⌋ of the n entries of every row: each neuron keeps as many inputs."""
    return end_to_end([rows(s, share_of(p, s.shape[-1])) for s in scores], [s.numel() for s in scores])


def rows(score, k):
    score = score.reshape(-1, score.shape[-1])
    order = score.argsort(dim=1, descending=True, stable=True)[:, :k]
    return (order + score.shape[1] * torch.arange(len(score), device=score.device)[:, None]).flatten().sort().values


@selection
def n_of_m(scores, p, places):
    """The best entry of every ⌈1/p⌉ neighbours, 1 of 4 at p = 0.25: the pattern that hardware can use."""
    m = math.ceil(1 / p - 1e-9)
    parts = [rows(s.flatten()[: s.numel() // m * m].reshape(-1, m), 1) for s in scores]
    return end_to_end(parts, [s.numel() for s in scores])


def in_units(unit):
    """A selection of whole units, those with the best mean score; of the last one only what the budget leaves."""

    def choose(scores, p, places):
        flat = torch.cat([s.flatten() for s in scores]).float()
        units = torch.cat([u.expand(s.shape).flatten() for u, s in zip(unit(scores, places), scores, strict=True)])
        _, units, counts = units.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(counts)).to(flat).index_add_(0, units, flat) / counts
        rank = means.argsort(descending=True, stable=True).argsort()  # of equal units the first
        return best(-rank[units], share_of(p, len(flat)))

    return choose


def strips(scores, widths, columns):
    """Unit numbers: so many rows (or columns) of a tensor are one unit, and no two tensors share a number."""
    start, found = 0, []
    for s, width, across in zip(scores, widths, columns, strict=True):
        n = s.shape[-1] if across else len(s)
        ids = start + torch.arange(n, device=s.device) // width
        found.append(ids if across or s.ndim == 1 else ids[:, None])
        start += n
    return found


@in_units
def neuron(scores, places):
    return strips(scores, [1] * len(scores), [False] * len(scores))


@in_units
def head(scores, places):
    if any(m.site not in ("q", "k", "v", "o") for m in places):
        raise PeftlabError("only q k v o have heads; leave the other sites out, or select by neuron or layer")
    into = [m.site == "o" and s.ndim > 1 for m, s in zip(places, scores, strict=True)]
    widths = [(s.shape[-1] if c else len(s)) // m.heads for m, s, c in zip(places, scores, into, strict=True)]
    return strips(scores, widths, into)


@in_units
def layer(scores, places):
    return [torch.tensor(m.layer, device=s.device) for m, s in zip(places, scores, strict=True)]


@in_units
def module(scores, places):
    return [torch.tensor(i, device=s.device) for i, s in enumerate(scores)]


SELECTIONS |= dict(neuron=neuron, head=head, module=module, layer=layer)

# What a recipe changes ----------------------------------------------------------------------------


@torch.no_grad()
def changes(model, what, seed=0):
    """{parameter's name: booleans of its shape} of every tensor that the recipe can change, W' ≠ W.

    Found by trying: the deltas get random numbers and are merged, and all is undone. Rows of methods that do not merge
    (an adapter, a prompt) leave every weight as it is, so they are not in it. PeftlabError for a method that chooses
    its entries by the data: `peftlab.mask` has these.
    """
    from .attachment import attach
    from .methods import get
    from .recipes import recipe

    rows = [row for row in recipe(what) if get(row["method"]).merges]
    if not rows:
        return {}
    undo = attach(model, rows, seed=seed)
    if blind(undo):
        undo()
        names = " and ".join(dict.fromkeys(row["method"] for row in rows))
        raise Blind(f"{names} chooses its entries by the data; peftlab.mask(recipe, task=...) finds them")
    found = touched(model, undo, seed)
    undo()
    return found


class Blind(PeftlabError):
    """A mask whose entries are not known before the data has been seen."""


def blind(undo):
    """Whether a delta has yet to see the data before its entries are known."""
    return any(getattr(d, "blind", False) for d in undo.deltas)


@torch.no_grad()
def touched(model, undo, seed=0):
    """`changes` of deltas that are attached; they keep their numbers."""
    from .checkpoint import alone, tensors

    numbers = [p for d in undo.deltas for p in d.own().values() if p.requires_grad]
    kept = [p.detach().clone() for p in numbers]
    names = {id(m): n for n, m in model.named_modules()}
    with alone(model, undo), torch.random.fork_rng(devices=[]):
        undo.toggle(False)
        before = {(m, n): t.detach().clone() for d, m in undo.placed for (m, n), t in tensors(d, m)}
        undo.toggle(True)
        torch.manual_seed(seed)
        for p in numbers:
            p.add_(torch.randn_like(p))
        found = {f"{names[id(m)]}.{n}": t != before[m, n] for d, m in undo.placed for (m, n), t in tensors(d, m)}
        for p, was in zip(numbers, kept, strict=True):
            p.copy_(was)
    return {name: mask for name, mask in found.items() if mask.any()}


def places(model):
    """{parameter's name: (layer or None, site)} of the tensors at labelled places, a bias beside its weight."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "site", None), str):
            layer = None if module.site == "embed" else layer_of(module)
            under = [*getattr(module, "parametrizations", ()), *dict(module.named_parameters(recurse=False))]
            found |= {f"{name}.{n}": (layer, module.site) for n in under}
    return found


def share(mask, other=None):
    """Share of the entries that change; with `other`, Jaccard's |both| / |either| (None where neither changes any)."""
    if other is None:
        return float(mask.float().mean())
    either = (mask | other).sum()
    return float((mask & other).sum() / either) if either else None


def blocks(mask, most=48):
    """A mask (out in) as at most `most` × `most` blocks, each the share of its entries that change."""
    flat = mask.float().reshape(len(mask), -1) if mask.ndim > 1 else mask.float()[None]
    cut = [t.unbind(0) for t in flat.tensor_split(min(most, len(flat)))]
    rows = [torch.stack(t).mean(0) for t in cut]
    return [[float(c.mean()) for c in row.tensor_split(min(most, len(row)))] for row in rows]
