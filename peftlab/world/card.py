"""Cards: what every shipped thing is, how large, and the command that made it."""
import hashlib
import json
import pathlib


def write_json(path, value):
    """Readable JSON with a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    pathlib.Path(path).write_text(text, encoding="utf-8", newline="\n")


def sha256(path):
    """Hexadecimal digest of a file's bytes."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def write_card(folder, card):
    """card.json and README.md (a Hugging Face model card) of a backbone; returns the card with the weights' digest."""
    card = card | dict(weights="model.safetensors", dtype="float16", sha256=sha256(folder / "model.safetensors"),
                       bytes=(folder / "model.safetensors").stat().st_size, license="apache-2.0")
    write_json(folder / "card.json", card)
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    (folder / "README.md").write_text(f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: fill-mask
---
# {card["name"]}

A {card["architecture"]} of {card["num_hidden_layers"]} layers and width {card["hidden_size"]}
({card["parameters"]:,} parameters, {card["vocabulary"]} words), pretrained from random weights on peftlab's
micro-world: generated documents of plain English words which judge the aspects of a place and end in a consequence.
It knows these words and nothing else; it is made for teaching and for tests, not for text from outside.

| | |
|---|---|
| command | `{card["command"]}` |
| steps × batch | {card["steps"]:,} × {card["batch"]}, seed {card["seed"]}, {card["threads"]} thread(s) |
| tokens seen | {card["tokens"]:,} |
| seconds | {card["seconds"]:,} |
| loss on held-out documents | {card["held_out_loss"]} nats per masked word |
| versions | {versions} |
| sha256 of the weights | `{card["sha256"]}` |

The weights are stored in half precision and load in single precision. The same command with the same versions
on the same kind of processor gives the same bytes.
""", encoding="utf-8", newline="\n")
    return card


def write_table(data):
    """data/README.md: one table of backbones and one of tasks, from their cards; returns the file's path."""
    cards = {kind: [json.loads(p.read_text(encoding="utf-8")) for p in sorted((data / kind).glob("*/card.json"))]
             for kind in ("backbones", "tasks")}
    lines = ["# What is shipped, and the command that made it", "",
             "Everything here is generated; `python -m peftlab.world cards` writes this page from the cards. The",
             "word lists and the grammar are in `peftlab/world/`; no text from elsewhere is in it.",
             "Licence: Apache-2.0, as the code.", "",
             "## backbones", "",
             "| name | parameters | words | steps × batch | tokens | held-out loss | seconds | bytes | command |",
             "|---|---|---|---|---|---|---|---|---|"]
    lines += [f"| {c['name']} | {c['parameters']:,} | {c['vocabulary']} | {c['steps']:,} × {c['batch']} | "
              f"{c['tokens']:,} | {c['held_out_loss']} | {c['seconds']:,} | {c['bytes']:,} | `{c['command']}` |"
              for c in cards["backbones"]]
    lines += ["", "sha256 of the weights:", ""] + [f"- {c['name']}: `{c['sha256']}`" for c in cards["backbones"]]
    lines += ["", "## tasks", "", "| name | kind | metric | labels | sizes | default size | command |",
              "|---|---|---|---|---|---|---|"]
    lines += [f"| {c['name']} | {c['kind']} | {c['metric']} | {', '.join(c['labels'])} | "
              f"{', '.join(f'{k} {v:,}' for k, v in c['sizes'].items())} | {c['default_size']} | `{c['command']}` |"
              for c in cards["tasks"]]
    lines += ["", "## results", "", "`results/LAB.jsonl` are finished runs, one JSON object a line, each with the",
              "spec that repeats it; a lab finds them in the ledger. `python -m peftlab.shipped` makes them.", ""]
    (data / "README.md").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return data / "README.md"
