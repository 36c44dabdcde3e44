"""LoRA here beside LoRA in Hugging Face PEFT: the time of a training step and the bytes that autograd keeps for it.

Both sit on copies of one RoBERTa-shaped backbone of random weights: r = 8 at query and value, head frozen, same batch,
one process, steps in turns, so that whatever else the machine does falls on both. `python3 go.py bench` prints it.
"""
import argparse
import copy
import json
import statistics
import time

import torch


def backbone(layers=6, width=384):
    """RoBERTa's architecture without dropout, so that both sides must compute the same loss."""
    from transformers import RobertaConfig, RobertaForSequenceClassification
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(
        vocab_size=2048, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(2, width // 32),
        intermediate_size=4 * width, max_position_embeddings=514,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def ours(model, r):
    from . import attach, prepare, set_head
    prepare(model)
    set_head(model, "frozen")
    attach(model, [dict(method="lora", where="q v", settings=dict(r=r, alpha=2 * r))])
    return model.train()


def theirs(model, r):
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=["query", "value"])).train()


class Stepper:
    """One side: its optimizer, the seconds of its steps, the bytes that one step saves for the backward pass."""

    def __init__(self, model, batch):
        from .training import measure
        self.model, self.batch, self.seconds = model, batch, []
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-3)
        report = {}
        with measure(model, report):
            self.first_loss = model(**batch).loss.item()
        self.saved_bytes = report["saved_bytes"]

    def step(self):
        start = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - start)


def compare(layers=6, width=384, batch=4, tokens=128, r=8, repeats=40, warmup=3):
    """{"peftlab", "peft": {"parameters", "first_loss", "saved_bytes", "step_ms"}, "ratio": {"saved_bytes", "step_ms"}}.

    step_ms is the median over `repeats` steps in turns; its ratio is the median of the ratios of neighbouring steps,
    which a slow minute of the machine touches least. A ratio below 1 is in favour of peftlab.
    """
    base = backbone(layers, width)
    ids = torch.randint(3, 2048, (batch, tokens), generator=torch.Generator().manual_seed(0))
    data = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.arange(batch) % 2)
    sides = {"peft": Stepper(theirs(copy.deepcopy(base), r), data), "peftlab": Stepper(ours(base, r), data)}
    for i in range(warmup + repeats):
        for side in list(sides.values())[:: 1 if i % 2 else -1]:
            side.step()
    a, b = (s.seconds[warmup:] for s in (sides["peftlab"], sides["peft"]))
    rows = {name: dict(parameters=sum(p.numel() for p in s.parameters), first_loss=s.first_loss,
                       saved_bytes=s.saved_bytes, step_ms=1000 * statistics.median(s.seconds[warmup:]))
            for name, s in sides.items()}
    return rows | {"ratio": dict(saved_bytes=rows["peftlab"]["saved_bytes"] / rows["peft"]["saved_bytes"],
                                 step_ms=statistics.median(x / y for x, y in zip(a, b, strict=True)))}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="go.py bench", description=__doc__.splitlines()[0])
    for name, default in dict(layers=6, width=384, batch=4, tokens=128, r=8, repeats=40).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = vars(parser.parse_args(argv))
    as_json = options.pop("json")
    found = compare(**options)
    if as_json:
        print(json.dumps(found))
        return 0
    title = "LoRA r={r} at q v on RoBERTa {layers}×{width}, {batch}×{tokens} tokens, {repeats} steps in turns"
    print(f"{title.format(**options)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"{'':10}{'parameters':>12}{'first loss':>12}{'saved MiB':>12}{'step ms':>10}")
    for name in ("peftlab", "peft"):
        f = found[name]
        print(f"{name:10}{f['parameters']:12,}{f['first_loss']:12.6f}{f['saved_bytes'] / 2**20:12.3f}"
              f"{f['step_ms']:10.1f}")
    print(f"{'ratio':10}{'':24}{found['ratio']['saved_bytes']:12.4f}{found['ratio']['step_ms']:10.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
