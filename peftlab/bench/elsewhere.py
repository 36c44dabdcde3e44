"""A method of `adapters`, timed by the Python of an environment that has it (and an older transformers, so not ours).

    python -m venv env && env/bin/pip install torch==2.13.0 adapters==1.3.0

Run as a script, without peftlab: it reads one line of JSON (the question), answers with one, then takes a step of
training for each further line and answers with its seconds, until its input ends. The other side waits meanwhile.
"""

import json
import os
import sys
import time


def config(kind, settings):
    """A configuration of `adapters`; a union is made of others, which are dicts of kind and settings themselves."""
    import adapters

    make = lambda v: config(**v) if isinstance(v, dict) else v
    return getattr(adapters, kind)(**{k: make(v) for k, v in settings.items()})


def built(question):
    """The plain model with their method added; only what it adds learns."""
    import adapters
    import torch
    import transformers

    kind, config_kind, settings = question["classes"]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config_kind)(**settings))
    adapters.init(model)
    before = {name for name, _ in model.named_parameters()}
    model.add_adapter("bench", config=config(**question["method"]))
    model.set_active_adapters("bench")
    for name, p in model.named_parameters():
        p.requires_grad_(name not in before)
    return model.to(question["device"]).train()


def saved_by(forward, model):
    """(bytes, loss): the distinct storages that autograd keeps for the backward pass, the model's own left out."""
    import torch

    own, kept = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}, {}

    def pack(t):
        for part in (t._indices(), t._values()) if t.is_sparse else (t,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward()
    return sum(kept.values()), loss


def main(asked, answer):
    question = json.loads(asked.readline())
    model, device = built(question), question["device"]  # first of all, so that a missing library is told at once

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    batch = {k: torch.tensor(v, device=device) for k, v in question["batch"].items()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, question["lr"], fused=True)
    half = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)[question["precision"]]

    def forward():
        with torch.autocast(device, half, enabled=half is not None):
            return model(**batch).loss

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def say(**facts):
        answer.write(json.dumps(facts) + "\n")
        answer.flush()

    saved, loss = saved_by(forward, model)
    loss.backward()
    optimizer.zero_grad()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward().backward()
    optimizer.zero_grad()
    say(trained=sum(p.numel() for p in learning), saved_bytes=saved, flops=counter.get_total_flops())
    for _ in asked:
        wait()
        start = time.perf_counter()
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        say(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    # beside this file lie modules that are part of peftlab, and libraries may print: neither should be in the way
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(os.path.abspath(__file__))]
    answer, sys.stdout = sys.stdout, sys.stderr
    main(sys.stdin, answer)
