"""How a fine-tuned weight has changed: the singular values of ΔW, of full fine-tuning and of LoRA at several ranks.

`python -m peftlab.spectra` makes data/results/spectra.json, which lab 03 draws before any code.
"""

import json

import torch

from .attachment import attach
from .backbones import backbone as load
from .backbones import sites
from .checkpoint import merge
from .methods import get
from .paths import data
from .tasks import task as find
from .training import fit, machine

PLACE = dict(task="reviews", backbone="micro-encoder", where="q v", size=256, steps=200, batch=32)
RANKS, SEEDS = (1, 2, 4, 8, 16, 32), (0, 1, 2)


def train(model, task, recipe, seed=0, lr=None, steps=200, batch=32, each=None):
    """Attach a recipe and train it with its own learning rate; returns the Attachment. A head learns with it.

    each(row, attachment) is called for every row of `fit`.
    """
    undo = attach(model, recipe, seed=seed)
    lr = lr or get(undo.recipe[0]["method"]).lr
    with machine() as accelerator:
        torch.manual_seed(seed)
        batches = task.batches(model.tokenizer, "train", batch, seed=seed)
        rows = fit(model.to(accelerator.device), batches, undo.deltas, lr, steps, accelerator=accelerator)
        for row in rows:
            if each:
                each(row, undo)
    model.cpu()  # who goes on with it has rows on the CPU
    return undo


def changes(model, attached, where="q v"):
    """{(layer, site): ΔW (out in)}: what a delta that merges adds to the weights at these sites."""
    places = sites(model, where)
    unmerge = merge(model, attached)
    after = [m.weight.detach().clone() for m in places]
    unmerge()()
    return {(m.layer, m.site): t - m.weight.detach() for m, t in zip(places, after, strict=True)}


def spectrum(recipe, seed, task, backbone, where, size, steps, batch):
    """Singular values of ΔW, the largest first: the root mean square over the sites."""
    task = find(task, size=size, seed=seed)
    torch.manual_seed(seed)
    model = load(backbone, head=task.kind, labels=len(task.labels))
    found = changes(model, train(model, task, recipe, seed, steps=steps, batch=batch), where)
    values = torch.stack([torch.linalg.svdvals(t) for t in found.values()])
    return [round(v, 6) for v in values.square().mean(0).sqrt().tolist()]


def lora(r):
    """The recipe of rank r with α = 2 r, so that its scale is the same for all ranks."""
    return [dict(method="lora", where="q v", settings=dict(r=r, alpha=2 * r))]


def make(say=print, **place):
    """{"full" or a rank: [spectrum of every seed]}, and where it was measured."""
    place = PLACE | place
    wanted = {"full": "full"} | {str(r): lora(r) for r in RANKS}
    found = {}
    for name, recipe in wanted.items():
        found[name] = [spectrum(recipe, seed, **place) for seed in SEEDS]
        say(f"{name}: the largest singular value {found[name][0][0]:.3f}")
    return dict(place=place, spectra=found)


def file():
    return data() / "results" / "spectra.json"


if __name__ == "__main__":
    file().write_text(json.dumps(make(), separators=(",", ":")) + "\n", encoding="utf-8")
