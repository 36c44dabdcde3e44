"""Figures of the claims of Fu et al.: their verdicts, our table beside theirs, our density sweep beside theirs."""

import html

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import claims, published, resampling
from .errors import choose
from .pictures import COLOURS, GREY, styled

SIGNS = {
    claims.HOLDS: ("✔", "#1b7f4f"),
    claims.FAILS: ("✘", "#b3261e"),
    claims.UNDECIDED: ("≈", "#66707a"),
    claims.MISSING: ("–", "#66707a"),
}
THEIRS = {ours: name for name, ours in published.NAMES.items()}


# The verdicts -------------------------------------------------------------------------------------


def verdicts(frame):
    """The frame of `claims.verdicts` as a table (HTML), with what the paper's own figures say beside each claim."""
    from IPython.display import HTML

    for column in ("claim", "verdict", "effect", "low", "high", "claimed"):
        choose(column, frame.columns, "column")
    said = published.published_status().set_index("claim")["status"]
    cell = '<td style="text-align:left;vertical-align:top;padding:6px 8px">'
    line = '<tr style="border-top:1px solid rgba(128,136,144,.4)">'
    rows = ""
    for row in frame.itertuples():
        claim = f"<b>{row.claim}</b> {html.escape(row.statement)}"
        rows += line + cell + cell.join((claim, html.escape(said[row.claim]), told(row), chip(row.verdict)))
    paper = "the paper's own figures, recomputed (Table 1 and Table 2)"
    widths = {"claim": 23, paper: 26, "runs here": 31, "verdict": 20}  # %
    head = "".join(f'<th style="text-align:left;padding:6px 8px;width:{w}%">{text}' for text, w in widths.items())
    style = "border-collapse:collapse;width:100%;max-width:900px;table-layout:fixed;font-size:13px;line-height:1.4"
    return HTML(f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>')


def chip(verdict):
    sign, colour = SIGNS[verdict]
    look = f"display:inline-block;color:white;background:{colour};border-radius:4px;padding:2px 6px"
    return f'<span style="{look}">{sign} {verdict}</span>'


def told(row):
    """Effect, interval and what else was found, in words."""
    if row.verdict == claims.MISSING:
        return "no runs"
    none = np.isnan(row.low)
    limits = "(no interval below five seeds)" if none else f"[{row.low:.3g}, {row.high:.3g}]"
    small = row.also if none else f"{row.also}; interval: {row.interval}"
    claimed = html.escape(row.claimed).replace(" ", "&nbsp;")
    number = f"<b>{row.effect:.3g}</b> {limits}, claimed {claimed}"
    return f'{number}<br>{html.escape(row.measure)}<br><span style="opacity:.75">{html.escape(small)}</span>'


# The tables ---------------------------------------------------------------------------------------


def tables(main, perturbed=None):
    """Our mean scores by method and task beside the paper's, in one order of methods; a button changes the design.

    A colour is the distance to full fine-tuning on that task, in points; ± is half of a 95 % interval by Student's t
    (the paper's from its printed deviation of ten runs). main, perturbed: method, task, seed, score (shares of 1).
    """
    ours = [resampling.runs(f, ["full"]) for f in (main, perturbed) if f is not None]
    methods = list(dict.fromkeys([*THEIRS, *(m for r in ours for m in r.methods)]))
    columns = [_ours(r, methods) for r in ours], [_theirs(n, methods) for n in (1, 2)]
    widths = [len(panels[0].x) for panels in columns]
    look = dict(shared_yaxes=True, horizontal_spacing=0.02, column_widths=widths)
    figure = make_subplots(1, 2, subplot_titles=_titles(ours[0], 1), **look)
    for k, panels in enumerate(columns, 1):
        for i, panel in enumerate(panels):
            figure.add_trace(panel.update(visible=i == 0), 1, k)
    styled(figure, 190 + 34 * len(methods), updatemenus=[_designs(ours)])
    figure.update_layout(coloraxis=dict(colorscale="RdBu", cmin=-8, cmax=8, colorbar=_bar()))
    figure.update_annotations(font_size=12, yshift=20)
    figure.update_xaxes(side="top", showgrid=False, tickangle=0, tickfont_size=10)
    names = [THEIRS.get(m, m) for m in methods]
    figure.update_yaxes(autorange="reversed", showgrid=False, tickvals=methods, ticktext=names)
    return figure.update_layout(margin=dict(l=100, r=16, t=110, b=64))


def _bar():
    title = dict(
        text="points above full fine-tuning on the task (deepest from 8 on); ± is half of a 95 % interval",
        side="bottom",
        font_size=12,
    )
    return dict(orientation="h", y=-0.02, yanchor="top", thickness=10, len=0.6, title=title)


def _titles(runs, number):
    return f"here: {runs.n} seeds", f"Fu et al., Table {number}: 10 runs"


def _designs(ours):
    """Buttons that show the traces of one design: other seeds, or other training rows."""
    last = len(ours) - 1
    shown = lambda i: [k == min(i, last) for k in range(last + 1)] + [k == i for k in (0, 1)]
    words = lambda i: {f"annotations[{k}].text": t for k, t in enumerate(_titles(ours[min(i, last)], i + 1))}
    labels = ("other seeds (Table 1)", "other training rows (Table 2)")
    buttons = [dict(label=l, method="update", args=[dict(visible=shown(i)), words(i)]) for i, l in enumerate(labels)]
    place = dict(x=0, xanchor="left", y=1, yanchor="bottom", pad=dict(b=56))
    return dict(type="buttons", direction="right", buttons=buttons, font=dict(size=12, color="#444"), **place)


def _ours(runs, methods):
    scores = 100 * np.concatenate([runs.scores, runs.scores.mean(1, keepdims=True)], 1)
    mean, low, _ = resampling.student(scores)
    return _tile(runs.methods, [*runs.tasks, "mean"], mean, mean - low, methods)


def _theirs(number, methods):
    table = published.printed(number)
    half = resampling.student_half(table.std, published.RUNS)
    mean = np.concatenate([table.mean, table.mean.mean(-1, keepdims=True)], 1)
    half = np.concatenate([half, np.full((len(half), 1), np.nan)], 1)  # of an average of tasks it cannot be known
    return _tile(table.methods, [*table.tasks, "AVG"], mean, half, methods)


def _tile(names, tasks, mean, half, methods):
    """A heat map with a row for each of `methods`, an empty one where it was not run."""
    gain = mean - mean[names.index("full")]
    told = lambda v, h: f"{v:.1f}" if np.isnan(h) else f"{v:.1f}<br>±{h:.1f}"
    text = [[*map(told, *pair)] for pair in zip(mean, half, strict=True)]
    at = {m: i for i, m in enumerate(names)}
    rows = lambda grid, blank: [list(grid[at[m]]) if m in at else [blank] * len(tasks) for m in methods]
    look = dict(texttemplate="%{text}", textfont_size=10, coloraxis="coloraxis", xgap=1, ygap=1)
    hover = "%{y}, %{x}: %{text}<br>%{z:+.2f} points to full fine-tuning<extra></extra>"
    z, text = rows(np.round(gain, 2), None), rows(text, "")
    return go.Heatmap(x=tasks, y=methods, z=z, text=text, hovertemplate=hover, **look)


# The sweep ----------------------------------------------------------------------------------------


def sweep(sweep):
    """Mean score and standard deviation over seeds against the density p, beside Figure 5 of the paper.

    sweep: method, task, seed, score, p (shares of 1), perhaps train, the score on the training rows. Rows without a p,
    those of full fine-tuning and of the head alone, are dashed lines. Bars are 95 % intervals over seeds: Student's t
    for the mean, a bootstrap for the deviation.
    """
    choose("p", sweep.columns, "column")
    titles = (
        "here: mean score",
        "Fu et al.: mean score",
        "here: deviation over seeds",
        "Fu et al.: deviation over seeds",
    )
    look = dict(shared_xaxes="columns", horizontal_spacing=0.2, vertical_spacing=0.12)
    figure = make_subplots(2, 2, subplot_titles=titles, **look)
    masked = sweep[sweep["p"].notna()].sort_values("p")
    for (method, rows), colour in zip(masked.groupby("method", sort=False), COLOURS, strict=False):
        _curves(figure, rows, method, colour)
    for method, rows in sweep[sweep["p"].isna()].groupby("method", sort=False):
        _baseline(figure, rows, method)
    theirs = published.sweep(average=True).query("task == 'AVG'")
    for row, what in enumerate(("mean", "std"), 1):
        look = dict(
            mode="lines+markers", line=dict(color=GREY, width=3), name="SAM in the paper (recovered from Figure 5)"
        )
        figure.add_scatter(x=theirs["p"], y=theirs[what], showlegend=row == 1, row=row, col=2, **look)
    styled(figure, 600, legend=dict(orientation="h", x=0, y=-0.12, yanchor="top"))
    figure.update_xaxes(type="log", dtick=1)
    figure.update_xaxes(title="density p (log scale)", row=2)
    figure.update_yaxes(title="points, mean over tasks", col=1)
    return figure.update_layout(margin=dict(b=130))


def _curves(figure, rows, method, colour):
    """Mean and deviation of one method at every density, and its score on the training rows where there is one."""
    found = resampling.runs(rows, by="p")
    mean, low, _ = resampling.student(100 * found.scores.mean(1))
    std = 100 * found.table().std.mean(-1)
    less, more = resampling.bounds(100 * found.resampled().std.mean(-1), found.n)
    look = dict(x=found.methods, mode="lines+markers", line=dict(color=colour), legendgroup=method)
    bar = lambda up, down=None: dict(type="data", array=up, arrayminus=down, color=colour, thickness=1.5)
    figure.add_scatter(y=mean, error_y=bar(mean - low), name=f"{method} ({found.n} seeds)", row=1, col=1, **look)
    figure.add_scatter(y=std, error_y=bar(more - std, std - less), showlegend=False, row=2, col=1, **look)
    if "train" in rows:
        look |= dict(mode="lines", line=dict(color=colour, dash="dot"))
        train = 100 * rows.groupby("p")["train"].mean()
        figure.add_scatter(y=train, name=f"{method}, training rows", row=1, col=1, **look)


def _baseline(figure, rows, method):
    """Dashed lines at what does not depend on p."""
    values = rows["score"].mean(), rows.groupby("task")["score"].std().mean()
    for row, value in enumerate(values, 1):
        if not np.isnan(value):  # there is no deviation of a single seed
            note = dict(annotation_text=f"{method} {100 * value:.1f}", annotation_position="right")
            figure.add_hline(100 * value, line=dict(dash="dash", color=GREY), row=row, col=1, **note)
