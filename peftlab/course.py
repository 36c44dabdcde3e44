"""What a course does with labs: a student's version, the report of a learner, the results of a class in one picture."""

import json
import pathlib

from . import labs, plots
from .errors import PeftlabError
from .results import Result
from .teach import CHECK


def student(out, names=()):
    """Copies of labs without their solutions in the folder `out`; returns their paths.

    Exercise and check cells keep their nbgrader metadata, so the copies can be handed out and graded with it.
    """
    import nbformat

    out, paths = target(out), []
    for lab in labs.find(names):
        book = nbformat.read(lab, as_version=4)
        book.cells = [cell for cell in book.cells if "solution" not in cell.metadata.get("tags", [])]
        nbformat.write(book, out / lab.name)
        paths.append(out / lab.name)
    return paths


def target(out):
    """The folder, made when it is new. PeftlabError where it would write over the labs themselves."""
    out = pathlib.Path(out)
    if out.resolve() == labs.folder().resolve():
        raise PeftlabError(f"{out} is where the labs themselves lie; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def report(notebooks, name="anonymous"):
    """What a learner did, as a JSON-able dict: the verdict of every check in these executed notebooks, and the runs.

    runs are the records of the learner's own ledger: spec (with its seed), score, baselines, counts, versions.
    """
    from . import ledger
    from .runs import versions

    read = [dict(lab=pathlib.Path(n).stem, checks=verdicts(n)) for n in notebooks]
    runs = [{k: v for k, v in r.items() if k != "rows"} for r in ledger.records(ledger.own())]
    return dict(name=name, labs=read, runs=runs, versions=versions())


def verdicts(notebook):
    """exercise -> {ok, text}, the last verdict that the notebook shows. PeftlabError when it is no notebook."""
    import nbformat

    try:
        book = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as problem:
        raise PeftlabError(f"{notebook} is not a notebook that can be read ({problem})"[:300]) from problem
    outputs = [o for cell in book.cells for o in cell.get("outputs", ())]
    found = [o["data"][CHECK] for o in outputs if CHECK in o.get("data", {})]
    return {v["exercise"]: dict(ok=v["ok"], text=v["text"]) for v in found}


def merge(folder):
    """The reports (*.json) of a class: {checks: exercise -> [passed, tried], runs: [Result, …]}, a run counted once.

    Two learners with the same spec and seed made the same run, so a class that wants error bars takes different seeds.
    """
    paths = sorted(pathlib.Path(folder).glob("*.json"))
    if not paths:
        raise PeftlabError(f"{folder} holds no report; `peftlab labs report` makes one for each learner")
    checks, runs = {}, {}
    for path in paths:
        one = opened(path)
        for lab in one["labs"]:
            for exercise, verdict in lab["checks"].items():
                passed, tried = checks.setdefault(f"{lab['lab']} {exercise}", [0, 0])
                checks[f"{lab['lab']} {exercise}"] = [passed + (verdict["ok"] is True), tried + 1]
        runs |= {r["hash"]: Result.of(r) for r in one["runs"]}
    return dict(learners=len(paths), checks=checks, runs=list(runs.values()))


def opened(path):
    try:
        one = json.loads(path.read_text(encoding="utf-8"))
        return dict(labs=one["labs"], runs=one["runs"])
    except (ValueError, KeyError, TypeError) as problem:
        raise PeftlabError(f"{path} is not a report of `peftlab labs report` ({problem!r})"[:300]) from problem


def picture(runs):
    """The scores of the setting (task, backbone, steps, rows) that most runs share, with 95 % intervals over seeds."""
    alike = lambda r: json.dumps([r.spec[k] for k in ("task", "backbone", "steps", "batch", "size", "task_knobs")])
    groups = {}
    for r in runs:
        groups.setdefault(alike(r), []).append(r)
    if not groups:
        raise PeftlabError("the reports hold no runs, so there is nothing to draw")
    most = max(groups.values(), key=len)
    spec = most[0].spec
    title = f"{spec['task']} on {spec['backbone']}, {spec['steps']} steps: {len(most)} runs"
    head = dict(text=title, font=dict(size=14), y=0.97, yanchor="top")
    return plots.scores(most).update_layout(title=head, margin=dict(t=80), height=440)  # the legend has its own line
