"""The entries of one weight matrix by three scores, which lab 02 draws before any code.

`python -m peftlab.mask_figure` makes data/results/mask_figure.json.
"""

import json

import numpy as np
import torch

from .backbones import backbone as load
from .backbones import sites
from .mask_plots import DENSITIES, NEVER, SCORES
from .masks import select
from .paths import data
from .scores import SCORES as MAKE
from .scores import Look
from .tasks import task as find
from .training import machine
from .view import View

PLACE = dict(task="entail", backbone="micro-encoder", site="q", layer=1, batches=16, batch=32, seed=0)


def measure(task, backbone, site, layer, batches, batch, seed):
    """(m, {score: tensor (out in)}) of one weight matrix, m its module; the head is as it was drawn, as for SAM."""
    task = find(task, seed=seed)
    torch.manual_seed(seed)
    model = load(backbone, head=task.kind, labels=len(task.labels))
    (m,) = [m for m in sites(model, site) if m.layer == layer]
    with machine():
        torch.manual_seed(seed)
        look = Look([m.weight], View(model, task.batches(model.tokenizer, "train", batch, seed=seed)), batches)
        return m, {name: MAKE[name].make(look)[0].detach() for name in SCORES}


def make(**place):
    """{place, heads, densities, levels}; levels[score] has a line for each row of the matrix, a letter for each entry.

    The letter is the number (in base 36) of the first density at which the score takes the entry.
    """
    place = PLACE | place
    m, found = measure(**place)
    levels = {}
    for name, score in found.items():
        letters = np.full(score.numel(), NEVER)
        for i, p in reversed([*enumerate(DENSITIES)]):  # a smaller density takes a part of what a larger one takes
            letters[select([score], p, "tensor").numpy()] = np.base_repr(i, 36).lower()
        levels[name] = ["".join(line) for line in letters.reshape(score.shape)]
    heads = m.heads if m.site in ("q", "k", "v") else 0  # elsewhere a row belongs to no head
    return dict(place=place, heads=heads, densities=DENSITIES, levels=levels)


def file():
    return data() / "results" / "mask_figure.json"


if __name__ == "__main__":
    file().write_text(json.dumps(make(), separators=(",", ":")) + "\n", encoding="utf-8")
