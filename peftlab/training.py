"""Training as a generator of rows, and what it needs of the machine."""

import contextlib
import functools
import math
import os
import threading
import time

import torch

from .errors import PeftlabError
from .kernels import fast

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
BUSY = threading.RLock()  # seeds, threads and Accelerate's state belong to the process: one run at a time


@contextlib.contextmanager
def machine(precision="fp32", accumulate=1):
    """An Accelerator for one run: fresh state, the caller's random numbers and thread count given back afterwards.

    PEFTLAB_THREADS (default 1) sets the threads of a run; one thread is what makes losses repeat bit for bit.
    PEFTLAB_DEVICE=cpu keeps a run off the accelerator.
    """
    from accelerate.state import AcceleratorState, GradientState

    with BUSY, torch.random.fork_rng(), fast():
        threads = torch.get_num_threads()
        torch.set_num_threads(int(os.environ.get("PEFTLAB_THREADS", 1)))
        # without a reset the first run's precision is every run's; a launcher's process group must live on
        AcceleratorState._reset_state(reset_partial_state="LOCAL_RANK" not in os.environ)
        GradientState._reset_state()
        try:
            yield accelerator_for(precision, accumulate)
        finally:
            torch.set_num_threads(threads)


def accelerator_for(precision, accumulate):
    from accelerate import Accelerator

    cpu = os.environ.get("PEFTLAB_DEVICE") == "cpu"
    try:
        return Accelerator(mixed_precision=PRECISIONS[precision], gradient_accumulation_steps=accumulate, cpu=cpu)
    except ValueError as problem:
        raise PeftlabError(f"{precision} does not work on this device; use fp32 ({problem})") from problem


def schedule(step, steps, warmup=0.1):
    """Share of the learning rate at step 1 … steps: linear warm-up over the first tenth, then linear decay to 0."""
    rise = max(1, round(warmup * steps))
    return step / rise if step <= rise else (steps - step + 1) / (steps - rise + 1)


def fit(
    model,
    batches,
    deltas=(),
    lr=1e-3,
    steps=200,
    every=10,
    weight_decay=0.0,
    clip=1.0,
    accelerator=None,
    validate=None,
    report=None,
    stop=None,
    preview=None,
):
    """Train what requires a gradient; yield {"step", "loss", "lr", "seconds"} at step 1, each `every` and the last.

    loss is the mean since the last row. After each quarter validate() is called; its figure is the row's "validation".
    report is a dict that receives saved_bytes, weight_bytes, gradient_bytes and optimizer_bytes of the first step.
    stop() is asked after every update; when it is true one more row comes and the training ends, as it does when the
    caller closes it.
    deltas: those with begin(view) look at the data first, at `preview` or else at the first of the batches (the seconds
    count that, report["looking_bytes"] is what it held), those with penalty() or compare(model, batch, output) add to
    the loss, those with after_step(step, steps) act after the update.
    PeftlabError: the loss is not finite (the parameters are those of the last good row); out of memory.
    """
    if accelerator is None:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    seconds = look(model, preview or batches, deltas, accelerator, report, stop)
    train = [p for p in model.parameters() if p.requires_grad]
    if not train:
        raise PeftlabError("nothing to train: no parameter of the model requires a gradient")
    optimizer = accelerator.prepare(optimizer_for(train, deltas, lr, weight_decay))
    wrapped = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    share = accelerator.gradient_accumulation_steps
    losses, good, quarter = [], None, max(1, steps // 4)
    check = quarter
    eager, many = accelerator.device.type == "cpu", accelerator.num_processes > 1
    model.train()
    try:
        for step in range(1, steps + 1):
            start, due = time.perf_counter(), step in (1, steps) or step % every == 0
            for group in optimizer.param_groups:
                group["lr"] = lr * group["speed"] * schedule(step, steps)
            with memory(f"at step {step}", share):
                parts = split(next(batches), share, accelerator)
                losses.append(sum(backward(wrapped, part, deltas, accelerator, report) for part in parts) / share)
            if many:
                losses[-1] = accelerator.reduce(losses[-1], "mean")
            if due or eager:  # on a GPU reading every loss would stall it
                finite(losses, step)
            if due:  # before the update: these parameters gave a finite loss
                good = [p.detach().clone() for p in train]
            with memory(f"at step {step}", share):  # the optimizer's state is made here
                accelerator.clip_grad_norm_(train, clip)
                optimizer.step()
            if step == 1 and report is not None:
                report |= weigh(model, optimizer)
            for delta in deltas:
                if hasattr(delta, "after_step"):  # it may look at the gradients of this step
                    delta.after_step(step, steps)
            optimizer.zero_grad()
            seconds += time.perf_counter() - start
            halt = bool(stop and stop())
            if due or halt:
                row = dict(
                    step=step, loss=float(sum(losses)) / len(losses), lr=lr * schedule(step, steps), seconds=seconds
                )
                losses = []
                if step == steps:
                    finite([sum(p.detach().double().sum() for p in train)], step, "a parameter")
                if validate and not halt and (step >= check or step == steps):
                    row["validation"], check = validate(), (step // quarter + 1) * quarter
                    model.train()
                yield row
            if halt:
                return
    except NotFinite:
        with torch.no_grad():
            for p, kept in zip(train, good or (), strict=good is not None):
                p.copy_(kept)
        raise
    finally:
        optimizer.zero_grad()
        model.eval()
        if many:
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)


def look(model, batches, deltas, accelerator, report=None, stop=None):
    """Let the deltas that choose by the data see it; returns the seconds that it took."""
    from .view import View

    start, held = time.perf_counter(), {}
    ready = ({k: v.to(accelerator.device) for k, v in batch.items()} for batch in batches)
    again = functools.partial(fit, model, batches, accelerator=accelerator, stop=stop)
    for delta in deltas:
        if hasattr(delta, "begin"):
            with memory("while it looks at the data", parts := accelerator.gradient_accumulation_steps):
                delta.begin(View(model, ready, again, held, parts))
    if held and report is not None:
        weights = dict(weight_bytes=stored([*model.parameters(), *model.buffers()]))
        report["looking_bytes"] = sum((weights | held).values())
    return time.perf_counter() - start if held else 0.0


def optimizer_for(train, deltas, lr, weight_decay=0.0):
    """AdamW, unless a delta brings an `optimizer`. What a delta's `speeds` names learns at so many times the rate."""
    speeds = {id(getattr(d, name)): speed for d in deltas for name, speed in getattr(d, "speeds", {}).items()}
    groups = {}
    for p in train:
        groups.setdefault(speeds.get(id(p), 1.0), []).append(p)
    adamw = functools.partial(torch.optim.AdamW, fused=True)
    make = next((d.optimizer for d in deltas if hasattr(d, "optimizer")), adamw)
    return make([dict(params=ps, speed=speed) for speed, ps in groups.items()], lr, weight_decay=weight_decay)


def backward(model, part, deltas, accelerator, report):
    """Add one part's gradients; returns its loss, without the penalties."""
    with accelerator.accumulate(model), measure(model, report):
        with accelerator.autocast():
            output = model(**part)
            again = [d.compare(model, part, output) for d in deltas if hasattr(d, "compare")]
        accelerator.backward(sum((d.penalty() for d in deltas if hasattr(d, "penalty")), sum(again, output.loss)))
    return output.loss.detach()


class NotFinite(PeftlabError):
    """The training diverged; the parameters are back at the last good row."""


def finite(values, step, what="the loss"):
    """`values` end at `step`; the first that is not finite is named."""
    for back, value in enumerate(reversed(values)):
        if not math.isfinite(float(value)) and all(math.isfinite(float(v)) for v in values[: len(values) - 1 - back]):
            raise NotFinite(
                f"{what} is not finite at step {step - back}; the run stopped with the last good state restored; "
                "try a smaller learning rate"
            )


class OutOfMemory(PeftlabError):
    """There is no more memory, of the machine or of a GPU."""


@contextlib.contextmanager
def memory(when, accumulate=1):
    """Exhausted memory, of the machine or of a GPU, is told in one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        words = str(problem).lower()
        full = (
            isinstance(problem, MemoryError | torch.OutOfMemoryError)
            or "allocate memory" in words
            or "not enough memory" in words
        )
        if not full:
            raise
        raise OutOfMemory(
            f"out of memory {when}; use a smaller batch, or accumulate={2 * accumulate} for the same batch in smaller "
            "parts"
        ) from problem


def split(batch, parts, accelerator):
    """A batch as `parts` equal parts for this process, on its device; the processes share each batch."""
    n, ranks = len(batch["labels"]), accelerator.num_processes
    if n % (parts * ranks):
        raise PeftlabError(f"batch {n} cannot be split into {parts * ranks} equal parts (accumulate × processes)")
    size = n // (parts * ranks)
    cut = lambda i: {k: v[i * size : (i + 1) * size].to(accelerator.device) for k, v in batch.items()}
    return [cut(i * ranks + accelerator.process_index) for i in range(parts)]


@contextlib.contextmanager
def measure(model, report):
    """Count once what autograd keeps for the backward pass: bytes of distinct storages, the model's own left out."""
    if report is None or "saved_bytes" in report:
        yield
        return
    ours = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(t):
        storage = t.untyped_storage()
        if not t._is_zerotensor() and storage.data_ptr() not in ours:  # forward-mode autograd's zeros lie nowhere
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield
    report["saved_bytes"] = sum(seen.values())


def weigh(model, optimizer):
    """Measured bytes of what a step has beside the activations: weights (with buffers), gradients, optimizer state."""
    inner = optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer  # Accelerate's wrapper
    held = dict(
        weight_bytes=[*model.parameters(), *model.buffers()],
        gradient_bytes=[p.grad for p in model.parameters() if p.grad is not None],
        optimizer_bytes=[t for state in inner.state.values() for t in state.values() if torch.is_tensor(t)],
    )
    return {name: stored(tensors) for name, tensors in held.items()}


def stored(tensors):
    """Bytes of the distinct storages behind these tensors."""
    storages = (t.untyped_storage() for t in tensors)
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())
