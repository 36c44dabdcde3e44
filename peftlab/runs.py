"""`run(spec)` is a pure function of a spec, and leaves a Result in memory and in the ledger."""

import contextlib
import dataclasses
import os
import platform

from . import __version__, ledger, masks, sources, sparsity
from .attachment import attach, counts
from .backbones import backbone as load_backbone
from .backbones import head_parameters, set_head
from .errors import PeftlabError
from .keeping import Stopped, kept, put, told
from .paths import home
from .results import Result
from .scoring import evaluate
from .specs import identify, like, spec, whole
from .tasks import task as load_task
from .training import fit, look, machine

GLANCE = 256  # validation rows behind the figures in rows; the final score uses all


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
    try:
        head = shared_head(spec, fresh, stop) if spec["head"] == "shared" else None
        result, _ = execute(spec, key, each, head, stop)
    except Stopped:
        return Result(spec, key, spec["task"], "", stopped=True)
    if not result.stopped and os.environ.get("RANK", "0") == "0":
        store(result)
    return settle(result)


@contextlib.contextmanager
def laid_out(spec, head=None, stop=None, stay=False):
    """A run up to its training: yields model, task, attachment, accelerator; undoes it in the end, or lets it stay."""
    found = sources.gather(spec, stop)  # trained first: one run at a time
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
        undo = attach(model, spec["recipe"], seed=spec["seed"])
        sources.hand_over(undo, found)
        torch.manual_seed(spec["seed"])  # the dropout of a run does not depend on how much its method drew before
        try:
            yield model, task, undo, accelerator
        finally:
            if not stay:
                undo()


def batches(spec, task, model):
    return task.batches(model.tokenizer, "train", spec["batch"], seed=spec["seed"])


def execute(spec, key, each=None, head=None, stop=None, keep=None):
    """One run, without the ledger; returns its Result and the trained head's tensors. keep(attachment) sees its end."""
    with laid_out(spec, head, stop) as (model, task, undo, accelerator):
        result = Result(
            spec,
            key,
            spec["task"],
            task.metric,
            baselines=dict(majority=task.majority()),
            device=describe(accelerator),
            versions=versions(),
            counts=counts(model),
        )
        waits = masks.blind(undo)
        try:
            train(model, task, undo.deltas, accelerator, result, each, stop)
            if waits and not result.stopped:  # Stop may have come while it was still looking
                keep_mask(spec, model, undo)
            if keep:
                keep(undo)
        except KeyboardInterrupt:  # the rows so far are the caller's
            result.stopped = True
        except PeftlabError as problem:
            problem.rows = result.rows
            raise
    return result, {name: p.detach().cpu().clone() for name, p in head_parameters(model).items()}


def mask(recipe="sam", **settings):
    """{parameter's name: booleans}: the entries that a run of this spec would train, chosen by its data where need be.

    Its settings are those of `spec`. A mask that had to look at the data is kept under `home()/masks`.
    """
    wanted = recipe if isinstance(recipe, dict) and "recipe" in recipe else spec(recipe, **settings)
    if (path := mask_file(wanted)).exists():
        return sparsity.kept(path)
    head = shared_head(wanted) if wanted["head"] == "shared" else None
    with laid_out(wanted, head) as (model, task, undo, accelerator):
        if masks.blind(undo):
            look(model, batches(wanted, task, model), undo.deltas, accelerator)
            return keep_mask(wanted, model, undo)
        return masks.touched(model, undo)


def trained(spec, report=None):
    """(model, task, attachment) as a run of `spec` leaves them, on the CPU: to look inside, to answer, to save.

    It scores nothing and leaves nothing in the ledger. report: a dict for what `fit` reports of the first step.
    PeftlabError as `run` raises it.
    """
    spec = whole(spec)
    head = shared_head(spec) if spec["head"] == "shared" else None
    with laid_out(spec, head, stay=True) as (model, task, undo, accelerator):
        ahead = batches(spec, task, model), batches(spec, task, model)
        how = dict(accelerator=accelerator, report=report, preview=ahead[1])
        for _ in fit(model, ahead[0], undo.deltas, spec["lr"], spec["steps"], spec["every"], **how):
            pass
    return model.cpu().eval(), task, undo


def keep_mask(spec, model, undo):
    """Keep what the deltas have chosen by the data, for whoever wants to see it; returns it."""
    found = {n: m.cpu() for n, m in masks.touched(model, undo).items()}
    put(mask_file(spec), lambda beside: sparsity.keep(found, beside), "the mask is not kept")
    return found


def mask_file(spec):
    """Where the mask of a spec is kept: neither steps nor rate of the training matter to it."""
    return home() / "masks" / f"{identify(spec | dict(steps=1, every=1, lr=1.0))}.safetensors"


def train(model, task, deltas, accelerator, result, each, stop=None):
    """Fill `result` with the rows, the scores and the peaks of one training."""
    import torch

    spec, cuda = result.spec, accelerator.device.type == "cuda"
    part = spec["batch"] // spec["accumulate"] * (4 if task.kind in ("classification", "regression") else 1)
    score = lambda split, rows=None: evaluate(model, task, split, part, rows, accelerator)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rows = fit(
        model,
        batches(spec, task, model),
        deltas,
        spec["lr"],
        spec["steps"],
        spec["every"],
        accelerator=accelerator,
        validate=lambda: score("validation", GLANCE),
        report=result.peak,
        stop=stop,
        preview=batches(spec, task, model),
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
    only = like(other, "head")
    key = identify(only)

    def make():
        result, head = execute(only, key, stop=stop)
        if result.stopped:
            raise Stopped("the shared head was interrupted; run again to train it")
        if not head:
            raise PeftlabError("a language model's head is pretrained, so there is none to share; use head='trained'")
        store(result)
        return head

    return kept(home() / "heads" / f"{key}.safetensors", make, "the shared head", stop, fresh)


def store(result):
    with told("the result is returned but not kept in the ledger"):
        ledger.append(result.json())


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
