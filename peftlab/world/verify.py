"""The gate of the micro-world: it trains, computes, and says pass or FAIL; no figure in it is asserted by hand.

`python -m peftlab.world verify` makes data/results/bench.jsonl (five seeds of every arm that `sweep.BENCH` names, at
the default size and steps, with the sweep's rates), prints the tables with their intervals and then every line of
GATE. `--quick` makes a sample of these runs again and compares, and computes the checks from the file.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from ..paths import data
from .embedded import SPLITS
from .report import aligned, frame, interval, markdown, scale, table
from .sweep import BENCH, FIELDS, FIRST, SWEPT, current, fill, keep, outcomes, parts, rate, read, trial, winner
from .sweep import COMMAND as SWEEP

COMMAND = "python -m peftlab.world verify"
SEEDS = (0, 1, 2, 3, 4)
KEPT = (*FIELDS, "score", "metric", "chance", "percent", "wall", "versions")
QUICK = 150  # core-seconds of the sample, as they were when it was recorded
# Points between a run and its repetition. On the same kind of processor there are none. On another one sums are rounded
# differently, and some test rows at the border of two classes fall to the other side: without vector instructions full,
# LoRA and head alone moved by 0.0 points on reviews, a prompt (high rate) by 0.4. Another torch may do as much.
TOLERANCE = 2.0


def verify(names=(), jobs=1, quick=False, path=None, say=print, seeds=SEEDS, **sizes):
    """Whether the gate is passed by these backbones (default: all); says the tables and every check on the way.

    About 125 core-minutes for all that BENCH names, 65 of them for micro-encoder and 33 for mini-encoder. A run that is
    in the file is not made again; one of other rows, other weights or another rate is dropped. quick: about 3.
    """
    path = path or data() / "results" / "bench.jsonl"
    wanted = bench(names, seeds, **sizes)
    if quick:
        lacking = wanted.keys() - read(path).keys()
        if lacking:
            say(f"FAIL  {path.name} is not of the present data: {stale(read(path), lacking)}")
            return False
        checks = [repeated(read(path), wanted, jobs, say)]
    else:
        fill(path, wanted, KEPT, jobs, say)
        time_alone(path, wanted)
        checks = []
    runs = frame(read(path), wanted)
    for name in parts(names):
        figures = aligned(table(runs[runs.backbone == name]))
        say(f"\n{name}: mean on test and 95 % interval over {len(seeds)} seeds\n{figures}")
    checks += judge(runs, names)
    say("")
    for name, passed, figure, sentence in checks:
        say(f"{'pass' if passed else 'FAIL'}  {name}: {figure} ({sentence})")
    return all(passed for _, passed, _, _ in checks)


def judge(runs, names=()):
    """(name, passed, figure, what was asked) of every check whose backbones are all there."""
    return [(c.name, *c.measure(runs, *c.backbones, **c.limits)) for c in GATE if {*c.backbones} <= {*parts(names)}]


def page(path):
    """The bench and its gate as lines of Markdown, computed from the file: of the backbones that are whole in it."""
    records, lines = read(path), []
    if lacking := bench().keys() - records.keys():
        lines = [f"Not all of it can be shown: {stale(records, lacking)}.", ""]
    whole = [name for name in parts() if bench([name]).keys() <= records.keys()]
    if not whole:
        return lines
    runs = frame(records, bench(whole))
    lines += [f"Mean on test and 95 % interval over {len(SEEDS)} seeds; `constant` is the best constant answer."]
    for name in whole:
        lines += ["", f"**{name}**", "", *markdown(table(runs[runs.backbone == name]))]
    checks = [(name, "pass" if passed else "FAIL", figure, asked) for name, passed, figure, asked in judge(runs, whole)]
    return [*lines, "", "**the gate**", "", *markdown([("check", "", "measured", "what is asked"), *checks])]


def bench(names=(), seeds=SEEDS, **sizes):
    """All trials of the gate, key -> Trial."""
    return {
        one.key: one
        for name, part in parts(names).items()
        for arm, lr in [(arm, rate(name, arm)) for arm in part.arms]
        for task in part.tasks
        for seed in seeds
        for one in [trial(name, task, arm, seed, lr, **sizes)]
    }


def stale(records, lacking):
    """What is wrong with the file, and the command that renews it."""
    old = sum(r["backbone"] in BENCH and not current(r) for r in records.values())
    return (
        f"it lacks {len(lacking)} of the runs as they are now, and {old} of its {len(records)} are of another world or "
        f"of other weights; run `{COMMAND}` (and before it `{SWEEP}`, when the tasks or a backbone have changed)"
    )


# the checks: runs -> (passed, the figure, what it is)


def means(runs, backbone):
    """Mean points over seeds: a row for each task, a column for each arm."""
    return runs[runs.backbone == backbone].groupby(["task", "method"]).points.mean().unstack()


def gap(runs, backbone, arm, other="full", tasks=None):
    """Points of an arm over another with the same task and seed, mean over tasks: one number per seed."""
    runs = runs[(runs.backbone == backbone) & (runs.task.isin(tasks) if tasks else True)]
    points = runs.set_index(["task", "seed", "method"]).points.unstack()
    return (points[arm] - points[other]).groupby("seed").mean()


def headroom(runs, backbone, over, least, share):
    """Full fine-tuning is better than `over` by `least` points on a share of the tasks, and on average."""
    points = means(runs, backbone)
    ahead = points["full"] - points[over]
    enough = int((ahead >= least).sum())
    below = ", ".join(f"{task} {d:.1f}" for task, d in ahead[ahead < least].items()) or "none"
    passed = enough >= share * len(ahead) and ahead.mean() >= least
    figure = f"{enough} of {len(ahead)} tasks, {ahead.mean():.1f} on average"
    return passed, figure, f"full ahead by {least} points on {share:.0%} of the tasks and on average; below: {below}"


def unsaturated(runs, backbone, most):
    """No task is solved."""
    full = means(runs, backbone)["full"]
    return full.max() < most, f"{full.max():.1f} on {full.idxmax()}", f"full below {most} points on every task"


# Two standard errors: where nothing is known, no metric here has one above 1/√rows.
MARGIN = 2 / math.sqrt(SPLITS["test"])


def leads(runs, backbone):
    """Points by which full fine-tuning is above the best constant answer and MARGIN, for each task."""
    full = runs[(runs.backbone == backbone) & (runs.method == "full")]
    return 100 * (full.score - full.chance - MARGIN).groupby(full.task).mean()


def above_chance(runs, backbone):
    """No task is at chance."""
    over = leads(runs, backbone)
    sentence = f"least lead of full over the best constant answer and two standard errors ({100 * MARGIN:.1f} points)"
    return over.min() > 0, f"{over.min():.1f} on {over.idxmin()}", sentence


def near(runs, backbone, arm, most, percent):
    """An arm is as good as full fine-tuning, with few parameters."""
    mean, half = interval(gap(runs, backbone, arm))
    share = runs[(runs.backbone == backbone) & (runs.method == arm)].percent.max()
    passed = mean >= -most and share <= percent
    figure = f"{mean:+.1f} ± {half:.1f} points with {share:.2f} % of the parameters"
    return passed, figure, f"{arm} within {most} points of full on average with at most {percent} %"


def behind(runs, backbone, arm, least, other="full", unit="points"):
    """An arm is clearly worse: by at least so much, and the whole interval says worse."""
    mean, half = interval(gap(runs, backbone, arm, other))
    passed = mean <= -least and mean + half < 0
    return passed, f"{mean:+.1f} ± {half:.1f} {unit}", f"{arm} behind {other} by at least {least}, and the interval too"


def shrinking(runs, large, *small, arm, tasks):
    """The arm is less behind on the large backbone than on each small one, on the same tasks.

    A task at chance for full fine-tuning on one of the two is left out: nobody can be behind where nothing is learnt.
    """
    figures, passed = [], True
    for name in small:
        learnt = [t for t in tasks if all(leads(runs, b)[t] > 0 for b in (large, name))]
        here, there = (float(gap(runs, b, arm, tasks=learnt).mean()) for b in (large, name))
        figures.append(f"{here:+.1f} beside {there:+.1f} on {name} ({', '.join(learnt)})")
        passed &= bool(learnt) and here > there
    return passed, "; ".join(figures), f"{arm} is less behind full on {large}, on the tasks that both learn"


def between(runs, backbone, low, arm, high):
    """The arms are in this order, on average over tasks."""
    points = means(runs, backbone).mean()
    figure = ", ".join(f"{name} {points[name]:.1f}" for name in (low, arm, high))
    return points[low] < points[arm] < points[high], figure, f"{arm} between {low} and {high}"


def rates_swept(runs):
    """Every learning rate is the sweep's choice, on the backbone itself or on micro-encoder."""
    chosen = lambda name, arm: winner(name, arm) or winner(FIRST, arm)
    used = {(r.backbone, r.method): r.lr for r in runs.itertuples()}
    guessed = [f"{name} {arm}" for (name, arm), lr in used.items() if lr != chosen(name, arm)]
    sentence = f"not from the sweep: {', '.join(guessed) or 'none'}" + (f"; run `{SWEEP}`" if guessed else "")
    return not guessed, f"{len(used) - len(guessed)} of {len(used)} rates", sentence


def reaches(runs, backbone, least):
    """Full fine-tuning writes well enough."""
    full = means(runs, backbone)["full"]
    return full.min() >= least, f"BLEU {full.min():.1f} on {full.idxmin()}", f"full at least {least}"


def fast(runs, backbone, most):
    """A default full fine-tuning, the dearest of all arms, is quick; without the scoring."""
    best = runs[runs.backbone == backbone].alone.max()
    return best <= most, f"{best:.1f} s", f"at most {most} s of training on one thread, the best of three runs alone"


class Check(NamedTuple):
    name: str
    backbones: tuple
    measure: Callable
    limits: dict = {}


GATE = (
    Check("rates come from the sweep", (), rates_swept),
    Check("headroom over scratch", (FIRST,), headroom, dict(over="scratch", least=10, share=0.8)),
    Check("headroom over the head", (FIRST,), headroom, dict(over="head", least=10, share=0.8)),
    Check("nothing is solved", (FIRST,), unsaturated, dict(most=99)),
    Check("nothing is at chance", (FIRST,), above_chance),
    Check("LoRA is enough", (FIRST,), near, dict(arm="lora", most=2, percent=2)),
    Check("adapters are enough", (FIRST,), near, dict(arm="adapter", most=2, percent=2)),
    Check("prompts lag on nano", ("nano-encoder",), behind, dict(arm="prompt", least=3)),
    Check("prompts lag on micro", (FIRST,), behind, dict(arm="prompt", least=3)),
    Check(
        "prompts gain with size",
        ("mini-encoder", FIRST, "nano-encoder"),
        shrinking,
        dict(arm="prompt", tasks=SWEPT),
    ),
    Check("BitFit is in between", (FIRST,), between, dict(low="head", arm="bitfit", high="lora")),
    Check("translation is learnt", ("micro-seq2seq",), reaches, dict(least=60)),
    Check("translation needs pretraining", ("micro-seq2seq",), behind, dict(arm="scratch", least=10, unit="BLEU")),
    Check("description is learnt", ("micro-decoder",), reaches, dict(least=50)),
    Check("description needs pretraining", ("micro-decoder",), behind, dict(arm="scratch", least=10, unit="BLEU")),
    Check("micro is fast", (FIRST,), fast, dict(most=10)),
    Check("nano is fast", ("nano-encoder",), fast, dict(most=4)),
)
LIMITS = {c.backbones[0]: c.limits["most"] for c in GATE if c.measure is fast}


def time_alone(path, wanted):
    """Three runs by themselves, after all others; again when the time in the file is above the limit."""
    for name, limit in LIMITS.items():
        plain = lambda t, name=name: (t.spec["backbone"], t.spec["task"], t.arm) == (name, SWEPT[0], "full")
        one = next(filter(plain, wanted.values()), None)
        if one and not (known := read(path)[one.key]).get("alone", math.inf) <= limit:
            keep(path, [known | dict(alone=min(r["seconds"] for r in outcomes([one] * 3)))])


def sample(records, wanted):
    """One run of every arm on every backbone, each on another task, as many as fit into QUICK core-seconds."""
    arms, taken, left = {}, [], QUICK
    for one in wanted.values():
        arms.setdefault((one.spec["backbone"], one.arm), []).append(one)
    for i, runs in enumerate(arms.values()):
        one = runs[i * len(SEEDS) % len(runs)]
        if (wall := records[one.key]["wall"]) <= left:
            taken, left = [*taken, one], left - wall
    return taken


def repeated(records, wanted, jobs, say):
    """The sample made again has the scores of the file."""
    worst = 0.0
    for r in outcomes(sample(records, wanted), jobs):
        apart = scale(r["metric"]) * abs(r["score"] - records[r["key"]]["score"])
        say(f"{r['backbone']} {r['task']} {r['method']} seed {r['seed']}: {apart:.2f} points from the record")
        worst = max(worst, apart)
    sentence = f"at most {TOLERANCE:g} points between a run and its record, of the same rows and weights"
    return "runs repeat", worst <= TOLERANCE, f"{worst:.2f} points", sentence
