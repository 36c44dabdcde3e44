"""Figures of masks: which entries they take, what two have in common, where they sit, and what they cost.

No torch is imported here.
"""

import itertools
import json

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import pictures
from .errors import PeftlabError
from .findings import LEGEND, sliding
from .paths import data
from .pictures import COLOURS, GREY, styled

BLUE, RED, ORANGE = COLOURS[0], COLOURS[1], COLOURS[4]
SCORES = dict(random="random", magnitude="largest |W|", gradient="largest |Σ g|")
SITES = dict(zip("q k v o up down norm1 norm2 embed".split(), (*COLOURS, GREY), strict=True))
DENSITIES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
NEVER = "."  # an entry that even the largest density leaves out


def by_chance(a, b):
    """a·b / (a + b - a·b): |both| / |either| expected of independent masks with densities a and b.

    a·b of the entries are in both, a + b - a·b in at least one; for a = b = p it is p² / (2p - p²), for 0 None.
    """
    return a * b / (a + b - a * b) if a or b else None


def percent(p):
    return "–" if p is None else f"{100 * p:.3g} %"


def table(rows, *columns):
    """The rows, if there are any and they have these columns; else a PeftlabError."""
    if not rows:
        raise PeftlabError("there are no rows to draw; a figure needs at least one")
    if missing := [c for c in columns if c not in rows[0]]:
        raise PeftlabError(f"the rows have no {' and no '.join(missing)}; they have {', '.join(map(str, rows[0]))}")
    return rows


# Which entries ------------------------------------------------------------------------------------


def density(record=None):
    """One weight matrix, and which of its entries a density p takes at random, by |W| and by |Σ g|; a slider over p.

    record: what `peftlab.mask_figure` makes; without one, the shipped one. The caption says how many entries these
    are, and which share of the entries that either of two masks takes both take.
    """
    record = record or json.loads((data() / "results" / "mask_figure.json").read_text(encoding="utf-8"))
    names, end = list(record["levels"]), len(record["densities"])
    number = {np.base_repr(i, 36).lower(): i for i in range(end)} | {NEVER: end}
    levels = {n: np.array([[number[c] for c in line] for line in lines]) for n, lines in record["levels"].items()}
    titles = [SCORES[n] for n in names]
    figure = make_subplots(1, len(names), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    look = dict(colorscale=[[0, BLUE], [1, "rgba(128,136,144,.12)"]], showscale=False)
    look |= dict(hovertemplate="row %{y}, column %{x}<extra></extra>")
    border = lambda i: dict(zmin=i + 0.4, zmax=i + 0.6)  # a tile never changes, only where its two colours part
    for k, z in enumerate(levels.values(), 1):
        figure.add_trace(go.Heatmap(z=z.tolist(), **look | border(0)), 1, k)
    told = [dict(text=_told_density(record, levels, i), font=dict(size=14), y=0.95, yanchor="top") for i in range(end)]
    shown = [percent(p) for p in record["densities"]]
    figure.frames = [
        go.Frame(name=p, data=[go.Heatmap(**border(i)) for _ in names], traces=[0, 1, 2], layout=dict(title=told[i]))
        for i, p in enumerate(shown)
    ]
    styled(figure, 470, title=told[0], updatemenus=[pictures._play()])
    sliding(figure, shown, "density p = ", y=-0.08).update_layout(margin=dict(l=64, r=12, t=78, b=112))
    figure.layout.sliders[0].update(x=0.14, len=0.84)
    figure.layout.updatemenus[0].update(y=-0.17)
    heads, n = record["heads"], len(z)
    middles = [(k + 0.5) * n / heads - 0.5 for k in range(heads)]
    figure.update_yaxes(autorange="reversed", showgrid=False, tickvals=middles, zeroline=False)
    figure.update_yaxes(ticktext=[f"head {k}" for k in range(heads)], col=1)
    return figure.update_xaxes(showgrid=False, showticklabels=False, zeroline=False)


def _told_density(record, levels, i):
    """How many entries that is, and what each two of the masks have in common."""
    place, p = record["place"], record["densities"][i]
    masks = {n: z <= i for n, z in levels.items()}
    share = lambda a, b: (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
    short = lambda n: SCORES[n].removeprefix("largest ")
    pairs = [f"{short(a)} and {short(b)} {share(a, b):.1%}" for a, b in itertools.combinations(masks, 2)]
    one = next(iter(masks.values()))
    where = f"{place['site']} in layer {place['layer']} of {place['backbone']}, task {place['task']}"
    return (
        f"p = {percent(p)}: {one.sum():,} of the {one.size:,} entries of {where}<br>"
        f"in common: {', '.join(pairs)}; by chance {by_chance(p, p):.1%}"
    )


# What masks have in common, and where they sit ----------------------------------------------------


def overlap(masks):
    """|both| / |either| (Jaccard) of each two masks, in %; hover for what `by_chance` expects of their densities.

    masks: {title: {parameter's name: booleans}}. A density is the share of all numbers of the tensors in any mask.
    """
    from .sparsity import overlap as jaccard

    titles, sizes = list(table(masks)), {n: m.numel() for mask in masks.values() for n, m in mask.items()}
    p = {t: sum(int(m.sum()) for m in mask.values()) / max(1, sum(sizes.values())) for t, mask in masks.items()}
    z = [[jaccard(masks[a], masks[b]) for b in titles] for a in titles]
    pairs = lambda a, line: [_told_overlap((a, p[a]), (b, p[b]), share) for b, share in zip(titles, line, strict=True)]
    hover = [pairs(a, line) for a, line in zip(titles, z, strict=True)]
    others = [share for i, line in enumerate(z) for share in line[:i] if share is not None]
    text = [["–" if share is None else _brief(100 * share) for share in line] for line in z]
    words = dict(text=text, texttemplate="%{text}", textfont_size=11 if len(masks) > 8 else 13)
    look = dict(colorscale="Blues", zmin=0, zmax=max([0.1, *others]), showscale=False, xgap=1, ygap=1)
    figure = go.Figure(go.Heatmap(x=titles, y=titles, z=z, hovertext=hover, hoverinfo="text", **words, **look))
    title = dict(text="in common, in % of the entries that either changes", font=dict(size=14), y=0.98, yanchor="top")
    styled(figure, 160 + 36 * len(masks), title=title).update_layout(margin=dict(t=40, b=12))
    figure.update_xaxes(tickangle=-40, automargin=True, showgrid=False, dtick=1)
    return figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False, dtick=1)


def _told_overlap(one, other, share):
    """The hover text of two masks; each is (title, density)."""
    lines = [f"{title}: density {percent(p)}" for title, p in (one, other)]
    chance = percent(by_chance(one[1], other[1]))
    return "<br>".join([*lines, f"in common {percent(share)}, {chance} if they were independent"])


def _brief(v):
    """Four letters at most."""
    return f"{v:.1f}" if 0 < v < 9.95 else f"{v:.0f}"


def located(masks, model):
    """Where each mask's entries sit: their shares by site, and by layer the density beside that of an even spread.

    masks: {title: {parameter's name: booleans}}. The even spread is over the sites that any of the masks reaches.
    PeftlabError for a mask without an entry at a labelled place.
    """
    from .sparsity import located as places

    rows = {title: places(mask, model) for title, mask in table(masks).items()}
    if empty := [t for t, found in rows.items() if not any(r["chosen"] for r in found)]:
        raise PeftlabError(f"the mask {empty[0]!r} has no entry at a labelled place; leave it out")
    reached = {r["site"] for found in rows.values() for r in found if r["chosen"]}
    rows = {t: [r for r in found if r["site"] in reached] for t, found in rows.items()}
    even = [r | dict(chosen=r["numbers"]) for r in next(iter(rows.values()))]
    rows |= {"even spread": even}
    titles = ["share of the entries by site", "by layer, even spread = 1"]
    look = dict(shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.55, 0.45])
    figure, y = make_subplots(1, 2, subplot_titles=titles, **look), [*range(len(rows))]
    for site in sorted(reached, key=[*SITES].index):
        x = [_part(found, site=site) for found in rows.values()]
        hover = dict(text=list(rows), textposition="none", hovertemplate="%{text}: %{x:.1%}")
        figure.add_bar(x=x, y=y, orientation="h", name=site, marker_color=SITES[site], **hover)
    layers = sorted({r["layer"] for r in even}, key=lambda k: -1 if k is None else k)
    times = np.array([[_part(found, layer=k) / _part(even, layer=k) for k in layers] for found in rows.values()])
    look = dict(colorscale="RdBu_r", zmin=-2, zmax=2, showscale=False, xgap=1, ygap=1, hoverinfo="skip")
    words = dict(text=[[f"{v:.2f}" for v in line] for line in times], texttemplate="%{text}")
    x, logs = ["embed" if k is None else f"{k}" for k in layers], np.log2(np.maximum(times, 1 / 16))
    figure.add_trace(go.Heatmap(x=x, y=y, z=logs.tolist(), **look, **words), 1, 2)
    below = LEGEND | dict(xref="container", yref="container", y=0, traceorder="normal")
    styled(figure, 160 + 30 * len(rows), barmode="stack", legend=below).update_annotations(font_size=14)
    names = dict(tickvals=y, ticktext=list(rows), range=[len(rows) - 0.5, -0.5])
    figure.update_yaxes(**names, automargin=True, showgrid=False, zeroline=False)
    figure.update_xaxes(range=[0, 1], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75], col=1)
    figure.update_xaxes(showgrid=False, type="category", tickangle=0, title="layer", col=2)
    return figure.update_layout(margin=dict(b=84))


def _part(rows, **where):
    """The share of the chosen entries of these rows that lie there."""
    ((key, value),) = where.items()
    return sum(r["chosen"] for r in rows if r[key] == value) / sum(r["chosen"] for r in rows)


# What a mask costs --------------------------------------------------------------------------------

PARTS = dict(weights=GREY, gradients=BLUE, optimizer=COLOURS[2], saved=ORANGE)


def memory(rows, beside="full fine-tuning"):
    """MB of a training step, and above it what is held while a mask is looked for, before the training.

    rows: {title, weights, gradients, optimizer, saved, looking} in MB; looking is None where nothing is looked for. The
    dashed line is a step of the row with the title `beside`, if there is one.
    """
    titles = [r["title"] for r in table(rows, "title", *PARTS, "looking")]
    figure, steps = go.Figure(), {r["title"]: sum(r[part] for part in PARTS) for r in rows}
    hover = "%{y}: %{x:.3g} MB %{fullData.name}<extra></extra>"
    for part, colour in PARTS.items():
        look = dict(orientation="h", marker_color=colour, hovertemplate=hover, offset=-0.4, width=0.46)
        figure.add_bar(y=titles, x=[r[part] for r in rows], name=part, **look)
    look = dict(orientation="h", hovertemplate=hover, offset=0.1, width=0.24, base=0)  # a base: it is not stacked
    pattern = dict(color="rgba(217,83,79,.35)", pattern=dict(shape="/", fgcolor=RED), line=dict(color=RED, width=1))
    if any(r["looking"] for r in rows):
        figure.add_bar(y=titles, x=[r["looking"] for r in rows], name="while it looks", marker=pattern, **look)
    if beside in steps:
        figure.add_vline(x=steps[beside], line=dict(dash="dash", color=GREY))
    styled(figure, 130 + 40 * len(rows), barmode="stack", legend=LEGEND | dict(traceorder="normal"))
    figure.update_yaxes(categoryorder="array", categoryarray=titles[::-1], automargin=True, dtick=1, showgrid=False)
    return figure.update_xaxes(title=f"MB; dashed: a step of {beside}" if beside in steps else "MB")
