"""python -m peftlab.shipped: make data/results/LAB.jsonl.gz, the finished runs that travel with the package.

A lab asks for these runs as for any others and finds them in the ledger; `fresh=True` makes them happen anyway.
They must be made again whenever the shipped backbone, the shipped task, a default or the version changes.
"""

import os

from . import budgets, ledger, sparse_league
from .many import finished, outcomes
from .paths import data
from .specs import identify, spec

LABS = {  # file -> the specs behind it, in the order in which they are made
    "00_tour": lambda: [spec(m, task="reviews", seed=s) for m in ("head", "lora", "full") for s in range(5)],
    "01_rates": budgets.LEAGUES["additive"].trials,
    "01_additive": budgets.LEAGUES["additive"].specs,
    "03_rates": budgets.LEAGUES["reparameterized"].trials,
    "03_reparameterized": budgets.LEAGUES["reparameterized"].specs,
    "04_rates": budgets.LEAGUES["hybrid"].trials,
    "04_hybrid": budgets.LEAGUES["hybrid"].specs,
    "05_rates": budgets.LEAGUES["unified"].trials,
    "05_unified": budgets.LEAGUES["unified"].specs,
    "06_rates": sparse_league.trials,
    "06_sparsity": sparse_league.main,
    "06_perturbed": sparse_league.perturbed,
    "02_density": sparse_league.sweep,
}
CURVES = ("00_tour",)


def wanted(lab):
    """The specs behind a lab."""
    return LABS[lab]()


def file(lab):
    return data() / "results" / f"{lab}.jsonl"


def kept(*labs):
    """hash -> record of the shipped results, of all labs without any."""
    return {r["hash"]: r for lab in labs or LABS for r in ledger.records(file(lab))}


def own(lab):
    """hash -> spec of a lab's runs that are not an earlier lab's."""
    earlier = [*LABS][: [*LABS].index(lab)]
    have = kept(*earlier) if earlier else {}
    return {key: s for s in wanted(lab) if (key := identify(s)) not in have}


def stale(lab):
    """Specs of a lab whose shipped result is missing or was made from other data."""
    have = kept(lab)
    return [s for key, s in own(lab).items() if key not in have]


def make(lab, jobs=1, say=print):
    """Run the stale specs of a lab in `jobs` processes. What is done stays in its file, so it may be interrupted."""
    target, due = file(lab), stale(lab)
    for i, one in enumerate(finished(outcomes(due, jobs, fresh=True, ordered=False)), 1):
        ledger.append(one.json(), target)
        what = f"{one.spec['recipe'][0]['method']} seed {one.spec['seed']} lr {one.spec['lr']:g}"
        say(f"{lab} {i}/{len(due)} {what}: {one.score:.3f}  {one.seconds:.0f} s", flush=True)
    have = kept(lab)
    ledger.pack(target, [have[key] | thin(lab) for key in own(lab)])


def thin(lab):
    """What a record leaves out: of choices of rates all but their scores, and where nobody draws it the curve."""
    if lab.endswith("_rates"):
        return dict(rows=[], baselines={}, counts={}, peak={}, versions={})
    return {} if lab in CURVES else dict(rows=[])


if __name__ == "__main__":
    for name in LABS:
        if stale(name):
            make(name, jobs=os.cpu_count() // 2 or 1)
        print(f"data/results/{name}.jsonl.gz belongs to the shipped data")
