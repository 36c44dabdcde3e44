"""Pretraining of the embedded backbones on the micro-world: reproducible, resumable, one thread is enough."""

import contextlib
import copy
import functools
import json
import math
import pathlib
import platform
import signal
import threading
import time

import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .. import kernels
from ..backbones import quiet
from ..errors import PeftlabError, choose
from . import corpus
from .architectures import FAMILIES, build, plan
from .card import write_card, write_json
from .objectives import Blocks
from .slices import Slices
from .stacking import groups, stack
from .tokenizer import tokenizer

RESUME = "resume.safetensors"


def rate(step, steps, peak, warmup=500):
    """Learning rate: linear warm-up, then a half cosine to zero."""
    warmup = min(warmup, max(1, steps // 10))
    return peak * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def products(device):
    """In what matrix products are computed; weights, gradients, Adam's moments and the loss are in fp32 anyhow."""
    return torch.bfloat16 if device.type == "cuda" or kernels.HALVES else torch.float32


def precision(device):
    """A context in which matrix products are computed in `products(device)`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=products(device) == torch.bfloat16)


def onto(device, batch):
    return {k: v.to(device) for k, v in batch.items()}


def held_out(model, blocks, device):
    """Mean loss on the documents that no training step ever sees."""
    with torch.no_grad(), precision(device):
        losses = [blocks.objective.loss(model, onto(device, batch)) for batch, _ in blocks[corpus.HELD_OUT]]
    return torch.stack(losses).mean().item()


def training(model, blocks, optimizer, steps, peak, device, start=0, workers=0, half=0):
    """Yields (step, loss, tokens) after each update; a step's batch follows from its seed and number alone.

    After `half` steps each layer comes a second time.
    """
    slices = Slices(model, blocks.objective, functools.partial(precision, device), torch.get_num_threads())
    for step, (batch, tokens) in enumerate(blocks.stream(start, steps, workers), start):
        if half and step == half:
            stack(model, optimizer)
        for g in optimizer.param_groups:
            g["lr"] = rate(step, steps, peak)
        loss = slices.gradient(onto(device, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss, tokens


def adam(model):
    """AdamW with decay on matrices only."""
    decay = [dict(params=ps, weight_decay=d) for ps, d in zip(groups(model), (0.01, 0.0), strict=True)]
    return torch.optim.AdamW(decay, lr=1e-3, betas=(0.9, 0.98), fused=True)


def save_state(path, model, optimizer, **counts):
    """Everything a resumed run needs, as plain tensors; written beside and then moved, so that no torn file is read."""
    flat = {f"model.{k}": p.detach() for k, p in model.named_parameters()}  # a tied tensor comes once
    for i, state in optimizer.state_dict()["state"].items():
        flat |= {f"adam.{i}.{k}": v for k, v in state.items()}
    flat |= {f"count.{k}": torch.tensor(v, dtype=torch.float64) for k, v in counts.items()}
    beside = path.with_suffix(".part")
    save_file(flat, beside)
    beside.replace(path)


def taken(path):
    """How many steps a saved run has taken; 0 where none is saved."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as saved:
        return int(saved.get_tensor("count.step"))


def load_state(path, model, optimizer, settings):
    """Undo `save_state`; returns its counts. PeftlabError when its settings or its tensors are not the given ones."""
    flat = load_file(path)
    counts = {k[6:]: v.item() for k, v in flat.items() if k.startswith("count.")}
    saved = {k[6:]: v for k, v in flat.items() if k.startswith("model.")}
    mine = dict(model.named_parameters())
    if settings != {k: counts.get(k) for k in settings} or shapes(saved) != shapes(mine):
        raise PeftlabError(f"{path} is of another run; go on with the same name, steps and seed, or delete it")
    with torch.no_grad():
        for k, p in mine.items():
            p.copy_(saved[k])
    state = optimizer.state_dict()
    for key, value in flat.items():
        if key.startswith("adam."):
            _, i, name = key.split(".")
            state["state"].setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(state)
    return counts


def shapes(tensors):
    return {k: t.shape for k, t in tensors.items()}


@contextlib.contextmanager
def patient():
    """Ctrl-C is heard between two steps: yields a list that is no longer empty then. The second one acts at once."""
    heard = []
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield heard
        return

    def hear(*_):
        heard.append(True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def save(out, model, card):
    """A Hugging Face folder with its card; the weights are stored in half precision and load in single precision."""
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        copy.deepcopy(model).cpu().half().save_pretrained(out)
    write_json(out / "config.json", json.loads((out / "config.json").read_text()) | dict(dtype="float32"))
    tokenizer().save_pretrained(out)  # the one that trained has been told to cut long texts, and would say so
    return write_card(out, card)


def where(device=None):
    """The torch device that is meant: the GPU when there is one. PeftlabError for one that is not there."""
    there = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    return torch.device(choose(device or there[0], there, "device"))


def pretrain(name, out, steps=None, seed=0, batch=64, peak=None, device=None, workers=0, every=250, say=tqdm.write):
    """Train an embedded backbone and save it as a Hugging Face folder (fp16); returns its card (a dict).

    steps, peak (learning rate): from the table of `architectures` when not given. workers: processes that make the
    batches ahead. Snapshots go to folders beside `out`: `out`-10 after 10 % of the steps.
    An interrupted run goes on from its last checkpoint (every `every` steps, and where Ctrl-C stopped it) and ends
    with the same bytes. PeftlabError for an unknown name or device, steps < 1, or a checkpoint of another plan.
    """
    b, device, out = plan(name), where(device), pathlib.Path(out)
    steps, peak = (b.steps if steps is None else steps), peak or b.peak
    half = steps * b.half // 100
    settings = dict(steps=steps, seed=seed, batch=batch, peak=peak, half=half)
    if steps < 1:
        raise PeftlabError(f"{steps} steps are too few; take 1 or more (the table's number is {b.steps})")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    words = tokenizer()
    model = build(name, words, b.layers // 2 if taken(out / RESUME) <= half > 0 else b.layers).to(device)
    blocks, optimizer = Blocks(FAMILIES[b.family].objective(words), batch, seed), adam(model)
    done = dict(step=0, seconds=0.0, tokens=0)
    if (out / RESUME).exists():
        done = load_state(out / RESUME, model, optimizer, settings)
        say(f"going on from step {done['step']:.0f}")
    start, tokens, began = int(done["step"]), int(done["tokens"]), time.perf_counter() - done["seconds"]

    def card(step, **also):
        return also | dict(
            **describe(name, model, words, settings, device),
            step=step,
            tokens=tokens,
            seconds=round(time.perf_counter() - began),
            held_out_loss=round(held_out(model, blocks, device), 4),
        )

    snapshots = {max(1, steps * percent // 100): percent for percent in b.snapshots}
    updates = training(model, blocks, optimizer, steps, peak, device, start, workers, half)
    bar = tqdm(updates, name, steps, initial=start, unit="step", disable=None)  # None: only on a terminal
    with patient() as stop:
        for step, loss, seen in bar:
            tokens += seen
            if step in snapshots:
                percent = snapshots[step]
                save(out.with_name(f"{out.name}-{percent}"), model, card(step, name=f"{name}-{percent}"))
            if stop or step % every == 0 and step < steps:
                seconds = time.perf_counter() - began
                save_state(out / RESUME, model, optimizer, step=step, seconds=seconds, tokens=tokens, **settings)
                if stop:
                    say(f"stopped after step {step}; the same command goes on from there")
                    raise KeyboardInterrupt
                loss, unseen = loss.item(), held_out(model, blocks, device)
                say(f"step {step}/{steps}  loss {loss:.3f}  held-out {unseen:.3f}  {seconds:.0f} s")
    made = save(out, model, card(steps, name=name))
    (out / RESUME).unlink(missing_ok=True)
    return made


def describe(name, model, words, settings, device):
    """The part of a card that is known before training."""
    b, threads = plan(name), torch.get_num_threads()
    family = FAMILIES[b.family]
    return dict(
        kind=family.objective.about,
        architecture=type(model).__name__,
        family=family.phrase,
        task=family.objective.task,
        unit=family.objective.unit,
        layers=model.config.num_hidden_layers,
        width=b.width,
        heads=b.heads,
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=len(words),
        **settings,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        threads=threads,
        products=str(products(device)).removeprefix("torch."),
        command=f"python -m peftlab.world pretrain {name} --steps {settings['steps']} --seed {settings['seed']} "
        f"--threads {threads} --device {device.type}",
        versions=dict(
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            tokenizers=tokenizers.__version__,
        ),
    )
