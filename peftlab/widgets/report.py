"""The texts of a panel as HTML: counts, baselines, the table of runs, the line of code that repeats a run."""

import html
import json

from .. import ledger, memory, plots
from ..methods import get
from ..specs import identify, like

UNITS = dict(GiB=2**30, MiB=2**20, KiB=2**10)
STALE = (
    '<span class="pl-mark" role="status">⚠ These settings have not been run yet: curves and table show earlier ones. '
    "Press Run.</span>"
)


def size(n):
    """Bytes in words."""
    unit = next((u for u in ("GiB", "MiB", "KiB") if n >= UNITS[u]), "B")
    return f"{n / UNITS.get(unit, 1):,.{0 if unit == 'B' else 1}f} {unit}"


def error(e):
    """What was wrong, in red and read aloud."""
    return f'<span class="pl-error" role="alert">{html.escape(str(e))}</span>'


def counted(n):
    return (
        f'trained: <b class="pl-trained">{n["delta"]:,}</b> in the delta ({n["percent"]:.3g} % of the backbone), '
        f"{n['head']:,} in the head "
        f"· total {n['total']:,} · stored delta {size(n['stored_bits'] / 8)}"
    )


def needed(parts, device):
    """The predicted footprint of a training step, beside what is free."""
    said = ", ".join(f"{name} {size(n)}" for name, n in parts.items() if name != "total")
    there = size(memory.free(device))
    return f'a step needs <b class="pl-memory">{size(parts["total"])}</b> ({said}) of {there} free on {device}'


def baselines(spec, task):
    """Lines for a chart: majority, head only, full fine-tuning, as far as known for this data and these steps."""
    found = []
    if (constant := task.majority()) is not None:
        found.append(
            dict(name="majority", value=constant, note="always answering the commonest class", words=f"{constant:.3f}")
        )
    for method, name in (("head", "head only"), ("full", "full")):
        scores = known(like(spec, method))
        if scores:
            mean, low, high = plots.interval(scores)
            note = f"{name}: {plots.told(scores)}, lr {like(spec, method)['lr']:g}"
            found.append(
                dict(
                    name=f"{name} ({len(scores)})", value=mean, low=low, high=high, note=note, words=plots.told(scores)
                )
            )
    return found


def known(spec):
    """Scores in the ledgers of this spec with any seed."""
    seeds = {}
    for record in ledger.records():
        other = record.get("spec") or {}
        if (
            record.get("score") is not None
            and other | dict(seed=0) == spec | dict(seed=0)
            and record.get("hash") == identify(other)
        ):
            seeds[other["seed"]] = record["score"]
    return list(seeds.values())


def first(specs):
    """What happens before these runs train, in words; "starting" where nothing takes its time."""
    rows = [row for one in specs for row in one["recipe"]]
    if any(row["settings"].get("sources") for row in rows):
        return "training on the sources first, where they are not kept …"
    looks = any(hasattr(get(row["method"]).cls, "begin") for row in rows)
    return "looking at the data before training …" if looks else "starting"


def table(results, current, lines, metric):
    """One row per run; that of the current settings is marked. Below it the baselines."""
    rows = []
    for i, r in enumerate(results, 1):
        where = " + ".join(
            (row["where"] or "–") + ("" if row["layers"] is None else f" ({_layers(row['layers'])})")
            for row in r.spec["recipe"]
        )
        cells = (
            i,
            plots.name_of(r.spec),
            where,
            score(r),
            f"{r.counts['delta']:,} + {r.counts['head']:,}",
            f"{r.spec['lr']:g}",
            r.spec["steps"],
            r.spec["seed"],
            f"{r.seconds:.1f} s",
        )
        mark = ' class="pl-current"' if r is current else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>")
    names = ("run", "method", "sites", f"{metric} on test", "delta + head", "rate", "steps", "seed", "time")
    head = "<tr>" + "".join(f"<th>{html.escape(n)}</th>" for n in names) + "</tr>"
    said = "; ".join(f"{html.escape(line['name'].split(' (')[0])} {line['words']}" for line in lines)
    below = seeds(results, metric)
    below += f'<div class="pl-hint">Baselines, {html.escape(metric)} on test: {said}.</div>' if lines else ""
    return (f"<table>{head}{''.join(rows)}</table>" if rows else "") + below


def score(r):
    """The score of a run in words; one without a metric diverged."""
    return "stopped" if r.stopped else f"{r.score:.3f}" if r.metric else "diverged"


def _layers(layers):
    return layers if isinstance(layers, str) else ", ".join(map(str, layers))


def seeds(results, metric):
    """A line for every spec that ran with several seeds."""
    groups = {}
    for r in results:
        if not r.stopped:
            groups.setdefault(json.dumps(r.spec | dict(seed=0)), []).append(r)
    return "".join(
        f'<div class="pl-hint pl-over-seeds">{html.escape(f"{plots.name_of(runs[0].spec)}, {metric} on test: ")}'
        f"{plots.told([r.score for r in runs])}</div>"
        for runs in groups.values()
        if len(runs) > 1
    )


def code(spec):
    """The call that repeats these settings without a panel, and the spec as JSON."""
    row = spec["recipe"][0]
    if len(spec["recipe"]) == 1:
        said = [repr(row["method"]), *(f"{k}={v!r}" for k, v in row["settings"].items())]
        said += [f"where={row['where']!r}"] if row["where"] else []
        said += [f"layers={row['layers']!r}"] if row["layers"] is not None else []
    else:
        said = [repr(spec["recipe"])]
    default = dict(
        seed=0,
        batch=32,
        accumulate=1,
        every=10,
        size=None,
        head="trained",
        precision="fp32",
        pretrained=True,
        task_knobs={},
    )
    said += [f"{k}={v!r}" for k, v in spec.items() if k != "recipe" and default.get(k, ...) != v]
    line = f"pl.run(pl.spec({', '.join(said)}))"
    return (
        f"<details><summary>the same run without the panel</summary><pre>{html.escape(line)}</pre>"
        f"<pre>{html.escape(json.dumps(spec, ensure_ascii=False))}</pre></details>"
    )
