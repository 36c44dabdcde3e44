"""The memory of a training step, predicted from shapes alone: nothing is computed and nothing is allocated."""

import contextlib
import os

import torch

from .attachment import attach, trainable
from .backbones import backbone, set_head
from .errors import PeftlabError
from .recipes import title_of
from .runs import suited, trained
from .specs import whole
from .tasks import task as load_task
from .training import optimizer_for, stored

HALVES = dict(bf16=torch.bfloat16, fp16=torch.float16)


def footprint(spec):
    """Bytes of the first training step of a spec: weights (with all that its method remembers between steps),
    gradients, optimizer (its state), saved (what autograd keeps for the backward pass), and their total. The run's own
    `peak` has the measured twins. What a method such as S³Delta will attach is known when it has seen the data; before
    that, saved is that of a random choice.
    """
    spec = whole(spec)
    task = load_task(spec["task"], size=spec["size"], seed=spec["seed"], **spec["task_knobs"])
    model = backbone(spec["backbone"], head=task.kind, labels=len(task.labels or "x"), pretrained=spec["pretrained"])
    set_head(model, spec["head"])
    batch = first_batch(suited(task, model), model, spec["batch"], spec["accumulate"], spec["seed"])
    undo = attach(model, spec["recipe"], seed=spec["seed"])
    try:
        return predict(model, batch, spec["precision"])
    finally:
        undo()


def measured(result):
    """The measured twins of a footprint's parts; None for what an older result did not measure."""
    return parts_of(result.peak)


def parts_of(peak):
    keys = dict(weights="weight_bytes", gradients="gradient_bytes", optimizer="optimizer_bytes", saved="saved_bytes")
    return {part: peak.get(key) for part, key in keys.items()}


def first_step(spec):
    """What is measured when a run of this spec makes its first step, which is enough: nothing is scored."""
    report = {}
    trained(whole(spec) | dict(steps=1, every=1), report)
    return report


def held(specs):
    """Rows {title, and in MB: weights, gradients, optimizer, saved, looking}, measured in the specs' first steps.

    looking: what was held before training, while a mask was looked for; a step's memory then included.
    """
    rows = []
    for one in specs:
        peak, title = first_step(one), title_of(whole(one)["recipe"])
        parts = parts_of(peak) | dict(looking=peak.get("looking_bytes", 0))
        rows.append(dict(title=title) | {part: b / 1e6 for part, b in parts.items()})
    return rows


def compared(specs):
    """A table: MB of each part of a training step, as `footprint` predicts it and as the first step measures it."""
    import pandas as pd

    rows = {}
    for one in specs:
        sides = dict(predicted=footprint(one), measured=parts_of(first_step(one)))
        title = title_of(whole(one)["recipe"])
        rows[title] = {(part, side): b[part] / 1e6 for part in sides["measured"] for side, b in sides.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def first_batch(task, model, batch, accumulate=1, seed=0):
    """The part of a run's first batch that is worked off at once, as tensors."""
    rows = next(task.batches(model.tokenizer, "train", batch, seed=seed))
    return {k: v[: batch // accumulate] for k, v in rows.items()}


def predict(model, batch, precision="fp32"):
    """`footprint` of a model as it stands, deltas attached, on this batch."""
    learning = trainable(model)
    parts = dict(
        weights=stored([*model.parameters(), *model.buffers()]),
        gradients=bytes_of(learning),
        optimizer=kept_by_optimizer(model, learning),
        saved=saved(model, batch, precision),
    )
    return parts | dict(total=sum(parts.values()))


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def kept_by_optimizer(model, learning):
    """Bytes of the optimizer's state after its first step: for AdamW two moments and a count of steps each."""
    with fake_tensors() as fake:
        stand_ins = [fake.from_tensor(p) for p in learning]
        for p in stand_ins:
            p.grad = torch.empty_like(p)
        optimizer = optimizer_for(stand_ins, [d for d in model.modules() if hasattr(d, "optimizer")], lr=1e-3)
        optimizer.step()
    return bytes_of(t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))


def fake_tensors():
    """Tensors with a shape and without content."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def saved(model, batch, precision="fp32"):
    """Bytes of the distinct storages that autograd would keep for the backward pass, the model's own left out."""
    kept, was, whole = {}, model.training, Penalised(model)
    device, half = next(model.parameters()).device.type, HALVES.get(precision)
    cast = torch.autocast(device, half) if half else contextlib.nullcontext()
    try:
        model.train()  # with its dropout, as in training
        with fake_tensors() as fake:
            state = {k: fake.from_tensor(t) for k, t in [*whole.named_parameters(), *whole.named_buffers()]}
            ours = {t.untyped_storage()._cdata for t in state.values()}

            def pack(t):
                storage = t.untyped_storage()
                if storage._cdata not in ours:
                    kept[storage._cdata] = storage.nbytes()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), cast:
                inputs = {k: fake.from_tensor(t) for k, t in batch.items()}
                torch.func.functional_call(whole, state, kwargs=inputs)
    finally:
        model.train(was)
    return sum(kept.values())


class Penalised(torch.nn.Module):
    """The loss of a model with what its deltas add to it: what a step of training differentiates."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        output, deltas = self.model(**batch), [*self.model.modules()]
        again = [d.compare(self.model, batch, output) for d in deltas if hasattr(d, "compare")]
        return sum((d.penalty() for d in deltas if hasattr(d, "penalty")), sum(again, output.loss))


def place():
    """The device on which runs take place here: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() and os.environ.get("PEFTLAB_DEVICE") != "cpu" else "cpu"


def free(device="cpu"):
    """Bytes that are free on a device now."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def require(parts, device="cpu"):
    """PeftlabError when a step with this footprint will not fit into the memory that is free."""
    there, needed = free(device), parts["total"]
    if needed > there:
        least = "a smaller batch or accumulate" if parts["saved"] > needed / 2 else "a smaller backbone"
        raise PeftlabError(
            f"a training step needs about {needed / 2**30:.1f} GiB and {there / 2**30:.1f} GiB are free on {device}; "
            f"take {least}, or a method that trains less"
        )
