"""python -m peftlab.shipped: make data/results/LAB.jsonl, the finished runs that travel with the package.

A lab asks for these runs as for any others and finds them in the ledger; whoever wants to see them happen passes fresh=True.
They must be made again whenever the shipped backbone, the shipped task, a default or the version changes.
"""

import os
import shutil
import tempfile

from . import ledger
from .paths import data
from .runs import identify, run, spec

LABS = {"00_tour": [dict(recipe=m, task="reviews", seed=s) for m in ("head", "lora", "full") for s in range(5)]}


def wanted(lab):
    """The specs behind a lab."""
    return [spec(**given) for given in LABS[lab]]


def stale(lab):
    """Specs of a lab whose shipped result is missing or was made from other data."""
    have = {r["hash"] for r in ledger.records(data() / "results" / f"{lab}.jsonl")}
    return [s for s in wanted(lab) if identify(s) not in have]


def make(lab, say=print):
    """Run all specs of a lab afresh and replace its file, whole or not at all."""
    with tempfile.TemporaryDirectory() as home:
        before, os.environ["PEFTLAB_HOME"] = os.environ.get("PEFTLAB_HOME"), home
        try:
            for one in wanted(lab):
                done = run(one, fresh=True)
                say(f"{lab}: {one['recipe'][0]['method']} seed {one['seed']}: {done.score:.3f} in {done.seconds:.1f} s")
            (data() / "results").mkdir(exist_ok=True)
            shutil.copy(ledger.own(), data() / "results" / f"{lab}.jsonl.new")
        finally:
            os.environ.pop("PEFTLAB_HOME")
            if before is not None:
                os.environ["PEFTLAB_HOME"] = before
    os.replace(data() / "results" / f"{lab}.jsonl.new", data() / "results" / f"{lab}.jsonl")


if __name__ == "__main__":
    for name in LABS:
        if stale(name):
            make(name)
        print(f"data/results/{name}.jsonl belongs to the shipped data")
