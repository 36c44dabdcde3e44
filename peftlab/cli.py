"""The command line: `peftlab methods`, `peftlab tasks`, `peftlab run`; `peftlab labs` is in cli_labs."""

import argparse
import json
import os
import pathlib
import sys

from . import __version__, cli_labs
from .errors import PeftlabError, choose, exit_code
from .metrics import SCORES
from .world import embedded, lexicon

COLUMNS = ("text", "text2", "label", "target")


def main(argv=None):
    """Run one command; returns the exit code: 0, 1 (a lab failed), or that of `errors.exit_code`."""
    args = parser().parse_args(argv)
    return exit_code(lambda: args.command(args))


def parser():
    top = argparse.ArgumentParser(prog="peftlab", description="Learn, try and measure parameter-efficient fine-tuning.")
    top.add_argument("--version", action="version", version=f"peftlab {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("methods", help="list every method with its equation and its place in the three taxonomies")
    p.add_argument("--json", action="store_true", help="as a JSON list")
    p.set_defaults(command=methods)

    p = commands.add_parser("tasks", help="list every embedded task with its metric and what it asks")
    p.add_argument("--json", action="store_true", help="as a JSON list, one object for each task and language")
    p.add_argument("--kind", help="only this kind, such as reviews")
    p.add_argument("--lang", help="only this language: " + " or ".join(embedded.LANGS))
    p.set_defaults(command=tasks)

    p = commands.add_parser("run", help="fine-tune once and print the score beside its baselines")
    p.add_argument("--method", help="a method's name (default: lora)")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, such as r=8; repeatable",
    )
    p.add_argument("--where", help='sites, such as "q v" (default: the method\'s own)')
    p.add_argument("--layers", help="layers, such as 0-3 or 0,2 (default: all)")
    p.add_argument(
        "--recipe", metavar="FILE", help="a JSON file with a recipe (rows) or a whole spec, instead of --method"
    )
    p.add_argument("--backbone", default=None, help="an embedded name, a folder or a Hub id (default: micro-encoder)")
    p.add_argument(
        "--task",
        default=None,
        help="an embedded name such as reviews or reviews/garden (see `peftlab tasks`), file:PATH or a Hub dataset "
        "such as glue/sst2 (default: reviews)",
    )
    for name, kind, text in (
        ("seed", int, "seed of everything random"),
        ("steps", int, "updates (default: 200)"),
        ("batch", int, "rows per update (default: 32)"),
        ("lr", float, "learning rate (default: the method's own)"),
        ("size", int, "rows of the training split (default: the task's own)"),
        ("accumulate", int, "parts in which a batch is worked off, to save memory"),
        ("every", int, "steps between rows (default: 10)"),
    ):
        p.add_argument(f"--{name}", type=kind, help=text)
    p.add_argument("--head", help="trained, frozen or shared")
    p.add_argument("--precision", help="fp32, bf16 or fp16")
    p.add_argument("--scratch", action="store_true", help="start from random weights, not from the pretrained ones")
    group = p.add_argument_group("an embedded task")
    group.add_argument("--lang", help=f"{' or '.join(embedded.LANGS)} (default: en)")
    for knob in embedded.KNOBS.values():
        kind = str if knob.low is None else float
        about = knob.about if knob.default is None else f"{knob.about} (default: {knob.default})"
        group.add_argument("--" + knob.name.replace("_", "-"), type=kind, help=about)
    group = p.add_argument_group("columns and metric of a task of your own")
    for name in COLUMNS:
        group.add_argument(f"--{name}", metavar="COLUMN", help=f"the column that holds the {name} (default: guessed)")
    group.add_argument("--kind", help="classification, regression, lm or seq2seq")
    group.add_argument("--metric", help=", ".join(SCORES))
    group.add_argument("--max-length", type=int, help="tokens; longer texts are cut (default: 128)")
    p.add_argument("--fresh", action="store_true", help="run even when the ledger knows the result")
    p.add_argument("--baselines", action="store_true", help="run head only and full fine-tuning first")
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    p.set_defaults(command=run)

    cli_labs.add(commands)
    return top


def methods(args):
    from .methods import catalogue

    rows = catalogue()
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        table(
            [[r["name"], r["equation"], r["review"], r["delta_tuning"], r["sparse_view"], r["paper"]] for r in rows],
            ["method", "equation", "review", "delta tuning", "sparse view", "paper"],
        )
    return 0


def tasks(args):
    """The text form has a line for each kind; all exist in every language, and most in every domain."""
    if args.kind:
        choose(args.kind, embedded.KINDS, "kind of task")
    if args.lang:
        choose(args.lang, embedded.LANGS, "language")
    rows = [
        r
        for r in embedded.catalogue()
        if args.kind in (None, r["name"].partition("/")[0]) and args.lang in (None, r["lang"])
    ]
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    where = lambda kind: "all" if kind.domains is None else " ".join(kind.domains)
    table(
        [
            [k.name, k.kind, k.metric, " ".join(k.labels or ()), k.size, where(k), k.about]
            for k in embedded.KINDS.values()
            if args.kind in (None, k.name)
        ],
        ["task", "kind", "metric", "labels", "rows", "domains", "what it is"],
    )
    print(f"\nall domains: {' '.join(lexicon.DOMAINS)}; languages: {args.lang or ' '.join(embedded.LANGS)}")
    print(f"{len(rows)} tasks: each over all of its domains (reviews) and in one (reviews/garden), in each language")
    return 0


def run(args):
    from .runs import baselines, run

    spec = wanted(args)
    if args.baselines:
        for done in baselines(spec, progress("baseline "), args.fresh):
            if done.stopped:
                raise KeyboardInterrupt
    result = run(spec, progress(), args.fresh)
    print(file=sys.stderr, end="" if result.cached else "\n")
    if not speaks():
        return 0
    if args.json:
        print(json.dumps(result.json(), ensure_ascii=False))
    else:
        show(result)
    return 130 if result.stopped else 0


def wanted(args):
    """The spec that the options ask for; options override what a recipe file says."""
    from .specs import SPEC_KEYS, spec

    given = {
        k: getattr(args, k)
        for k in (
            "backbone",
            "task",
            "seed",
            "steps",
            "batch",
            "lr",
            "size",
            "head",
            "precision",
            "accumulate",
            "every",
        )
        if getattr(args, k) is not None
    }
    knobs = {k: getattr(args, k) for k in ("lang", *embedded.KNOBS, *COLUMNS, "kind", "metric", "max_length")}
    whole, settings = {}, dict(setting(s) for s in args.set)
    if args.recipe:
        if args.method or settings or args.where or args.layers:
            raise PeftlabError(
                "--recipe says which methods, where and how; leave --method, --set, --where and --layers out"
            )
        whole = from_file(args.recipe)
        whole = whole if isinstance(whole, dict) and set(whole) & set(SPEC_KEYS) else dict(recipe=whole)
    else:
        whole = dict(recipe=dict(method=args.method or "lora", where=args.where, layers=args.layers, settings=settings))
    knobs = (whole.get("task_knobs") or {}) | {k: v for k, v in knobs.items() if v is not None}
    scratch = dict(pretrained=False) if args.scratch else {}
    return spec(**whole | given | scratch | dict(task_knobs=knobs))


def setting(text):
    """ "r=8" -> ("r", 8); numbers are read as numbers, anything else stays a word and is judged by the method."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise PeftlabError(f"--set takes KEY=VALUE, such as r=8, not {text!r}")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def from_file(path):
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise PeftlabError(f"--recipe {path}: {problem.strerror}") from problem
    except ValueError as problem:
        raise PeftlabError(f"--recipe {path} is not JSON: {problem}") from problem


def speaks():
    """Of several processes under `accelerate launch` one prints."""
    return os.environ.get("RANK", "0") == "0"


def progress(what=""):
    if not speaks():
        return None

    def each(row):
        validation = f"  validation {row['validation']:.3f}" if "validation" in row else ""
        print(f"{what}step {row['step']}  loss {row['loss']:.4f}{validation}  {row['seconds']:.1f} s", file=sys.stderr)

    return each


def show(result):
    """The human form: score and baselines, counts, time and memory."""
    from . import plots

    number = lambda v: "not run (--baselines)" if v is None else f"{v:.4f}"
    spec, c = result.spec, result.counts
    said = lambda row: " ".join(f"{k}={plots.shown(v)}" for k, v in row["settings"].items())
    recipe = " + ".join(f"{row['method']} {row['where']} {said(row)}" for row in spec["recipe"])
    print(
        f"{recipe.strip()} on {spec['backbone']}, {spec['task']}, "
        f"seed {spec['seed']}, {spec['steps']} steps, lr {spec['lr']:g}"
        + (" (from the ledger; --fresh runs again)" if result.cached else "")
    )
    if result.stopped:
        print("stopped: no score")
        return
    table(
        [
            [f"{result.metric} on {result.split}", number(result.score)],
            ["on validation", number(result.validation)],
            ["majority", "none" if result.baselines["majority"] is None else number(result.baselines["majority"])],
            ["head only", number(result.baselines["head"])],
            ["full fine-tuning", number(result.baselines["full"])],
            ["trained in the delta", f"{c['delta']:,} ({c['percent']:.3f} % of the backbone)"],
            ["head", f"{c['head']:,} ({spec['head']})"],
            ["total", f"{c['total']:,}"],
            ["training time", f"{result.seconds:.1f} s on {result.device}"],
        ]
    )
    from . import memory

    said, size = memory.footprint(spec), lambda v: "not measured" if v is None else f"{v / 2**20:.3f}"
    rows = [[part, size(said[part]), size(found)] for part, found in memory.measured(result).items()]
    print()
    table(rows, ["MiB of a step", "predicted", "measured"])


def table(rows, header=None):
    rows = [header, *rows] if header else rows
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
