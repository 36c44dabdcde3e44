"""python -m peftlab.shipped: make data/results/LAB.jsonl, the finished runs that travel with the package.

A lab asks for these runs as for any others and finds them in the ledger; `fresh=True` makes them happen anyway.
They must be made again whenever the shipped backbone, the shipped task, a default or the version changes.
"""

import os
import pathlib
import shutil
import tempfile

from . import ledger
from .paths import data
from .runs import identify, run, spec

LABS = {"00_tour": [dict(recipe=m, task="reviews", seed=s) for m in ("head", "lora", "full") for s in range(5)]}


def wanted(lab):
    """The specs behind a lab."""
    return [spec(**given) for given in LABS[lab]]


def kept(lab):
    """hash -> record of the shipped results."""
    return {r["hash"]: r for r in ledger.records(data() / "results" / f"{lab}.jsonl")}


def stale(lab):
    """Specs of a lab whose shipped result is missing or was made from other data."""
    have = kept(lab)
    return [s for s in wanted(lab) if identify(s) not in have]


def make(lab, say=print):
    """Run the stale specs of a lab and replace its file, whole or not at all."""
    target, have = data() / "results" / f"{lab}.jsonl", kept(lab)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh = pathlib.Path(folder) / target.name
        for one in wanted(lab):
            record = have.get(identify(one))
            if record is None:
                record = run(one, fresh=True).json()
                say(f"{lab}: {one['recipe'][0]['method']} seed {one['seed']}: {record['score']:.3f}")
            ledger.append(record, fresh)
        shutil.copy(fresh, f"{target}.new")
    os.replace(f"{target}.new", target)


if __name__ == "__main__":
    for name in LABS:
        if stale(name):
            make(name)
        print(f"data/results/{name}.jsonl belongs to the shipped data")
