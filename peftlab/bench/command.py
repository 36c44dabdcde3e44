"""The command: which suites, on what, and where the rows go."""

import argparse
import importlib.util
import json
import warnings

import torch

from .. import paths
from ..errors import PeftlabError, choose
from . import abroad, course, holding, parity, speed, sweeping, tables
from .peers import PEERS
from .shapes import SIZES, shape
from .stepping import HALVES

SUITES = dict(parity=parity, speed=speed, memory=holding, many=sweeping, labs=course)
TITLES = dict(
    parity="The same numbers on both sides",
    speed="A training step; ratios are medians of ratios of neighbouring steps, below 1 is in favour of peftlab",
    memory="What a training step holds; rise: the peak above what stood before the backbone was copied",
    many="Many runs: as fast as so many one by one",
    labs="The labs where nobody clicks, and the time of a fresh import",
)


def parsed(argv=None):
    """The options, checked and completed by the size. PeftlabError for what is not there."""
    parser = argparse.ArgumentParser(prog="go.py bench", description="peftlab beside its peers")
    add = parser.add_argument
    add("--suite", action="append", help=f"{', '.join(SUITES)}; may be repeated (default: all of them)")
    add("--device", default="cpu", help="cpu or cuda (default cpu)")
    add("--size", default="full", help="small: tiny backbones, a few steps; full (default)")
    add("--shapes", help="names of backbones, such as roberta-6x384, with commas")
    add("--methods", help="names of methods, with commas")
    times = dict(repeats="timed steps of one build", builds="how often both sides are built anew, for speed")
    for name, what in (dict(batch="rows", tokens="tokens a row") | times).items():
        add(f"--{name}", type=int, help=f"{what} (default: by size)")
    add("--precision", default="fp32", help=f"{', '.join(HALVES)}: autocast on both sides")
    add("--compile", action="store_true", help="torch.compile on both sides, for speed")
    add("--labs", help="names of labs, with commas (default: all; with --size small the tour)")
    add("--adapters", metavar="PYTHON", help="the Python of an environment that has adapters==1.3.0")
    add("--out", default=str(paths.data() / "results"), help="folder for bench-<suite>.jsonl (default data/results)")
    add("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    options.suites = [choose(s, SUITES, "suite") for s in options.suite or SUITES]
    choose(options.device, ("cpu", "cuda"), "device")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise PeftlabError("torch sees no CUDA GPU here; use --device cpu")
    choose(options.precision, HALVES, "precision")
    for name, value in SIZES[choose(options.size, SIZES, "size")].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif name != "shapes" and getattr(options, name) < 1:
            raise PeftlabError(f"--{name} must be at least 1, not {getattr(options, name)}")
    split = lambda text: text.split(",") if isinstance(text, str) else text
    options.shapes, options.methods = split(options.shapes), split(options.methods)
    options.labs = split(options.labs) or (["00_tour"] if options.size == "small" else [])
    [shape(name) for name in options.shapes]
    [choose(name, [*PEERS, *abroad.PEERS], "method with a peer") for name in options.methods or ()]
    if options.suites != ["labs"] and not importlib.util.find_spec("peft"):
        raise PeftlabError("the peers need Hugging Face PEFT: pip install peft")
    return options


def main(argv=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the peers' libraries say of their own ways
        return measured(parsed(argv))


def measured(options):
    """Run the suites and print them. Each row is written when it is there: a stopped run keeps what is finished."""
    found = {}
    for name in options.suites:
        suite, path = SUITES[name], tables.file_in(options.out, name)
        precision = getattr(suite, "PRECISION", options.precision)
        facts = tables.facts(name, options) | dict(precision=precision)
        found[name] = rows = []
        for row in suite.rows(options):
            rows.append(row)
            tables.append(path, facts | row)
        if not options.json:
            columns = suite.columns(options) if hasattr(suite, "columns") else suite.COLUMNS
            print(f"{TITLES[name]}. {told(options, precision)}", *tables.table(rows, columns), *notes(rows), sep="\n")
            print(f"rows: {path}\n", flush=True)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    return 0


def notes(rows):
    """What rows without figures have to say, each once."""
    return dict.fromkeys(f"{r['shape']}, {r['method']}: {r['note']}" for r in rows if r.get("note"))


def told(options, precision):
    """How it was measured, in a line."""
    here, with_ = tables.machine(options.device), tables.versions()
    place = here.get("gpu") or f"{here['cpu']}, {here['threads']} thread(s)"
    return f"{options.batch}×{options.tokens} tokens, {precision}, {place}, torch {with_['torch']}"
