"""What the bench has measured of one method on backbones of several sizes."""

import json
import pathlib

from .backbones import locate
from .errors import PeftlabError
from .paths import data
from .world.sweep import read


def by_size(method="prompt", other="full"):
    """Rows {backbone, numbers, task, metric, seed, score, other, chance} of the bench, where it has both methods.

    numbers: parameters of the backbone. other: the other method's score with the same task and seed. chance: what the
    best constant answer gets. Each method has the learning rate that was chosen for it there.
    `python -m peftlab.world verify` makes the runs. PeftlabError for methods that were measured on no backbone both.
    """
    runs = {(r["backbone"], r["task"], r["seed"], r["method"]): r for r in read(bench()).values()}
    pairs = [(r, runs.get((*place, other))) for (*place, arm), r in runs.items() if arm == method]
    rows = [
        {k: r[k] for k in ("backbone", "task", "metric", "seed", "score", "chance")}
        | dict(other=beside["score"], numbers=numbers(r["backbone"]))
        for r, beside in pairs
        if beside
    ]
    if not rows:
        known = ", ".join(sorted({arm for *_, arm in runs}))
        raise PeftlabError(f"the bench has no {method!r} beside {other!r} on one backbone; its methods are {known}")
    return rows


def bench():
    return data() / "results" / "bench.jsonl"


def numbers(backbone):
    """Parameters of a backbone that travels with the package, as its card has them."""
    return json.loads((pathlib.Path(locate(backbone)) / "card.json").read_text(encoding="utf-8"))["parameters"]
