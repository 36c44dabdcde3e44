"""Pretraining of the embedded backbones on the micro-world: reproducible, resumable, one thread is enough."""
import json
import math
import pathlib
import platform
import time

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaForMaskedLM

from ..errors import PeftlabError, choose
from . import corpus
from .card import write_card
from .tokenizer import LENGTH, SPECIAL, tokenizer

SIZES = {  # name: what differs from the common configuration; one more backbone is one more line
    "micro-encoder": dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512),
}
RESUME = "resume.safetensors"


def config(name, words):
    """The RobertaConfig of an embedded size. No dropout: no document of the corpus comes twice."""
    return RobertaConfig(vocab_size=words, max_position_embeddings=LENGTH + 2, type_vocab_size=1, pad_token_id=1,
                         bos_token_id=SPECIAL.index("<s>"), eos_token_id=SPECIAL.index("</s>"),
                         hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.05,
                         **SIZES[choose(name, SIZES, "embedded size")])


def rate(step, steps, peak, warmup=200):
    """Learning rate: linear warm-up, then a half cosine to zero."""
    warmup = min(warmup, max(1, steps // 10))
    return peak * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def held_out(model, words, seed, batch=64):
    """Masked-language-model loss on documents that training never sees (nats per masked word)."""
    generator, losses = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        for b in corpus.batches(words, batch, seed, corpus.HELD_OUT, group=8):
            seen, labels = corpus.masked(b, words, generator)
            losses.append(model(input_ids=seen, attention_mask=b["attention_mask"], labels=labels).loss)
    return torch.stack(losses).mean().item()


def training(model, words, steps, seed=0, batch=64, peak=2e-3, optimizer=None, start=0, group=16):
    """Yields (step, loss, tokens) after each update; a step's documents and masks follow from seed and step alone."""
    optimizer = optimizer or adam(model)
    for step in range(start, steps):
        if step % group == 0 or step == start:
            ready = corpus.batches(words, batch, seed, step // group, group)
        b, generator = ready[step % group], torch.Generator().manual_seed(seed * 1_000_003 + step)
        seen, labels = corpus.masked(b, words, generator)
        for g in optimizer.param_groups:
            g["lr"] = rate(step, steps, peak)
        loss = model(input_ids=seen, attention_mask=b["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss.item(), int(b["attention_mask"].sum())


def adam(model):
    """AdamW with decay on matrices only."""
    groups = [[p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]]
    return torch.optim.AdamW([dict(params=groups[0], weight_decay=0.01), dict(params=groups[1], weight_decay=0.0)],
                             lr=1e-3, betas=(0.9, 0.98))


def save_state(path, model, optimizer, **counts):
    """Everything a resumed run needs, as plain tensors; written beside and then moved, so that no torn file is read."""
    flat = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.decoder.weight"}   # tied
    flat = {k: v.clone() for k, v in flat.items()}          # what is tied shares storage, which safetensors refuses
    for i, state in optimizer.state_dict()["state"].items():
        flat |= {f"adam.{i}.{k}": v for k, v in state.items()}
    flat |= {f"count.{k}": torch.tensor(v, dtype=torch.float64) for k, v in counts.items()}
    beside = path.with_suffix(".part")
    save_file(flat, beside)
    beside.replace(path)


def load_state(path, model, optimizer):
    """Undo `save_state`; returns its counts (step, seconds, tokens and the plan)."""
    flat = load_file(path)
    missing = model.load_state_dict({k[6:]: v for k, v in flat.items() if k.startswith("model.")}, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.decoder.weight"}, missing
    model.tie_weights()
    state = optimizer.state_dict()
    for key, value in flat.items():
        if key.startswith("adam."):
            _, i, name = key.split(".")
            state["state"].setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(state)
    return {k[6:]: v.item() for k, v in flat.items() if k.startswith("count.")}


def pretrain(name="micro-encoder", out=None, steps=6000, seed=0, batch=64, peak=2e-3, every=250, say=print):
    """Train an embedded backbone and save it as a Hugging Face folder (fp16); returns its card (a dict).

    An interrupted run goes on from its last checkpoint (every `every` steps) and ends with the same bytes.
    PeftlabError when the checkpoint in `out` is of a run with another plan.
    """
    out, began = pathlib.Path(out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    words = tokenizer()
    model = RobertaForMaskedLM(config(name, len(words)))
    plan = dict(steps=steps, seed=seed, batch=batch, peak=peak)
    optimizer, done = adam(model), dict(step=0, seconds=0.0, tokens=0)
    if (out / RESUME).exists():
        done = load_state(out / RESUME, model, optimizer)
        if plan != {k: done.get(k) for k in plan}:
            raise PeftlabError(f"{out / RESUME} is of another run; go on with the same steps and seed, or delete it")
        say(f"going on from step {done['step']:.0f}")
    start, tokens = int(done["step"]), done["tokens"]
    for step, loss, seen in training(model, words, steps, seed, batch, peak, optimizer, start):
        tokens += seen
        if step % every == 0 and step < steps:
            seconds = done["seconds"] + time.perf_counter() - began
            save_state(out / RESUME, model, optimizer, step=step, seconds=seconds, tokens=tokens, **plan)
            say(f"step {step}/{steps}  loss {loss:.3f}  held-out {held_out(model, words, seed):.3f}  {seconds:.0f} s")
    card = dict(
        name=name, kind="masked language model", architecture="RobertaForMaskedLM", **SIZES[name],
        parameters=sum(p.numel() for p in model.parameters()), vocabulary=len(words), steps=steps, batch=batch,
        peak_learning_rate=peak, seed=seed, threads=torch.get_num_threads(),
        tokens=int(tokens), seconds=round(done["seconds"] + time.perf_counter() - began),
        held_out_loss=round(held_out(model, words, seed), 4),
        command=f"python -m peftlab.world pretrain {name} --steps {steps} --seed {seed}",
        versions=dict(python=platform.python_version(), torch=torch.__version__,
                      transformers=transformers.__version__, tokenizers=tokenizers.__version__))
    model.half().save_pretrained(out)
    settings = json.loads((out / "config.json").read_text())
    settings["dtype"] = "float32"               # stored in half precision, loaded in single
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    words.save_pretrained(out)
    card = write_card(out, card)
    (out / RESUME).unlink(missing_ok=True)
    return card
