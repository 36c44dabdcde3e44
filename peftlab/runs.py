"""A spec is a JSON-able dict; `run(spec)` is a pure function of it, and leaves a Result in memory and in the ledger."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import sys

from . import __version__, ledger
from .attachment import attach, counts
from .backbones import backbone as load_backbone
from .backbones import head_parameters, set_head
from .errors import PeftlabError, choose
from .methods import get
from .paths import data, home
from .recipes import recipe as complete
from .results import Result, frame
from .scoring import evaluate
from .tasks import DEFAULTS
from .tasks import task as load_task
from .training import PRECISIONS, fit, machine
from .world import embedded

__all__ = ["Result", "baselines", "fit", "frame", "run", "spec"]
HEADS = ("trained", "frozen", "shared")
GLANCE = 256  # validation rows behind the figures in rows; the final score uses all


def spec(
    recipe="lora",
    where=None,
    layers=None,
    *,
    backbone="micro-encoder",
    task="reviews",
    seed=0,
    steps=200,
    batch=32,
    lr=None,
    size=None,
    head="trained",
    precision="fp32",
    accumulate=1,
    pretrained=True,
    every=10,
    task_knobs=None,
    **settings,
):
    """A complete spec: everything that decides a run, as a JSON-able dict.

    recipe: a method's name (with where, layers and settings such as r=8) or a list of rows. lr: None is the method's
    own. size: rows of the training split, None is the task's own. head: trained with the delta, frozen as drawn, or
    shared (trained once by a head-only run, then frozen). precision: fp32, bf16 or fp16. accumulate: parts in which
    each batch is worked off.
    every: steps between rows. task_knobs: `lang` and the knobs of `task`. PeftlabError names what is wrong and what
    would be right.
    """
    rows = complete(recipe, where, layers, **settings)
    whole = dict(steps=steps, batch=batch, accumulate=accumulate, every=every)
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PeftlabError(f"{name} must be a whole number from 1, not {value!r}")
    if batch % accumulate:
        raise PeftlabError(f"batch {batch} cannot be worked off in {accumulate} equal parts; accumulate must divide it")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PeftlabError(f"seed must be a whole number from 0, not {seed!r}")
    lr = min(get(row["method"]).lr for row in rows) if lr is None else lr
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < float("inf"):
        raise PeftlabError(f"lr must be a number above 0, not {lr!r}")
    choose(head, HEADS, "head policy")
    choose(precision, PRECISIONS, "precision")
    knobs = {k: v for k, v in sorted((task_knobs or {}).items()) if v is not None and v != DEFAULTS.get(k)}
    return dict(
        recipe=rows,
        backbone=str(backbone),
        task=str(task),
        seed=seed,
        **whole,
        lr=float(lr),
        size=size,
        head=head,
        precision=precision,
        pretrained=bool(pretrained),
        task_knobs=knobs,
    )


SPEC_KEYS = (
    "recipe backbone task seed steps batch accumulate every lr size head precision pretrained task_knobs"
).split()


def identify(spec):
    """The hash by which a run is found: its spec, the package's version, the content of the task and the weights."""
    world = embedded.known(spec["task"])
    task = [] if world else [spec["task"].removeprefix("file:")]
    local = [pathlib.Path(p).expanduser() for p in (spec["backbone"], data() / "backbones" / spec["backbone"], *task)]
    known = [ledger.fingerprint(p) for p in local if p.exists()]
    return ledger.digest([spec, __version__, known, embedded.version(spec["task"])])


def like(other, method, **changes):
    """The spec of a baseline: everything as in `other`, but this method with its own defaults and learning rate."""
    return spec(**other | dict(recipe=method, lr=None, head="trained") | changes)


def run(spec, each=None, fresh=False, stop=None):
    """Train and score what `spec` says; returns a Result, from the ledger when the same run is known (unless `fresh`).

    each(row) is called for every row, stop() after every update; a true answer of either stops the run. A stopped or
    interrupted run keeps its rows, has no score and is not stored. On CPU the same spec gives the same losses bit for
    bit. PeftlabError (with the rows so far as `.rows`) when the input is wrong, the loss is not finite or memory is
    exhausted.
    """
    spec = whole(spec)
    key = identify(spec)
    known = None if fresh else ledger.find(key)
    if known:
        return settle(Result.of(known))
    head = shared_head(spec, fresh, stop) if spec["head"] == "shared" else None
    if spec["head"] == "shared" and head is None:  # interrupted while the head was trained
        return Result(spec, key, spec["task"], "", stopped=True)
    result, _ = execute(spec, key, each, head, stop)
    if not result.stopped and os.environ.get("RANK", "0") == "0":
        store(result)
    return settle(result)


def whole(given):
    if isinstance(given, str):
        return spec(given)
    for name in given:
        choose(name, SPEC_KEYS, "key of a spec")
    return spec(**given)


def execute(spec, key, each=None, head=None, stop=None):
    """One run, without the ledger; returns its Result and the trained head's tensors."""
    task = load_task(spec["task"], size=spec["size"], seed=spec["seed"], **spec["task_knobs"])
    with machine(spec["precision"], spec["accumulate"]) as accelerator:
        import torch

        torch.manual_seed(spec["seed"])
        model = load_backbone(
            spec["backbone"],
            head=task.kind,
            labels=len(task.labels or "x"),
            seed=spec["seed"],
            pretrained=spec["pretrained"],
        )
        task = suited(task, model)
        if head:
            with torch.no_grad():
                for name, p in head_parameters(model).items():
                    p.copy_(head[name])
        set_head(model, spec["head"])
        model.to(accelerator.device)
        result = Result(
            spec,
            key,
            spec["task"],
            task.metric,
            baselines=dict(majority=task.majority()),
            device=describe(accelerator),
            versions=versions(),
        )
        undo = attach(model, spec["recipe"], seed=spec["seed"])
        try:
            result.counts = counts(model)
            train(model, task, undo.deltas, accelerator, result, each, stop)
        except KeyboardInterrupt:  # the rows so far are the caller's
            result.stopped = True
        except PeftlabError as problem:
            problem.rows = result.rows
            raise
        finally:
            undo()
    return result, {name: p.detach().cpu().clone() for name, p in head_parameters(model).items()}


def train(model, task, deltas, accelerator, result, each, stop=None):
    """Fill `result` with the rows, the scores and the peaks of one training."""
    import torch

    spec, cuda = result.spec, accelerator.device.type == "cuda"
    part = spec["batch"] // spec["accumulate"] * (4 if task.kind in ("classification", "regression") else 1)
    score = lambda split, rows=None: evaluate(model, task, split, part, rows, accelerator)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(spec["seed"])  # the dropout of a run does not depend on how much its method drew before
    rows = fit(
        model,
        task.batches(model.tokenizer, "train", spec["batch"], seed=spec["seed"]),
        deltas,
        spec["lr"],
        spec["steps"],
        spec["every"],
        accelerator=accelerator,
        validate=lambda: score("validation", GLANCE),
        report=result.peak,
        stop=stop,
    )
    with contextlib.closing(rows):
        for row in rows:
            result.rows.append(row)
            result.seconds = row["seconds"]
            if each and each(row):
                result.stopped = True
                break
    result.stopped |= row["step"] < spec["steps"]
    result.peak |= dict(
        allocated_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        reserved_bytes=torch.cuda.max_memory_reserved() if cuda else None,
    )
    if not result.stopped:
        result.validation, result.score = score("validation"), score("test")


def suited(task, model):
    """Text and target are one sequence for a decoder, two for an encoder-decoder."""
    if task.kind not in ("lm", "seq2seq"):
        return task
    if model.kind == "encoder":
        raise PeftlabError(
            f"{task.name} is a task of generation, which needs a decoder or a T5; {model.backbone_name} is an encoder"
        )
    if model.kind == "seq2seq" and "target" not in task.data["train"].column_names:
        raise PeftlabError(f"{task.name} has no target text, which an encoder-decoder needs; take a decoder")
    return dataclasses.replace(task, kind="lm" if model.kind == "decoder" else "seq2seq")


def shared_head(other, fresh=False, stop=None):
    """The head of a head-only run of the same spec, kept under `home()/heads`; trained when it is not there yet."""
    from safetensors.torch import load_file, save_file

    only = like(other, "head")
    path = home() / "heads" / f"{identify(only)}.safetensors"
    if path.exists() and not fresh:
        return load_file(path)
    result, head = execute(only, identify(only), stop=stop)
    if result.stopped:
        return None
    if not head:
        raise PeftlabError("a language model's head is pretrained, so there is none to share; use head='trained'")
    store(result)
    with told("the shared head could not be kept, it is trained again next time"):
        path.parent.mkdir(exist_ok=True)
        save_file(head, f"{path}.{os.getpid()}")
        os.replace(f"{path}.{os.getpid()}", path)  # whole or not at all
    return head


def store(result):
    with told("the result is returned but not kept in the ledger"):
        ledger.append(result.json())


@contextlib.contextmanager
def told(consequence):
    """A full disk loses nothing that is in memory: say so in one sentence and go on."""
    try:
        yield
    except OSError as problem:
        print(f"peftlab: {consequence}: {problem.strerror or problem} ({home()})", file=sys.stderr)


def settle(result):
    """Baselines as the ledger knows them now."""
    for name in ("head", "full"):
        known = ledger.find(identify(like(result.spec, name)))
        result.baselines[name] = known["score"] if known else None
    return result


def baselines(spec, each=None, fresh=False):
    """Run head only and full fine-tuning of the same spec, so that a Result of it can show them."""
    has_head = load_task(spec["task"], size=spec["size"], seed=spec["seed"], **spec["task_knobs"]).labels is not None
    return [run(like(spec, name), each, fresh) for name in (("head", "full") if has_head else ("full",))]


def describe(accelerator):
    import torch

    kind = accelerator.device.type
    many = f" × {accelerator.num_processes}" if accelerator.num_processes > 1 else ""
    return (f"cuda ({torch.cuda.get_device_name(accelerator.device)})" if kind == "cuda" else kind) + many


def versions():
    from importlib.metadata import version

    return dict(
        peftlab=__version__,
        python=platform.python_version(),
        **{n: version(n) for n in ("torch", "transformers", "accelerate")},
    )
