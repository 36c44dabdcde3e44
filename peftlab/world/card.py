"""Cards: what every shipped backbone is, how large, and the command that made it."""

import hashlib
import json
import pathlib

from .kinds import KINDS


def write_json(path, value):
    """Readable JSON with a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    pathlib.Path(path).write_text(text, encoding="utf-8", newline="\n")


def sha256(path):
    """Hexadecimal digest of a file's bytes."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def write_card(folder, card):
    """card.json and README.md (a Hugging Face model card) of a backbone; returns the card with the weights' digest."""
    card = card | dict(
        weights="model.safetensors",
        dtype="float16",
        sha256=sha256(folder / "model.safetensors"),
        bytes=(folder / "model.safetensors").stat().st_size,
        license="apache-2.0",
    )
    write_json(folder / "card.json", card)
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    half = ""
    if card.get("half"):
        half = f"\nIts first {card['half']:,} steps trained half of its layers, each of which then came a second time."
    early = "" if card["step"] == card["steps"] else f" This is a snapshot after step {card['step']:,}."
    text = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: {card["task"]}
---
# {card["name"]}

{card["family"]} of {card["layers"]} layers, width {card["width"]} and {card["heads"]} heads
({card["parameters"]:,} parameters, {card["vocabulary"]:,} words), pretrained from random weights on peftlab's
micro-world: generated documents in plain English words and in a constructed second language.
It learned to predict {card["kind"]}.{half}{early}
It knows these words and nothing else; it is made for teaching and for tests, not for text from outside.

| | |
|---|---|
| command | `{card["command"]}` |
| transformers class | {card["architecture"]} |
| steps × batch | {card["steps"]:,} × {card["batch"]}, seed {card["seed"]}, highest learning rate {card["peak"]:g} |
| machine | {card["device"]}, {card["threads"]} thread(s), products in {card["products"]} |
| tokens seen | {card["tokens"]:,} |
| seconds | {card["seconds"]:,} |
| loss on held-out documents | {card["held_out_loss"]} nats per {card["unit"]} |
| versions | {versions} |
| sha256 of the weights | `{card["sha256"]}` |

The weights are stored in half precision and load in single precision. The same command with the same versions
on the same kind of processor gives the same bytes (on a GPU the same up to the order of its sums).
"""
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
    return card


COLUMNS = {  # heading -> how it reads from a card
    "name": "{name}",
    "class": "{architecture}",
    "parameters": "{parameters:,}",
    "words": "{vocabulary:,}",
    "steps × batch": "{steps:,} × {batch}",
    "tokens": "{tokens:,}",
    "held-out loss": "{held_out_loss}",
    "seconds": "{seconds:,}",
    "bytes": "{bytes:,}",
    "command": "`{command}`",
}


LAB = "what a lab finds in the ledger; `python -m peftlab.shipped`"
RESULTS = {
    "01_rates": "the learning rates of the additive league, chosen on validation; `python -m peftlab.shipped`",
    "03_rates": "the learning rates of the reparameterized league, chosen on validation; `python -m peftlab.shipped`",
    "04_rates": "the learning rates of the hybrid league, chosen on validation; `python -m peftlab.shipped`",
    "05_rates": "the learning rates of the unified league, chosen on validation; `python -m peftlab.shipped`",
    "06_rates": "the learning rates of the sparse comparison, chosen on validation; `python -m peftlab.shipped`",
    "sweep": "the learning rates of the bench, chosen on validation; `python -m peftlab.world sweep`",
    "bench": "the bench and its gate; `python -m peftlab.world verify`",
    **{f"bench-{suite}": f"{suite} beside the peers; `python3 go.py bench`" for suite in ("parity", "speed", "memory")},
    "bench-many": "many runs, one by one and at once; `python3 go.py bench --suite many`",
    "bench-labs": "time and memory of each lab; `python3 go.py bench --suite labs`",
}


def write_table(data):
    """Write data/README.md; returns its path."""
    (data / "README.md").write_text(about(data), encoding="utf-8", newline="\n")
    return data / "README.md"


def about(data):
    """The text of data/README.md: the backbones, from their cards, the tasks, and what the bench measured."""
    from .verify import page  # it needs torch, and pretraining writes cards too

    cards = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((data / "backbones").glob("*/card.json"))]
    there = sorted(p for end in ("jsonl", "jsonl.gz") for p in (data / "results").glob(f"*.{end}"))
    lines = [
        "# What is shipped, and the command that made it",
        "",
        "Everything here is generated; `python -m peftlab.world cards` writes this page from the cards. The",
        "word lists and the grammar are in `peftlab/world/`; no text from elsewhere is in it.",
        "Licence: Apache-2.0, as the code.",
        "",
        "## backbones",
        "",
        "The loss is in nats per masked word (RobertaForMaskedLM), per word (GPT2LMHeadModel) or per word of the",
        "document (T5ForConditionalGeneration). A name that ends in a number is a snapshot of the run at that",
        "percentage of its steps. Seconds are those that passed, whatever else the machine did meanwhile.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(COLUMNS.values())} |".format(**card) for card in cards),
        "",
        "sha256 of the weights:",
        "",
        *("- {name}: `{sha256}`".format(**card) for card in cards),
        "",
        "## tasks",
        "",
        "No task is stored: each is generated when it is asked for, the same bytes from the same arguments",
        "over all domains or in one (`entail/garden`), in both languages. A version is counted up when they change.",
        "`peftlab tasks` lists them all.",
        "",
        "| kind | version | metric | training rows | what it is |",
        "|---|---|---|---|---|",
        *(f"| {k.name} | {k.version} | {k.metric} | {k.size:,} | {k.about} |" for k in KINDS.values()),
        "",
        "## results",
        "",
        "One finished run a line, as JSON, with what repeats it.",
        "",
        *(f"- `results/{p.name}`: {RESULTS.get(p.name.split('.')[0], LAB)}" for p in there),
        "",
        "`results/spectra.json` has the singular values of what fine-tuning changes, full and LoRA at several ranks;",
        "`python -m peftlab.spectra` makes it. `results/mask_figure.json` has the entries that three scores take of a",
        "matrix; `python -m peftlab.mask_figure` makes it. `results/additive_figure.json` has what adapters add to the",
        "states of two sentences and a prompt's share of the attention, while both learn;",
        "`python -m peftlab.additive_figure` makes it. `studies/` has what the labs' figures show, a file for each",
        "study and a line for each case and seed; `python -m peftlab.studies` makes them.",
        "",
        "`panel.png` is the README's picture. It is made again, in a browser, by",
        "`PEFTLAB_PICTURE=data/panel.png python3 go.py test tests/test_browser.py -k 'opens or baselines or become'`.",
        "",
        "## the bench",
        "",
        *page(data / "results" / "bench.jsonl"),
        "",
    ]
    return "\n".join(lines)
