"""`peftlab labs …`: run labs, hand them out, collect and merge what learners did, and export them for reading."""

import json
import pathlib
import sys


def add(commands):
    """The verbs of `peftlab labs`."""
    labs = commands.add_parser("labs", help="the labs, and what a course does with them")
    verbs = labs.add_subparsers(required=True, metavar="COMMAND")
    p = verbs.add_parser("run", help="run labs without a browser and report which pass")
    several(p)
    executed(p)
    p.add_argument("--out", metavar="DIR", help="keep the executed notebooks here")
    p.add_argument("--json", action="store_true", help="as a JSON list")
    p.set_defaults(command=run)
    p = verbs.add_parser("student", help="write the labs without their solutions to a folder")
    p.add_argument("out", metavar="DIR")
    several(p)
    p.set_defaults(command=student)
    p = verbs.add_parser("report", help="checks, seeds and versions of a learner's notebooks as JSON")
    p.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="executed and saved")
    p.add_argument("--name", default="anonymous", help="whose report it is")
    p.add_argument("--out", metavar="FILE", help="write it here (default: print it)")
    p.set_defaults(command=report)
    p = verbs.add_parser("merge", help="the reports of a class as one table and one plot with error bars")
    p.add_argument("folder", metavar="DIR", help="holds one *.json for each learner")
    p.add_argument("--out", metavar="FILE", help="the plot (default: DIR/class.html)")
    p.set_defaults(command=merge)
    p = verbs.add_parser("html", help="run the labs and write them as a site that needs no kernel and no network")
    p.add_argument("out", metavar="DIR")
    several(p)
    executed(p, profile="cpu")
    p.set_defaults(command=html)


def several(p):
    p.add_argument("labs", nargs="*", metavar="LAB", help="such as 00_tour (default: all)")


def executed(p, profile="ci"):
    p.add_argument("--profile", default=profile, help=f"ci, cpu or gpu (default: {profile})")
    p.add_argument("--jobs", type=int, default=2, help="labs at the same time")
    p.add_argument("--timeout", type=int, default=600, help="seconds per lab")


def run(args):
    from .labs import run_labs

    done = run_labs(args.labs, profile=args.profile, out=args.out, jobs=args.jobs, timeout=args.timeout)
    if args.json:
        print(json.dumps(done, indent=1, ensure_ascii=False))
    else:
        told(done)
    return failures(done)


def told(done):
    from .cli import table

    told = lambda d: [d["name"], "ok" if d["ok"] else "FAILED", f"{d['seconds']:.1f}", f"{d['peak_rss_mb'] or 0:.0f}"]
    rows = [[*told(d), d["cells"], d["lines"], d["words"]] for d in done]
    table(rows, ["lab", "", "seconds", "peak MB", "code cells", "code lines", "words"])


def failures(done):
    """Exit code 1 when a lab failed or there was none; each failure is told on stderr."""
    for d in done:
        if not d["ok"] and d.get("error"):
            print(f"peftlab: {d['name']}: {d['error']}", file=sys.stderr)
    return 0 if done and all(d["ok"] for d in done) else 1


def student(args):
    from .course import student

    print(*student(args.out, args.labs), sep="\n")


def report(args):
    from .course import report

    text = json.dumps(report(args.notebooks, args.name), indent=1, ensure_ascii=False)
    if args.out:
        pathlib.Path(args.out).write_text(text + "\n", encoding="utf-8")
    print(args.out or text)


def merge(args):
    from .cli import table
    from .course import merge, picture

    whole = merge(args.folder)
    out = pathlib.Path(args.out or pathlib.Path(args.folder) / "class.html")
    if whole["checks"]:
        table([[name, *passed] for name, passed in whole["checks"].items()], ["exercise", "passed", "tried"])
    picture(whole["runs"]).write_html(out, include_plotlyjs=True)
    print(f"{whole['learners']} learners, {len(whole['runs'])} different runs: {out}")


def html(args):
    from .site import write

    done = write(args.out, args.labs, profile=args.profile, jobs=args.jobs, timeout=args.timeout)
    told(done)
    print(pathlib.Path(args.out) / "index.html")
    return failures(done)
