"""A ProPETL prototype, and what each layer takes of it, while they learn: for lab 05.

`python -m peftlab.unified_figure` makes data/results/unified_figure.json.
"""

import json

import numpy as np

from .additive_figure import STEPS, followed
from .paths import data
from .specs import spec

PLACE = dict(task="reviews", backbone="micro-encoder", seed=0, r=8, p=0.5)


def make(until=STEPS[-1], **place):
    """{place, steps, width, D, masks}: the prototype's D (r d) in hundredths at each step, and the masks of the layers.

    masks[step][layer] has a word for each row of D, the row's bits in hexadecimal.
    """
    place, width = PLACE | place, []

    def look(model, task, attached):
        prototype = attached.deltas[0].D.detach().cpu().numpy()
        width[:] = prototype.shape[1:]
        taken = [d.masks()[0].cpu().numpy() for d in attached.deltas]
        return np.rint(100 * prototype).astype(int).tolist(), [[word(row) for row in M] for M in taken]

    seen = followed(spec("propetl-adapter", **place, steps=STEPS[-1]), look, until)
    D, masks = zip(*seen, strict=True)
    return dict(place=place, steps=[s for s in STEPS if s <= until], width=width[0], D=D, masks=masks)


def word(bits):
    """Booleans in hexadecimal; `unified_plots.bits` reads them."""
    return np.packbits(bits).tobytes().hex()


def file():
    return data() / "results" / "unified_figure.json"


if __name__ == "__main__":
    file().write_text(json.dumps(make(), separators=(",", ":")) + "\n", encoding="utf-8")
