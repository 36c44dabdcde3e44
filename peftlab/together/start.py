"""How each of several runs begins: what is its own, and what a step of it is when it is alone."""

import dataclasses

import torch
from torch import nn

from .. import masks
from ..attachment import counts
from ..backbones import head_parameters
from ..delta import WeightDelta
from ..methods.masked import Mask
from ..runs import batches, laid_out
from ..training import look

ALONE = ("begin", "penalty", "compare", "after_step", "optimizer")  # what a common pass has no room for


@dataclasses.dataclass
class Start:
    """tensors: name -> what is the run's own. learns: name -> which entries of it learn. settings: (module's name,
    attribute) -> number. speeds: name -> factor of the rate. loss, norm: of a step that it takes alone on its first
    batch, with `nudge` (name -> tensor) added to what learns. sparse: its deltas are masks, its own are the weights.
    """

    task: object
    sparse: bool
    tensors: dict
    learns: dict
    settings: dict
    speeds: dict
    counts: dict
    nudge: dict
    loss: float
    norm: float


def start(spec, i=0):
    """The Start of run i; None when it has to be alone."""
    with laid_out(spec) as (model, task, undo, accelerator):
        sparse = bool(undo.deltas) and all(isinstance(d, Mask) for d in undo.deltas)
        if any(hasattr(d, verb) for d in undo.deltas for verb in ALONE[sparse:]):
            return None
        look(model, batches(spec, task, model), undo.deltas, accelerator)
        numbers, weights = counts(model), masks.touched(model, undo) if sparse else {}
        names, inside = {m: n for n, m in model.named_modules()}, [m for d in undo.deltas for m in d.modules()]
        settings = {(names[m], a): v for m in inside for a, v in vars(m).items() if type(v) is float}
        speeds = {f"{names[d]}.{n}": v for d in undo.deltas for n, v in getattr(d, "speeds", {}).items()}
        nudge = {} if sparse else nudges(own(model, undo), i)
        loss, norm = first_step(model.train(), next(batches(spec, task, model)), nudge, accelerator)
        if sparse:
            undo(), settings.clear()
        if not all(map(fits, owners(model, undo, weights).values())):
            return None
        found = own(model, undo, weights)
        learns = {n: torch.ones_like(t, dtype=torch.bool) for n, t in found.items() if t.requires_grad} | weights
        tensors = {n: t.detach().clone() for n, t in found.items()}
        return Start(task, sparse, tensors, learns, settings, speeds, numbers, nudge, loss, norm)


def owners(model, undo, weights=()):
    """Name -> module that has numbers of a run's own: deltas, the modules whose weights they change, those of the head
    and of these weights."""
    names = {m: n for n, m in model.named_modules()}
    placed = [m if isinstance(d, WeightDelta) else d for d, m in undo.placed]
    single = [n.rpartition(".")[0] for n in (*head_parameters(model), *weights)]
    return {names[m]: m for m in placed} | {n: model.get_submodule(n) for n in single}


def fits(m):
    """Whether a module can be given the rows of several runs: positions are looked up once for all rows."""
    return m.by_row if hasattr(m, "by_row") else not isinstance(m, nn.Embedding)


def own(model, undo, weights=()):
    """Name -> tensor of what a run has for itself: its deltas, its head, these weights."""
    mine = {id(t) for d in undo.deltas for t in (*d.parameters(), *d.buffers())}
    wanted = head_parameters(model).keys() | set(weights)
    return {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if id(t) in mine or n in wanted}


def nudges(tensors, seed):
    """What is added where a step is tried: deltas begin with zeros, and a product with small numbers would hide as well
    what runs share."""
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items() if t.requires_grad}


def first_step(model, batch, nudge, accelerator):
    """Loss and norm of the gradient on a batch, with these numbers added for the moment."""
    learnt = dict(model.named_parameters())
    kept = {n: learnt[n].data for n in nudge}
    for n, t in nudge.items():
        learnt[n].data = kept[n] + t.to(kept[n])
    with accelerator.autocast():
        loss = model(**{k: v.to(accelerator.device) for k, v in batch.items()}).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    for n, t in kept.items():
        learnt[n].data = t
    return float(loss.detach()), float(norm)


def levelled(starts):
    """Whether the runs have the same tensors. A weight of which only some runs change entries is the others' too."""
    if starts[0].sparse:
        every = {n: t for s in starts for n, t in s.tensors.items()}
        for s in starts:
            s.tensors = every | s.tensors
            s.learns = {n: torch.zeros_like(t, dtype=torch.bool) for n, t in every.items()} | s.learns
    first, *others = starts
    return all(s.tensors.keys() == first.tensors.keys() and s.learns.keys() == first.learns.keys() for s in others)
