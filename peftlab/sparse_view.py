"""Every method as a sparse model: Definitions 1 and 2 of Fu et al. (2211.15583) on a live model, and what breaks them.

    Def. 1   ‖θ - θ⁰‖₀ ≤ p·dim θ            a fine-tuned model is p-sparse: p is the share of its entries that changed
    Def. 2   M̃⁰(x) = M⁰(x) for every x      an equivalent model: here the backbone with a delta that does nothing yet

By way of Def. 2, Def. 1 covers methods that add something: θ̃ is then the backbone's numbers and the delta's own.
"""

import torch
from torch import nn

from . import masks
from .attachment import attach, trainable
from .backbones import head_parameters, sites
from .checkpoint import merge, tensors_of
from .errors import PeftlabError
from .methods import METHODS, get
from .quantized import Packed
from .spectra import changes
from .studies import learner
from .training import fit, machine

BATCH, ROUNDING = 32, 100  # rows at once; equal outputs may differ by so many times the precision of the largest logit
BACKBONE, TASK, WHERE = "nano-encoder", "entail", "q k v o up down"
LORA = dict(method="lora", where=WHERE, settings=dict(alpha=1))
FOUND = "apart tolerance equivalent changed size share own_changed own_size own_share reason".split()

# The definitions ----------------------------------------------------------------------------------


def sparse_models(methods=None, backbone=BACKBONE, task=TASK, steps=10, seed=0):
    """A row for each of `methods` (all that are registered without any), trained for `steps` at its own rate.

    apart: the largest |M⁰(x) - M̃⁰(x)| over the logits of 64 rows of validation when the delta has just been attached,
    in eval mode; equivalent: whether that is within `tolerance`, 100 × the precision of the dtype × the largest logit.
    Rows can refute "for every x", they cannot prove it.
    changed, size, share: ‖θ̃ - θ̃⁰‖₀, dim θ̃ and p, their ratio. θ̃ is the backbone without its head and every number
    that the deltas store; the positions of a mask and the seed of a projection are no numbers of the model.
    own_changed, own_size, own_share: the same for the backbone's own tensors once the delta is merged into them; None
    for a method that does not merge. LoRA changes few numbers of θ̃, and every entry of the W that it is merged into.
    title, review, delta_tuning, sparse_view, merges: from the registry. reason: why the method cannot do it, or None.

    Tensors are compared bit for bit. p depends on how θ̃ is written: a delta as large as W doubles dim θ̃ and can halve
    p. It depends on the data as well: full fine-tuning without weight decay leaves the words alone that it never saw.
    A method that trains before it chooses its mask does so for `steps` too.
    PeftlabError for an unknown method. Source: 2211.15583, definitions 1 and 2.
    """
    return [sparse_model(m, backbone, task, steps, seed) for m in map(get, methods or METHODS)]


def sparse_model(method, backbone, task, steps, seed):
    facts = {k: getattr(method, k) for k in ("title", "review", "delta_tuning", "sparse_view", "merges")}
    row = dict(method=method.name) | facts | dict.fromkeys(FOUND)
    try:
        return row | both_definitions(method, backbone, task, steps, seed)
    except PeftlabError as problem:
        return row | dict(reason=str(problem))


def both_definitions(method, backbone, task, steps, seed):
    model, task, _ = learner("head", task, seed, 0, backbone=backbone)
    rows, own = rows_of(model, task, seed), copied(numbers(model))
    plain = answers(model, rows)
    before_the_mask = dict(before=steps) if "before" in method.knobs else {}
    undo = attach(model, dict(method=method.name, settings=before_the_mask), seed)
    found, start = compared(answers(model, rows), plain), copied(numbers(model, undo))
    hidden = sum(m.hidden for m in model.modules() if isinstance(m, Packed))  # weights beyond the bytes they are in
    size = sum(t.numel() for t in start.values()) + hidden
    learn(model, task, undo, method.lr, steps, seed)
    found |= shares("", moved(start, numbers(model, undo)), size)
    if method.merges:
        merge(model, undo)
        found |= shares("own_", moved(own, numbers(model)), sum(t.numel() for t in own.values()))
    return found


def numbers(model, attached=None):
    """{name: tensor} of θ̃: the backbone without its head, and what the deltas attached to it store."""
    head = {id(p) for p in head_parameters(model).values()}
    found = {n: p for n, p in model.named_parameters() if id(p) not in head}
    known = {id(p) for p in found.values()}
    stored = tensors_of(attached) if attached else {}
    real = {n: t for n, t in stored.items() if t.is_floating_point() or t.dtype == torch.bool}
    return found | {n: t for n, t in real.items() if id(t) not in known}


def rows_of(model, task, seed):
    """64 rows of validation, as tensors."""
    return next(task.batches(model.tokenizer, "validation", 64, seed=seed))


@torch.no_grad()
def answers(model, rows):
    return model.eval()(**rows).logits


def compared(y, plain):
    """Def. 2 on these logits."""
    tolerance = ROUNDING * torch.finfo(plain.dtype).eps * float(plain.abs().max())
    apart = float((y - plain).abs().max())
    return dict(apart=apart, tolerance=tolerance, equivalent=apart <= tolerance)


def copied(tensors):
    return {n: t.detach().cpu().clone() for n, t in tensors.items()}


def moved(before, after):
    """‖after - before‖₀, tensors by name."""
    return sum(int((after[n].detach().cpu() != t).sum()) for n, t in before.items())


def shares(whose, changed, size):
    return {f"{whose}changed": changed, f"{whose}size": size, f"{whose}share": changed / size}


def learn(model, task, attached, lr, steps, seed, **how):
    with machine() as accelerator:
        torch.manual_seed(seed)
        model.to(accelerator.device)
        batches = task.batches(model.tokenizer, "train", BATCH, seed=seed)
        list(fit(model, batches, attached.deltas, lr, steps, accelerator=accelerator, **how))


# What breaks them ---------------------------------------------------------------------------------


class MaskedGradients:
    """AdamW on every weight matrix, with the gradient of all but ⌊p·m⌋ of their m entries set to 0 before a step.

    A mask as the code of 2211.15583 has it. The head learns as well; there is no dropout. before, weights: the matrices
    as they were and as they are; keep: which entries are to move.
    """

    def __init__(self, p, lr, weight_decay=0.0, backbone=BACKBONE, task=TASK, seed=0):
        self.model, task, _ = learner("head", task, seed, 0, backbone=backbone)
        self.batches = task.batches(self.model.tokenizer, "train", BATCH, seed=seed)
        self.weights = [m.weight.requires_grad_(True) for m in sites(self.model, WHERE)]
        self.before = self.flat()
        draw = torch.rand(len(self.before), generator=torch.Generator().manual_seed(seed))
        self.allowed = masks.share_of(p, len(draw))
        self.keep = torch.zeros(len(draw), dtype=torch.bool).index_fill(0, masks.best(draw, self.allowed), True)
        self.how = dict(lr=lr, weight_decay=weight_decay)
        self.forget()

    def forget(self):
        """A new optimizer: no moment of the past."""
        self.optimizer = torch.optim.AdamW(trainable(self.model), **self.how)

    def flat(self):
        return torch.cat([W.detach().flatten() for W in self.weights])

    def steps(self, n, masked=True):
        """Take n steps; yields the flat weights after each."""
        for _ in range(n):
            self.optimizer.zero_grad()
            self.model(**next(self.batches)).loss.backward()
            if masked:
                for W, M in zip(self.weights, self.keep.split([W.numel() for W in self.weights]), strict=True):
                    W.grad *= M.view_as(W)
            self.optimizer.step()
            yield self.flat()


def decayed(methods=("random-mask", "sam"), p=0.005, decays=(0.0, 0.01), steps=10, **place):
    """Rows {how, weight_decay, changed, allowed, size} of a mask of density p after `steps` with weight decay λ.

        θ ← (1 - η λ) θ - η m̂/(√v̂ + ε)

    A masked gradient empties the second term alone: AdamW goes on to shrink every entry, so that with λ > 0 all change
    that are not 0, and with λ = 0 exactly ⌊p·m⌋. `methods`, masks that store positions and values, stay exact with any
    λ, as it reaches their values only. allowed: ⌊p·m⌋; size: m, the entries of all weight matrices.
    place: backbone, task, seed. Source: 2211.15583, whose released code masks gradients and decays by 0.01.
    """
    rows = []
    for decay in decays:
        trap = MaskedGradients(p, get("full").lr, decay, **place)
        *_, after = trap.steps(steps)
        count, rest = int((after != trap.before).sum()), dict(weight_decay=decay, allowed=trap.allowed, size=len(after))
        rows.append(dict(how="gradients masked", changed=count) | rest)
        for name in methods:
            rows.append(dict(how=get(name).title, changed=values_only(name, p, decay, steps, **place)) | rest)
    return rows


def values_only(method, p, weight_decay, steps, backbone=BACKBONE, task=TASK, seed=0):
    """How many of the backbone's entries have changed once a mask that was trained with weight decay is merged."""
    model, task, _ = learner("head", task, seed, 0, backbone=backbone)
    before = copied(numbers(model))
    undo = attach(model, dict(method=method, settings=dict(p=p)), seed)
    learn(model, task, undo, get(method).lr, steps, seed, weight_decay=weight_decay)
    merge(model, undo)
    return moved(before, numbers(model))


def momentum(p=0.005, burn_in=20, steps=60, **place):
    """Rows {how, mean, most, changed, moving}: the drift of masked entries when a mask begins after a `burn_in`.

        |θ_t - θ_mask| / η over the masked entries, t steps after the mask: mean (a list over t), most (at the end)

    Adam's first moment outlives the gradient: while m fades, every step still moves the entry. An entry whose gradient
    was always the same, for long, goes on for β₁/(√β₂ - β₁) ≈ 9 learning rates; noisy ones are measured here. A new
    optimizer at the mask stops it, but what the burn-in changed stays changed: `changed` is the share of all entries
    that differ from θ⁰ in the end, and moving the share of the masked ones that drifted. The rate η is constant, λ = 0.
    place: backbone, task, seed. Source: 2211.15583, whose released code begins some masks after a burn-in.
    """
    return [drifted(p, burn_in, steps, forget, **place) for forget in (False, True)]


def drifted(p, burn_in, steps, forget, **place):
    lr = get("full").lr
    trap = MaskedGradients(p, lr, **place)
    *_, start = trap.steps(burn_in, masked=False)
    if forget:
        trap.forget()
    far = [((now - start)[~trap.keep] / lr).abs() for now in trap.steps(steps)]
    found = dict(mean=[float(t.mean()) for t in far], most=float(far[-1].max()))
    changed, moving = (float(t.float().mean()) for t in (trap.flat() != trap.before, far[-1] > 0))
    return dict(how="new optimizer" if forget else "moments kept") | found | dict(changed=changed, moving=moving)


def redrawn(row=LORA, backbone=BACKBONE, task=TASK, seed=0):
    """Rows {how, apart, tolerance, equivalent, relative}: a delta as it begins, and with its zero matrices drawn anew.

        ΔW⁰ = s·B A with B = 0, or with B ~ U(-1/√r, 1/√r)

    The zeros are what makes the model with the delta an equivalent one (Def. 2). relative: ‖ΔW⁰‖/‖W‖ over the sites.
    row: of a recipe; LORA is the LoRA of 2211.15583's released code, which draws B anew: six sites and α = 1.
    PeftlabError for a method that does not merge.
    """
    return [begun(row, drawn, backbone, task, seed) for drawn in (False, True)]


def begun(row, drawn, backbone, task, seed):
    model, task, _ = learner("head", task, seed, 0, backbone=backbone)
    batch = rows_of(model, task, seed)
    plain, undo = answers(model, batch), attach(model, row, seed)
    if drawn:
        draw_zeros(undo, seed)
    found = dict(how="zeros drawn anew" if drawn else "as attached") | compared(answers(model, batch), plain)
    places = sites(model, undo.recipe[0]["where"])
    change = changes(model, undo, undo.recipe[0]["where"])
    return found | dict(relative=norm(change.values()) / norm(m.weight for m in places))


@torch.no_grad()
def draw_zeros(attached, seed):
    """Every trained matrix that is zero gets Kaiming's uniform draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for p in (p for d in attached.deltas for p in d.parameters()):
            if p.requires_grad and p.ndim > 1 and not p.any():
                nn.init.kaiming_uniform_(p, a=5**0.5)


def norm(tensors):
    return float(sum(t.detach().square().sum() for t in tensors)) ** 0.5


def traps(p=0.005, steps=10, burn_in=20, after=60, **place):
    """{"decayed", "momentum", "redrawn"}: the rows of the three functions above, for `sparse_plots.traps`."""
    drift = momentum(p, burn_in, after, **place)
    return dict(decayed=decayed(p=p, steps=steps, **place), momentum=drift, redrawn=redrawn(**place))
