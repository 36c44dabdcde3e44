"""The sweep: each method's learning rate, chosen on validation by runs that are kept in data/results/sweep.jsonl.

`python -m peftlab.world sweep` makes them, `rate(backbone, method)` reads the choice. The runs of the sweep and of the
gate (verify.py) come from the two tables here, and go through the same code as everybody's runs.
"""

import json
import os
import pathlib
import time
from typing import NamedTuple
from unittest.mock import patch

from .. import ledger, runs
from ..backbones import locate
from ..errors import choose
from ..many import counted, finished, side_by_side
from ..methods import get
from ..paths import data, home
from ..tasks import task as load_task
from ..training import NotFinite
from . import embedded
from .kinds import KINDS

COMMAND = "python -m peftlab.world sweep"
FIRST = "micro-encoder"  # the backbone of the defaults
SEEDS = (5, 6)  # not those of the gate, which are 0 to 4
SWEPT = ("reviews", "paraphrase", "entail", "refer")  # one of each sort: a sentence, two, three classes, a choice
FIELDS = tuple("key backbone task method seed lr steps validation seconds version sha256".split())


class Arm(NamedTuple):
    """What the gate compares: how its spec differs from the default, and the learning rates that are tried for it."""

    changes: dict
    rates: tuple


ARMS = {
    "full": Arm(dict(recipe="full"), (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
    "scratch": Arm(dict(recipe="full", pretrained=False), (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)),
    "head": Arm(dict(recipe="head"), (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)),
    "lora": Arm(dict(recipe="lora"), (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)),
    "adapter": Arm(dict(recipe="adapter"), (2e-3, 5e-3, 7e-3, 1e-2, 2e-2)),
    "bitfit": Arm(dict(recipe="bitfit"), (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)),
    "prompt": Arm(dict(recipe="prompt"), (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)),
}


class Part(NamedTuple):
    """What runs on a backbone: these arms on these tasks."""

    arms: tuple
    tasks: tuple


JUDGED = tuple(k.name for k in KINDS.values() if k.kind in ("classification", "regression"))
BENCH = {
    FIRST: Part(tuple(ARMS), JUDGED),
    "nano-encoder": Part(("full", "lora", "prompt"), SWEPT),
    "mini-encoder": Part(("full", "prompt"), SWEPT),
    "micro-seq2seq": Part(("full", "scratch"), ("translate",)),
    "micro-decoder": Part(("full", "scratch"), ("describe",)),
}


class Trial(NamedTuple):
    """One run that is wanted; `key` is its content: the spec, the version of the world, the weights."""

    key: str
    arm: str
    spec: dict
    sha256: str


def trial(backbone, task, arm, seed, lr, **sizes):
    """A Trial at the default size and steps, unless `sizes` says otherwise."""
    sizes = dict(every=sizes.get("steps", 200)) | sizes  # a row more changes nothing in a run, but its validation costs
    spec = runs.spec(**ARMS[arm].changes, backbone=backbone, task=task, seed=seed, lr=lr, **sizes)
    digest = weights(backbone)
    return Trial(ledger.digest([spec, embedded.version(task), digest]), arm, spec, digest)


def weights(backbone):
    """SHA-256 of the backbone's weights, as its card says it."""
    path = pathlib.Path(locate(backbone)) / "model.safetensors"
    return ledger.content(path, path.stat().st_size, path.stat().st_mtime_ns)


def parts(names=()):
    """The lines of BENCH with these names (all of them without any); PeftlabError for a name that is not in it."""
    return {name: BENCH[choose(name, BENCH, "backbone of the gate")] for name in names or BENCH}


def swept(part):
    """The tasks of a part on which its rates are chosen."""
    return [t for t in part.tasks if t in SWEPT] or part.tasks


def grid(names=(), seeds=SEEDS, **sizes):
    """All trials of the sweep, key -> Trial. The rates come outermost, so that a sweep cut short chooses nothing."""
    return {
        one.key: one
        for name, part in parts(names).items()
        for arm in part.arms
        for lr in ARMS[arm].rates
        for task in swept(part)
        for seed in seeds
        for one in [trial(name, task, arm, seed, lr, **sizes)]
    }


def sweep(names=(), jobs=1, path=None, say=print, seeds=SEEDS, **sizes):
    """Make the runs of the sweep that are not in the file yet, and say which rate each arm gets.

    About 55 core-minutes for micro-encoder (320 runs), 9 for nano-encoder (152), 80 for mini-encoder (112), 60 for the
    two that write (56), whose scoring takes longer than their training.
    """
    fill(path or file(), grid(names, seeds, **sizes), FIELDS, jobs, say)
    for name, part in parts(names).items():
        say(f"\n{name}: mean on validation ({', '.join(swept(part))})")
        for arm in part.arms:
            means, best = scores(name, arm, path), winner(name, arm, path)
            line = "  ".join(f"{lr:g}{'*' if lr == best else ''}: {mean:.4f}" for lr, mean in means.items())
            edge = best in (ARMS[arm].rates[0], ARMS[arm].rates[-1])
            say(f"  {arm:8} {line}" + ("   (the best is at the edge: widen the grid)" if edge else ""))


def rate(backbone, method, path=None):
    """The learning rate of an arm on a backbone: the sweep's, else the sweep's on micro-encoder, else the default."""
    arm = choose(method, ARMS, "method of the gate")
    found = winner(backbone, arm, path) or winner(FIRST, arm, path)
    return found or get(ARMS[arm].changes["recipe"]).lr


def winner(backbone, arm, path=None):
    """The rate with the best mean on validation, the lower one of equals; None while the sweep of it is incomplete."""
    means = scores(backbone, arm, path)
    return max(means, key=means.get) if set(means) == set(ARMS[arm].rates) else None


def scores(backbone, arm, path=None):
    """{rate: mean on validation over tasks and seeds}, in rising order, of the runs that belong to the present data."""
    by_rate = {}
    for r in read(path or file()).values():
        if (r["backbone"], r["method"]) == (backbone, arm) and current(r):
            by_rate.setdefault(r["lr"], []).append(r["validation"])
    most = max(map(len, by_rate.values()), default=0)
    return {lr: sum(found) / most for lr, found in sorted(by_rate.items()) if len(found) == most}


def current(record):
    """Whether a record belongs to the task and to the weights as they are now."""
    return record["version"] == embedded.version(record["task"]) and record["sha256"] == weights(record["backbone"])


def file():
    return data() / "results" / "sweep.jsonl"


def read(path):
    """key -> record of a file of runs; nothing when there is no file."""
    path = pathlib.Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    return {r["key"]: r for r in map(json.loads, lines)}


def keep(path, new=(), wanted=None):
    """Add records to a file of runs, whole or not at all; with `wanted` drop what nobody wants of its backbones."""
    import filelock

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = {one.spec["backbone"] for one in (wanted or {}).values()}
    with filelock.FileLock(home() / f"{path.name}.lock", timeout=60):  # two parts of the gate may run side by side
        have = {k: r for k, r in read(path).items() if r["backbone"] not in ours or k in wanted}
        have |= {r["key"]: r for r in new}
        order = sorted(have.values(), key=lambda r: [r.get(k, 0) for k in FIELDS[1:6]])
        text = "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in order)
        pathlib.Path(f"{path}.new").write_text(text, encoding="utf-8", newline="\n")
        os.replace(f"{path}.new", path)
    return have


def fill(path, wanted, fields, jobs=1, say=print):
    """Run what the file lacks of `wanted` (key -> Trial), in `jobs` processes of one thread; each is kept when done."""
    have = keep(path, wanted=wanted)
    due = [one for key, one in wanted.items() if key not in have]
    if due:
        say(f"{len(due)} of {len(wanted)} runs are to be made")
    for i, r in enumerate(outcomes(due, jobs), 1):
        keep(path, [{k: r[k] for k in fields}])
        figure = r.get("score" if "score" in fields else "validation")
        words = f"{r['backbone']} {r['task']} {r['method']} seed {r['seed']} lr {r['lr']:g}: {figure:.4f}"
        say(f"{i}/{len(due)} {words}{' (diverged)' if r['diverged'] else ''}  {r['wall']:.0f} s")


def outcomes(trials, jobs=1):
    """The records of these trials, as they come. After Ctrl-C those that had ended come first."""
    yield from finished(record for _, record in side_by_side(outcome, [*trials], counted(jobs)))


def outcome(one, each=None, stop=None):
    """Make the run: a record of all that the sweep or the gate keeps of it, None if it was cut short.

    A run that diverged has earned nothing.
    """
    start, spec = time.perf_counter(), one.spec
    with patch.dict(os.environ, PEFTLAB_DEVICE="cpu", PEFTLAB_THREADS="1"):  # what makes a run repeat
        try:
            result, _ = runs.execute(spec, one.key, each, stop=stop)
            if result.stopped:
                return None
        except NotFinite:
            result = runs.Result(spec, one.key, spec["task"], "", score=0.0, validation=0.0, versions=runs.versions())
    return dict(
        {k: spec[k] for k in ("backbone", "task", "seed", "lr", "steps")},
        key=one.key,
        method=one.arm,
        validation=round(result.validation, 5),
        score=round(result.score, 5),
        metric=result.metric,
        chance=round(chance(spec) or 0.0, 5),
        percent=round(result.counts.get("percent", 0.0), 3),
        seconds=round(result.seconds, 2),
        wall=round(time.perf_counter() - start, 1),
        diverged=not result.metric,
        version=embedded.version(spec["task"]),
        sha256=one.sha256,
        versions=result.versions,
    )


def chance(spec):
    """The test score of the best constant answer (None where none has a score)."""
    task = load_task(spec["task"], size=spec["size"], seed=spec["seed"], **spec["task_knobs"])
    if not task.labels:
        return task.majority()
    truth = task.answers("test")
    return max(task.score([label] * len(truth), truth) for label in range(len(task.labels)))
