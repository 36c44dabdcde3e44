"""Training as a generator of rows, scoring, and what both need of the machine."""
import contextlib
import math
import os
import threading
import time

import torch
from torch.nn import functional as F

from .errors import PeftlabError

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
BUSY = threading.RLock()                              # seeds, threads and Accelerate's state belong to the process: one run at a time


@contextlib.contextmanager
def machine(precision="fp32", accumulate=1):
    """An Accelerator for one run: fresh state, the caller's random numbers and thread count given back afterwards.

    PEFTLAB_THREADS (default 1) sets the threads of a run; one thread is what makes losses repeat bit for bit.
    PEFTLAB_DEVICE=cpu keeps a run off the accelerator.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    with BUSY, torch.random.fork_rng():
        threads = torch.get_num_threads()
        torch.set_num_threads(int(os.environ.get("PEFTLAB_THREADS", 1)))
        alone = "LOCAL_RANK" not in os.environ        # under `accelerate launch` the process group must live on
        AcceleratorState._reset_state(reset_partial_state=alone)      # else the first run's precision is every run's precision
        GradientState._reset_state()
        try:
            yield Accelerator(mixed_precision=PRECISIONS[precision], gradient_accumulation_steps=accumulate,
                              cpu=os.environ.get("PEFTLAB_DEVICE") == "cpu")
        except ValueError as problem:
            if precision == "fp32" or isinstance(problem, PeftlabError):
                raise
            raise PeftlabError(f"{precision} does not work on this device; use fp32 ({problem})") from problem
        finally:
            torch.set_num_threads(threads)


def schedule(step, steps, warmup=0.1):
    """Share of the learning rate at step 1 … steps: linear warm-up over the first tenth, then linear decay to 0."""
    rise = max(1, round(warmup * steps))
    return step / rise if step <= rise else (steps - step + 1) / (steps - rise + 1)


def fit(model, batches, deltas=(), lr=1e-3, steps=200, every=10, weight_decay=0.0, clip=1.0, accelerator=None, validate=None,
        report=None):
    """Train what requires a gradient; yield {"step", "loss", "lr", "seconds"} at step 1, every `every` steps and the last.

    loss is the mean since the last row. validate() is called at each quarter and its figure joins the row as "validation".
    report is a dict that receives saved_bytes, measured on the first step. Closing the generator stops the training.
    deltas: those with penalty() add to the loss, those with after_step(step, steps) act after the update.
    PeftlabError: the loss is not finite (the parameters are those of the last good row); out of memory.
    """
    if accelerator is None:
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    train = [p for p in model.parameters() if p.requires_grad]
    if not train:
        raise PeftlabError("nothing to train: no parameter of the model requires a gradient")
    optimizer = accelerator.prepare(torch.optim.AdamW(train, lr, weight_decay=weight_decay))
    wrapped = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    share = accelerator.gradient_accumulation_steps
    losses, seconds, good, quarter = [], 0.0, None, max(1, steps // 4)
    last = lambda step: step in (1, steps) or step % every == 0
    model.train()
    try:
        for step in range(1, steps + 1):
            start = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps)
            total, parts = 0.0, split(next(batches), share, accelerator)
            for part in parts:
                with accelerator.accumulate(wrapped), accelerator.autocast(), measure(model, report):
                    loss = wrapped(**part).loss
                    total += loss.detach() / len(parts)
                    penalties = [d.penalty() for d in deltas if hasattr(d, "penalty")]
                    accelerator.backward(sum(penalties, loss))
            if accelerator.device.type == "cpu" or last(step):        # on a GPU reading every loss would stall it
                finite(total, step)
                if last(step):                        # before the update: these parameters gave a finite loss
                    good = [p.detach().clone() for p in train]
            accelerator.clip_grad_norm_(train, clip)
            optimizer.step()
            optimizer.zero_grad()
            for delta in deltas:
                if hasattr(delta, "after_step"):
                    delta.after_step(step, steps)
            losses.append(total)
            seconds += time.perf_counter() - start
            if last(step):
                row = dict(step=step, loss=float(sum(losses)) / len(losses), lr=lr * schedule(step, steps), seconds=seconds)
                losses = []
                if validate and (step % quarter == 0 or step == steps):
                    row["validation"] = validate()
                    model.train()
                if step == steps:
                    finite(sum(p.detach().float().sum() for p in train), step, "a parameter")
                yield row
    except NotFinite:
        if good:
            with torch.no_grad():
                for p, kept in zip(train, good, strict=True):
                    p.copy_(kept)
        raise
    except (MemoryError, RuntimeError) as problem:
        raise out_of_memory(problem, f"at step {step}", share) from problem
    finally:
        optimizer.zero_grad()
        model.eval()
        if wrapped is not model:
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)


class NotFinite(PeftlabError):
    """The training diverged; the parameters are back at the last good row."""


def finite(value, step, what="the loss"):
    if not math.isfinite(float(value)):
        raise NotFinite(f"{what} is not finite at step {step}; the run stopped and the last good state is restored; "
                        "try a smaller learning rate")


def out_of_memory(problem, where, accumulate=1):
    """The error to raise instead of `problem`: a clear sentence for exhausted memory, else `problem` itself."""
    words = str(problem).lower()
    if isinstance(problem, MemoryError | torch.OutOfMemoryError) or "allocate memory" in words or "not enough memory" in words:
        return PeftlabError(f"out of memory {where}; use a smaller batch, or accumulate={2 * accumulate} for the same batch in smaller parts")
    return problem


def split(batch, parts, accelerator):
    """A batch as `parts` equal parts for this process, on its device; the processes share each batch."""
    n, ranks = len(batch["labels"]), accelerator.num_processes
    if n % (parts * ranks):
        raise PeftlabError(f"batch {n} cannot be split into {parts * ranks} equal parts (accumulate × processes)")
    size = n // (parts * ranks)
    cut = lambda i: {k: v[i * size:(i + 1) * size].to(accelerator.device) for k, v in batch.items()}
    return [cut(i * ranks + accelerator.process_index) for i in range(parts)]


@contextlib.contextmanager
def measure(model, report):
    """Count once what autograd keeps for the backward pass: bytes of distinct storages, parameters left out."""
    if report is None or "saved_bytes" in report:
        yield
        return
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in ours:
            seen[storage.data_ptr()] = storage.nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield
    report["saved_bytes"] = sum(seen.values())


@torch.no_grad()
def evaluate(model, task, split, batch=128, rows=None, accelerator=None):
    """The task's metric on a split (or on about `rows` rows of it, evenly over lengths); the model ends in eval mode."""
    model.eval()
    predict = PREDICT["bleu" if task.metric == "bleu" else "perplexity" if task.metric == "perplexity" else task.kind]
    device = next(model.parameters()).device
    predictions, references = [], []
    stride = 1 if rows is None else max(1, math.ceil(len(task.data[split]) / rows))
    for part in task.batches(model.tokenizer, split, batch):
        part = {k: v[::stride].to(device) for k, v in part.items()}
        with accelerator.autocast() if accelerator else contextlib.nullcontext():
            p, y = predict(model, part)
        predictions += p
        references += y
    return task.score(predictions, references)


def classes(model, batch):
    return model(**batch).logits.argmax(-1).tolist(), batch["labels"].tolist()


def values(model, batch):
    return model(**batch).logits.float().flatten().tolist(), batch["labels"].tolist()


def aligned(model, batch):
    """Logits (b t V) and the labels (b t) that they predict; prompt tokens before the text are left out."""
    labels = batch["labels"]
    logits = model(**batch).logits[:, -labels.shape[1]:].float()
    return (logits, labels) if model.config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])


def likelihoods(model, batch):
    logits, labels = aligned(model, batch)
    return (-F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100))[labels.flatten() != -100].tolist(), []


def answers(model, batch):
    """Greedy answers as tuples of tokens. Greedy decoding gives the target exactly when every next token of the target,
    given the true ones before it, is the likeliest: so one forward pass decides, and nothing is generated."""
    logits, labels = aligned(model, batch)
    best, told = logits.argmax(-1), labels != -100
    rows = range(len(labels))
    return [tuple(best[i][told[i]].tolist()) for i in rows], [tuple(labels[i][told[i]].tolist()) for i in rows]


def texts(model, batch):
    """Generated and target texts, by greedy decoding without a cache (which every delta can follow)."""
    labels, tok = batch["labels"], model.tokenizer
    told, end = labels != -100, tok.eos_token_id
    longest = int(told.sum(1).max()) + 1
    targets = [tok.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(labels, told, strict=True)]
    if model.config.is_encoder_decoder:
        ids = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
        lengths, source = torch.ones_like(ids[:, 0]), {k: v for k, v in batch.items() if k != "labels"}
        call = lambda: model(**source, decoder_input_ids=ids).logits
    else:
        lengths = (batch["attention_mask"].bool() & ~told).sum(1)
        ids = batch["input_ids"][:, :int(lengths.max())].clone()
        call = lambda: model(input_ids=ids, attention_mask=(torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()).logits
    begin, alive, row = lengths.clone(), torch.ones_like(lengths, dtype=torch.bool), torch.arange(len(ids), device=ids.device)
    for _ in range(longest):
        best = call()[:, -ids.shape[1]:][row, lengths - 1].argmax(-1)
        alive &= best != end
        if not alive.any():
            break
        if int(lengths.max()) == ids.shape[1]:
            ids = F.pad(ids, (0, 1), value=tok.pad_token_id)
        ids[row[alive], lengths[alive]] = best[alive]
        lengths = lengths + alive.long()
    return [tok.decode(i[b:e], skip_special_tokens=True).strip() for i, b, e in zip(ids, begin, lengths, strict=True)], targets


PREDICT = dict(classification=classes, regression=values, perplexity=likelihoods, lm=answers, seq2seq=answers, bleu=texts)
