"""Figures of `sparse_view`: the share of a model that each method changes, and what breaks it. No torch here."""

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .findings import LEGEND, grouped
from .pictures import COLOURS, GREY, styled

BLUE, RED, ORANGE = COLOURS[0], COLOURS[1], COLOURS[4]
ALL = "{title}: {changed:,} of {size:,} numbers<br>of the backbone and its delta<br>|M⁰ − M̃⁰| ≤ {apart:.1e}"
OWN = "{title}: {own_changed:,} of {own_size:,} numbers<br>of the backbone, its delta merged"


def definitions(rows):
    """The share p of the entries that changed, a line for each method under its category in the review.

    Filled: of the equivalent model; a red cross where it is none (Def. 2 fails). Open: of the backbone's own entries
    after merging. A method that could not be measured says so. rows: of `sparse_view.sparse_models`.
    """
    lines = ordered(rows)
    at = {line["method"]: y for y, line in enumerate(lines) if "method" in line}
    good, broken = ([r for r in rows if r["equivalent"] is e] for e in (True, False))
    merged = [r for r in rows if r["own_share"] is not None]
    figure = go.Figure()
    place = log_axis(figure, [r[k] for r in rows for k in ("share", "own_share") if r[k] is not None])
    for r in merged:
        ends = dict(x=[place(r["share"]), place(r["own_share"])], y=[at[r["method"]]] * 2)
        figure.add_scatter(**ends, mode="lines", line_color=GREY, showlegend=False, hoverinfo="skip")
    for some, key, text, name, look in (
        (good, "share", ALL, "of the equivalent model", dict(color=BLUE)),
        (broken, "share", ALL, "not equivalent: Def. 2 fails", dict(color=RED, symbol="x")),
        (merged, "own_share", OWN, "of the backbone, merged", dict(color=ORANGE, symbol="diamond-open", line_width=2)),
    ):
        x, y = [place(r[key]) for r in some], [at[r["method"]] for r in some]
        hover = dict(text=[text.format(**r) for r in some], hovertemplate="%{text}<extra></extra>")
        figure.add_scatter(x=x, y=y, **hover, mode="markers", name=name, marker=dict(size=9) | look)
    for r in rows:
        if r["reason"]:
            said = dict(text="not measured", hovertext=r["reason"], showarrow=False, font_size=12)
            figure.add_annotation(x=0.01, xref="x domain", xanchor="left", y=at[r["method"]], **said)
    styled(figure, 130 + 19 * len(lines), legend=LEGEND | dict(y=1)).update_layout(margin=dict(t=52, l=10))
    names = dict(tickvals=[*range(len(lines))], ticktext=[line["title"] for line in lines], tickfont_size=12)
    figure.update_yaxes(**names, range=[len(lines) - 0.5, -0.7], automargin=True, zeroline=False)
    return figure.update_xaxes(title="share p of the entries that changed (log scale)")


def ordered(rows):
    """The lines of the figure: a heading for each category, what is not in the review last, and its rows by share."""
    lines, groups = [], grouped([r | dict(group=r["review"].split("/")[0]) for r in rows], "group")
    for group in sorted(groups, key="–".__eq__):
        lines.append(dict(title=f"<b>{'beyond the review' if group == '–' else group}</b>"))
        lines += sorted(groups[group], key=lambda r: math.inf if r["share"] is None else r["share"])
    return lines


def log_axis(figure, values, **where):
    """Make x a log axis of these shares up to 100 %, with room for a 0; returns where a share stands on it."""
    low = math.floor(math.log10(min([v for v in values if v], default=0.1)))
    decades, zero = [*range(low, 1)], [low - 1] if 0 in values else []
    words = ["0"] * len(zero) + [f"{100 * 10.0**k:g} %" for k in decades]
    ticks = dict(tickvals=[10.0**k for k in zero + decades], ticktext=words)
    figure.update_xaxes(type="log", range=[(zero + decades)[0] - 0.1, 0.15], **ticks, **where)
    return lambda share: share or 10.0 ** (low - 1)


def traps(found):
    """Three ways out of the definitions: weight decay, old moments, no zeros. found: of `sparse_view.traps`."""
    titles = ["entries that changed", "mean drift of masked entries,<br>in learning rates"]
    titles += ["|M⁰ − M̃⁰| at most,<br>at the start"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.09, column_widths=[0.42, 0.34, 0.24])
    rows = found["decayed"]
    log_axis(figure, [r["changed"] / r["size"] for r in rows], row=1, col=1)
    looks = dict(size=14, symbol="circle-open", line_width=2, color=BLUE), dict(size=8, color=RED)
    for (decay, some), look in zip(grouped(rows, "weight_decay").items(), looks, strict=True):
        x, y = [r["changed"] / r["size"] for r in some], [r["how"].split(" (")[0].replace(" ", "<br>") for r in some]
        figure.add_scatter(x=x, y=y, mode="markers", marker=look, name=f"weight decay {decay:g}", row=1, col=1)
    p = rows[0]["allowed"] / rows[0]["size"]
    figure.add_vline(x=p, line=dict(dash="dash", color=GREY), row=1, col=1)
    for row, colour in zip(found["momentum"], (RED, BLUE), strict=True):
        curve = dict(x=[*range(len(row["mean"]) + 1)], y=[0, *row["mean"]], name=f"{row['how']} (≤ {row['most']:.3g})")
        figure.add_scatter(**curve, mode="lines", line_color=colour, legend="legend2", row=1, col=2)
    for row, colour in zip(found["redrawn"], (BLUE, RED), strict=True):
        look = dict(marker_color=colour, text=f"{row['apart']:.2g}", textposition="outside", cliponaxis=False)
        figure.add_bar(x=[row["how"].replace(" ", "<br>")], y=[row["apart"]], **look, showlegend=False, row=1, col=3)
    below = dict(xanchor="left", y=-0.28, yanchor="top")
    styled(figure, 400, legend=below | dict(x=0), legend2=below | dict(x=0.42)).update_annotations(font_size=13)
    figure.update_yaxes(autorange="reversed", col=1).update_xaxes(tickangle=0)
    for col, title in ((1, "share (log scale)"), (2, "steps after the mask began")):
        figure.update_xaxes(title=dict(text=title, font_size=13), col=col)
    return figure.update_layout(margin=dict(b=120))
