"""What the runs of the gate say, as tables."""

import math

from ..metrics import TEXTS


def frame(records, wanted):
    """One row per wanted run: its record, its score in points (of 100), its seconds when it ran alone (or nan)."""
    import pandas as pd

    runs = pd.DataFrame([dict(alone=math.nan) | records[key] for key in wanted])
    return runs.assign(points=runs.score * runs.metric.map(scale))


def interval(values):
    """Mean, and half the width of its 95 % interval (Student's t); infinite for a single value."""
    from scipy.stats import t

    values = list(values)
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, math.inf
    return mean, t.ppf(0.975, n - 1) * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def table(runs):
    """Rows of text: the heading, then a task each; a column for each arm, in points."""
    arms = list(dict.fromkeys(runs.method))
    rows = [("task", "metric", "constant", *arms)]
    for task, some in runs.groupby("task", sort=False):
        metric = some.metric.iloc[0]
        cells = ["{:.1f} ± {:.1f}".format(*interval(some.points[some.method == arm])) for arm in arms]
        rows.append((task, metric, f"{scale(metric) * some.chance.max():.1f}", *cells))
    return rows


def scale(metric):
    """Points per unit of a metric: BLEU and the like are in points already."""
    return 1 if metric in TEXTS else 100


def aligned(rows):
    """Rows as columns of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(rows):
    """Rows as the lines of a Markdown table; the first is the heading."""
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
