"""Experiments behind the figures of the labs: each a small function of its settings and a seed.

`pl.study("truncation", seeds)` finds what has been made before, as a run is found, and makes the rest. What travels
with the package is made by `python -m peftlab.studies`.
"""

import inspect
import itertools
from typing import NamedTuple

import torch

from . import __version__, ledger
from .attachment import attach
from .backbones import backbone as load
from .backbones import head_parameters, locate, set_head, sites
from .checkpoint import kept_state
from .errors import choose
from .laplace import Laplace, reliability
from .many import cores, counted, finished, side_by_side
from .methods import METHODS, get
from .mixing import lorahub, mix
from .paths import data, home
from .scoring import evaluate
from .spectra import changes, train
from .tasks import task as find
from .world import embedded

STUDIES, SEEDS, BACKBONE = {}, range(3), "micro-encoder"


class Study(NamedTuple):
    """cases: the settings with their default; a default that is a tuple means one case for each of its values.

    seeds: those that travel with the package.
    """

    make: object
    cases: dict
    seeds: range = SEEDS


def experiment(make, seeds=SEEDS):
    """Register a study. Its first argument is the seed; what it returns is kept as JSON."""
    given = list(inspect.signature(make).parameters.values())[1:]
    STUDIES[make.__name__] = Study(make, {p.name: p.default for p in given}, seeds)
    return make


def study(name, seeds=None, fresh=False, jobs=1, **settings):
    """Rows {seed, …settings, …what was found} of a study, for every case of its settings and every seed (None: those
    that travel with the package).

    A setting may be one value or a tuple of several: `pl.study("truncation", range(5), method="dylora", r=16)`.
    `fresh` makes everything again; jobs: processes that do. What is found is kept at once, so that it may be
    interrupted. PeftlabError for a study or a setting that does not exist.
    """
    one = STUDIES[choose(name, STUDIES, "study")]
    for key in settings:
        choose(key, one.cases, f"setting of the study {name}")
    every = one.seeds if seeds is None else seeds
    wanted = [(name, s, case) for case in cases(one.cases | settings) for s in every]
    due = [one for one in wanted if fresh or not kept(name, identify(*one))]
    for _ in finished(made for _, made in side_by_side(remade, due, counted(jobs))):
        pass
    return [case | dict(seed=s) | found(name, s, case) for _, s, case in wanted]


def cases(settings):
    """Every combination of the values that the settings may have."""
    lists = [v if isinstance(v, tuple | list) else (v,) for v in settings.values()]
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*lists)]


def identify(name, seed, case):
    """The hash by which a case is found; other weights, tasks or rates of the methods make it another one."""
    weights = ledger.fingerprint(locate(case.get("backbone", BACKBONE)))
    named = {k: v for k, v in case.items() if isinstance(v, str)}
    words = [t for k, v in named.items() for t in (v.split() if k == "sources" else [v])]
    worlds = {v: embedded.version(v) for v in words if embedded.known(v)}
    rates = {v: METHODS[v].lr for v in case.values() if v in METHODS}
    return ledger.digest([name, seed, case, __version__, weights, worlds, rates])


def found(name, seed, case, fresh=False):
    """What a study found in one case: from the files, or made now and kept."""
    key = identify(name, seed, case)
    known = None if fresh else kept(name, key)
    if not known:
        known = dict(hash=key, found=STUDIES[name].make(seed, **case))
        own(name).parent.mkdir(parents=True, exist_ok=True)
        ledger.append(known, own(name))
    return known["found"]


def remade(one, each=None, stop=None):
    """`found`, made now, as one of many that are made side by side."""
    return found(*one, fresh=True)


def kept(name, key):
    """The record of a case in the files, or None."""
    return ledger.find(key, shipped(name), own(name))


def shipped(name):
    return data() / "studies" / f"{name}.jsonl"


def own(name):
    return home() / "studies" / f"{name}.jsonl"


def learner(
    method, task, seed, steps, size=None, each=None, head="trained", head_of=None, backbone=BACKBONE, lr=None, **row
):
    """(model, task, attachment) after `steps` of training, at the method's own rate unless `lr` says otherwise.

    head: "trained" or "frozen"; head_of: the tensors of a head that is there already. row: more of the recipe.
    """
    task = find(task, size=size, seed=seed)
    torch.manual_seed(seed)
    model = load(backbone, head=task.kind, labels=len(task.labels))
    if head_of is not None:
        for name, p in head_parameters(model).items():
            p.data.copy_(head_of[name])
    set_head(model, head)
    return model, task, train(model, task, [dict(method=method) | row], seed, lr, steps, each=each)


# The studies --------------------------------------------------------------------------------------


@experiment
def ranks(seed, method=("adalora", "increlora"), task="entail", steps=200):
    """steps, and ranks[i]: [layer, site, rank] of every delta after the i-th of them."""
    seen = {}

    def look(row, undo):
        seen[row["step"]] = [[m.layer, m.site, d.n] for d, m in undo.placed]

    learner(method, task, seed, steps, each=look)
    return dict(steps=list(seen), ranks=list(seen.values()))


@experiment
def truncation(seed, method=("dylora", "lora"), task="entail", r=8, steps=200):
    """scores[b - 1]: on test when all but the first b ranks are cut off after training."""
    model, task, undo = learner(method, task, seed, steps, settings=dict(r=r, alpha=2 * r))
    scores = []
    for b in range(r, 0, -1):
        for d in undo.deltas:
            d.b, d.A.data[b:] = b, 0  # b is what DyLoRA divides by; a LoRA keeps its scale
        scores.insert(0, evaluate(model, task, "test"))
    return dict(scores=scores)


@experiment
def dimension(
    seed,
    backbone=("micro-encoder-10", "micro-encoder-30", "micro-encoder"),
    d=(64, 256, 1024, 2048, 4096),
    task="entail",
    steps=200,
    lr=1e-2,
):
    """score: on test, when fine-tuning may move the whole model in d directions only (SAID).

    Fewer directions have to move further, so the rate is above SAID's own: of 5e-3, 1e-2 and 2e-2 this was the best on
    validation at d = 512 (seed 5).
    """
    model, task, _ = learner("said", task, seed, steps, backbone=backbone, lr=lr, settings=dict(d=d))
    return dict(score=evaluate(model, task, "test"))


@experiment
def ceiling(seed, backbone=("micro-encoder-10", "micro-encoder-30", "micro-encoder"), task="entail", steps=200):
    """score: on test, when fine-tuning may move every number; what d90 is a share of."""
    model, task, _ = learner("full", task, seed, steps, backbone=backbone)
    return dict(score=evaluate(model, task, "test"))


@experiment
def bits(seed, method=("qlora", "loftq", "qa-lora"), bits=(2, 4, 8), task="entail", steps=200):
    """error: ‖W' - W‖/‖W‖ before training, over all the layers; score: on test, after it."""
    chosen, wide = dict(method=method, settings=dict(bits=bits)), get(method).where
    base = load(BACKBONE)
    moved = changes(base, attach(base, [chosen], seed=seed), wide)
    norm = lambda tensors: sum(float(t.square().sum()) for t in tensors) ** 0.5
    error = norm(moved.values()) / norm(m.weight.detach() for m in sites(base, wide))
    model, task, _ = learner(method, task, seed, steps, settings=dict(bits=bits))
    return dict(error=error, score=evaluate(model, task, "test"))


@experiment
def hub(seed, of=("reviews/hotel",), shots=16, steps=200):
    """weights: LoRAHub's, of modules trained on other tasks, for a new one with `shots` rows; scores on its test:
    without a module, with the best single one, with the mean of all, with LoRAHub's mixture."""
    known = ["reviews/restaurant", "reviews/film", "reviews/garden", "grammar", "cause"]
    model, _, _ = learner("head", known[0], seed, steps)
    head = {n: p.detach().clone() for n, p in head_parameters(model).items()}
    modules = [kept_state(learner("lora", t, seed, steps, head="frozen", head_of=head)[2]) for t in known]
    model, task, undo = learner("lora", of, seed, 0, size=shots, head="frozen", head_of=head)
    rows = next(task.batches(model.tokenizer, "train", shots, seed=seed))
    score, loss = lambda: evaluate(model, task, "test"), lambda: model(**rows).loss.detach()
    scores = dict(none=score())
    single = []
    for i in range(len(known)):
        mix(undo, modules, [float(i == j) for j in range(len(known))])
        single.append((float(loss()), score()))
    mix(undo, modules, [1 / len(known)] * len(known))
    scores |= {"best single": min(single)[1], "mean": score()}
    weights = lorahub(undo, modules, loss)
    return dict(modules=known, weights=weights, scores=scores | {"LoRAHub": score()})


@experiment
def calibration(seed, task="reviews", size=64, steps=100):
    """What a LoRA that is sure of itself says, plainly and by Laplace: the reliability of both on 512 rows of test."""
    model, task, undo = learner("lora", task, seed, steps, size)
    rows = lambda split, n: task.batches(model.tokenizer, split, n, seed=0)
    test, validation = next(rows("test", 512)), next(rows("validation", 128))
    with torch.no_grad():
        plain = model(**{k: v for k, v in test.items() if k != "labels"}).logits.softmax(1)
    posterior = Laplace(model, undo, [*itertools.islice(rows("train", 32), size // 32)], validation)
    return {name: reliability(p, test["labels"]) for name, p in dict(lora=plain, laplace=posterior(test)).items()}


def ship(name):
    """Put into the file that travels what its default cases need, and nothing else; returns their number."""
    one = STUDIES[name]
    wanted = [identify(name, seed, case) for case in cases(one.cases) for seed in one.seeds]
    have = {r["hash"]: r for file in (shipped(name), own(name)) for r in ledger.records(file)}
    kept = [have[key] for key in wanted if key in have]
    ledger.pack(shipped(name), kept)
    return len(kept)


def make(jobs=None):
    """Make what travels with the package and is not there yet, in as many processes as there are cores."""
    for name in STUDIES:
        study(name, jobs=jobs or cores())
        print(f"{name}: {ship(name)} cases", flush=True)


from . import (  # noqa: E402 (they register more of them here)
    additive_studies,  # noqa: F401
    hybrid_studies,  # noqa: F401
    sparse_studies,  # noqa: F401
    unified_studies,  # noqa: F401
)

if __name__ == "__main__":
    from peftlab import studies  # not this copy of it, which is called __main__

    studies.make()
