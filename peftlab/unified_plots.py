"""Figures of unified methods: one prototype and its masks, routes, sparse adapters, what is stored. No torch here.

Points and bars are means over seeds, with 95 % intervals by Student's t.
"""

import itertools
import json

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import pictures
from .additive_plots import SMALL, told
from .findings import LEGEND, grouped, sliding, spread
from .mask_plots import BLUE, ORANGE, RED, by_chance, table
from .paths import data
from .pictures import COLOURS, GREY, styled
from .rivals import averaged_or_ensemble
from .study_plots import means

OUT = "rgba(128,136,144,.30)"  # where a mask lets nothing through

# One prototype ------------------------------------------------------------------------------------


def prototype(record=None):
    """ProPETL: a matrix that exists once, and below it what each layer takes of it, while both learn.

    record: what `peftlab.unified_figure` makes; without one, the shipped one. Grey is not taken by the layer. J is
    |both| / |either| of two layers' masks.
    """
    record = record or json.loads((data() / "results" / "unified_figure.json").read_text(encoding="utf-8"))
    steps, D = record["steps"], np.array(record["D"]) / 100  # (steps r d)
    M = np.array([[bits(mask, record["width"]) for mask in now] for now in record["masks"]])  # (steps layers r d)
    layers = range(M.shape[1])
    names = ["the prototype: D, stored once", *(f"layer {i} has D ⊙ M<sup>({i})</sup>" for i in layers)]
    figure = make_subplots(len(names), 1, subplot_titles=names, vertical_spacing=0.055, shared_xaxes=True)
    top = round(float(np.quantile(np.abs(D), 0.98)), 2)
    look = dict(
        colorscale="RdBu", zmin=-top, zmax=top, hoverongaps=False, colorbar=dict(thickness=12, tickformat=".1f")
    )
    look["hovertemplate"] = "row %{y}, column %{x}: %{z:.2f}<extra></extra>"

    def tiles(i):
        for k, taken in enumerate([np.ones_like(M[i, 0]), *M[i]]):
            yield go.Heatmap(z=np.where(taken, D[i], None).tolist(), showscale=k == 0, **look)

    for k, tile in enumerate(tiles(0), 1):
        figure.add_trace(tile, k, 1)
    titles, numbers = [told(_told_prototype(D, M, i, steps)) for i in range(len(steps))], [*range(len(names))]
    figure.frames = [
        go.Frame(name=str(s), data=[*tiles(i)], traces=numbers, layout=dict(title=titles[i]))
        for i, s in enumerate(steps)
    ]
    styled(figure, 220 + 84 * len(names), title=titles[0], updatemenus=[pictures._play()])
    figure.update_annotations(font=SMALL, x=0, xanchor="left")
    figure.update_xaxes(showgrid=False, zeroline=False, showticklabels=False)
    figure.update_yaxes(showgrid=False, zeroline=False, showticklabels=False, autorange="reversed")
    figure.update_xaxes(showticklabels=True, title="column of D: what the adapter reads", row=len(names))
    sliding(figure, steps, "training step ", y=-0.11).update_layout(
        margin=dict(l=12, r=12, t=104, b=128), plot_bgcolor=OUT
    )
    figure.layout.sliders[0].update(x=0.14, len=0.84)
    figure.layout.updatemenus[0].update(y=-0.2)
    return figure


def bits(words, width):
    """Booleans (rows width) of what `unified_figure.word` made of each row."""
    return np.array([np.unpackbits(np.frombuffer(bytes.fromhex(w), np.uint8))[:width] for w in words], bool)


def _told_prototype(D, M, i, steps):
    """How far the prototype and the masks have moved since the start, in words."""
    pairs = [(a & b).sum() / (a | b).sum() for a, b in itertools.combinations(M[i], 2)]
    moved, p = np.linalg.norm(D[i] - D[0]) / np.linalg.norm(D[0]), M[i].mean()
    shares = np.bincount(M[i].sum(0).ravel(), minlength=len(M[i]) + 1) / M[i, 0].size
    flipped, shared = (M[i] != M[0]).mean(), by_chance(p, p)
    return (
        f"step {steps[i]}: D has moved by {moved:.0%} of its length, {flipped:.0%} of the bits have flipped<br>"
        f"each layer takes {p:.0%} of {M[i, 0].size:,} entries (grey: the rest); {shares[-1]:.0%} are in all layers, "
        f"{shares[0]:.0%} in none<br>J of two layers is {np.mean(pairs):.2f} on average, by chance {shared:.2f}"
    )


# Routes and their mean ----------------------------------------------------------------------------


def routes(rows, within=0.02):
    """AdaMix after training: every single route, the mean of the copies, and all routes together, for each seed.

    rows: of the study `routing`. The title has claim X10, `averaged_or_ensemble`.
    """
    from .methods import get

    verdicts = averaged_or_ensemble(rows, within)
    methods, n = grouped(rows, "method"), len(rows[0]["routes"])
    titles = [get(m).title for m in methods]
    figure = make_subplots(1, len(methods), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    kinds = {
        "one route, 1 pass": ("routes", 0, dict(color=GREY, size=7, opacity=0.7)),
        "mean of the copies, 1 pass": ("averaged", -0.12, dict(color=ORANGE, size=12, symbol="diamond")),
        f"{n} routes together, {n} passes": ("ensemble", 0.12, dict(color=BLUE, size=12, symbol="square")),
    }
    for k, mine in enumerate(methods.values(), 1):
        for name, (what, shift, marker) in kinds.items():
            dots = [(i + shift, v) for i, r in enumerate(mine) for v in np.ravel(r[what])]
            look = dict(mode="markers", name=name, legendgroup=name, showlegend=k == 1, marker=marker)
            hover = dict(hovertemplate="%{y:.3f}<extra>%{fullData.name}</extra>")
            figure.add_scatter(x=[x for x, _ in dots], y=[y for _, y in dots], **look, **hover, row=1, col=k)
        seeds = dict(tickvals=[*range(len(mine))], ticktext=[str(r["seed"]) for r in mine])
        figure.update_xaxes(**seeds, range=[-0.5, len(mine) - 0.5], showgrid=False, zeroline=False, title="seed", col=k)
    said = [
        f"{title}: averaged − ensemble {_signed(e['effect'])} ({_interval(e)}): ≈ within {within:g} {e['verdict']}"
        for title, e in zip(titles, verdicts, strict=True)
    ]
    below = LEGEND | dict(y=-0.2, yanchor="top")
    styled(figure, 440, title=told("<br>".join(said)), legend=below, yaxis_title="score on test")
    figure.update_annotations(font=SMALL)
    return figure.update_layout(margin=dict(t=68 + 18 * len(said), b=96))


def _interval(e):
    known = np.isfinite(e["low"])
    return f"{_signed(e['low'])} to {_signed(e['high'])}" if known else "no interval of one seed"


def _signed(v):
    return f"{v:+.3f}".replace("-", "−")


# Sparse adapters ----------------------------------------------------------------------------------

PRUNERS = dict(snip=BLUE, random=GREY, magnitude=ORANGE, grasp=COLOURS[2], synflow=COLOURS[3])


def sparsity(rows):
    """SparseAdapter over the share of its entries that stays, a line for each score that chooses them.

    rows: of the study `sparsity`.
    """
    table(rows, "pruner", "p", "r", "seed", "score", "numbers")
    return _sparse(rows, "p", f"share of the entries that stay, of bottleneck {rows[0]['r']} (log scale)", "{:g}")


def large_sparse(rows):
    """Adapters that grow wider and sparser with always the same number of entries, a line for each score.

    rows: of the study `large_sparse`; the dotted line is the whole adapter, which is the first point.
    """
    table(rows, "pruner", "r", "full", "seed", "score", "numbers")
    figure = _sparse(rows, "r", "bottleneck r (log scale), of which the share p stays", "{}")
    full, widths = rows[0]["full"], sorted({r["r"] for r in rows})
    figure.update_xaxes(ticktext=[f"{r}<br>p = {full / r:g}" for r in widths])
    whole = [r["score"] for r in rows if r["r"] == full]
    return figure.add_hline(y=np.mean(whole), line=dict(dash="dot", color=GREY)) if whole else figure


def _sparse(rows, x, title, form):
    figure, best = go.Figure(), []
    at = sorted({r[x] for r in rows})
    for k, (pruner, mine) in enumerate(grouped(rows, "pruner").items()):
        cells = dict(sorted(grouped(mine, x).items()))
        colour = PRUNERS.get(pruner, RED)
        mean, error = means([[r["score"] for r in cell] for cell in cells.values()], colour)
        places = [v * 1.03 ** (k - 1) for v in cells]  # so that bars do not hide each other
        hover = dict(text=[*map(form.format, cells)], hovertemplate="%{text}: %{y:.3f}<extra>%{fullData.name}</extra>")
        figure.add_scatter(
            x=places, y=mean, error_y=error, mode="lines+markers", line_color=colour, name=pruner, **hover
        )
        best.append(f"{pruner} {mean[0]:.3f} → {mean[-1]:.3f}")
    numbers = sorted({r["numbers"] for r in rows})
    trained = f"{numbers[0]:,} to {numbers[-1]:,} numbers trained" if len(numbers) > 1 else f"{numbers[0]:,} numbers"
    name = f"{form.format(at[0])} → {form.format(at[-1])}"
    said = told(f"{x} = {name}: {', '.join(best)}<br>{trained}; {len(grouped(rows, 'seed'))} seeds")
    task = f"score on test, {rows[0]['task']}" if "task" in rows[0] else "score on test"
    styled(figure, 420, title=said, yaxis_title=task, legend=LEGEND)
    figure.update_xaxes(type="log", title=title, tickvals=at, ticktext=[*map(form.format, at)])
    return figure.update_layout(margin=dict(t=92, b=64))


# What the layers have in common -------------------------------------------------------------------


def mask_overlap(rows):
    """How much of a prototype two places have in common: J = |both| / |either| of their masks, less what chance gives.

    rows: of the study `mask_overlap`, a panel for each method; numbers are means of J over the seeds, and hovering
    tells their range. White is chance: masks as dense, drawn at random.
    """
    from .methods import get

    methods = grouped(table(rows, "method", "seed", "places", "overlap", "chance"), "method")
    titles, said, panels = [get(m).title for m in methods], [], []
    for title, mine in zip(titles, methods.values(), strict=True):
        J, by = (np.array([r[what] for r in mine], float) for what in ("overlap", "chance"))  # (seeds n n), None is nan
        apart = np.broadcast_to(~np.eye(J.shape[1], dtype=bool), J.shape)
        J, by = np.where(apart, J, np.nan), np.where(apart, by, np.nan)
        mean, half = spread(np.nanmean(J - by, (1, 2)))
        interval = f" ± {half:.3f}" if half is not None else ""
        said.append(f"{title}: J = {np.nanmean(J):.3f}, chance {np.nanmean(by):.3f}, more by {mean:+.3f}{interval}")
        panels.append(([_place(*one) for one in mine[0]["places"]], J, by))
    reach = max(0.02, *(float(np.nanmax(np.abs(J.mean(0) - by.mean(0)))) for _, J, by in panels))
    figure = make_subplots(1, len(panels), horizontal_spacing=0.16, subplot_titles=titles)
    look = dict(colorscale="RdBu_r", zmin=-reach, zmax=reach, xgap=1, ygap=1, hoverongaps=False, texttemplate="%{text}")
    for k, (names, J, by) in enumerate(panels, 1):
        mean = J.mean(0)
        text = [["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in mean]
        random, both = by.mean(0), np.dstack([J.min(0), J.max(0), by.mean(0)])
        about = "{}, {}: J = {:.3f} to {:.3f}<br>chance {:.3f}".format
        hover = [[about(a, b, *v) for b, v in zip(names, row, strict=True)] for a, row in zip(names, both, strict=True)]
        z = np.where(np.isnan(mean), None, np.round(mean - random, 4)).tolist()
        bar = dict(showscale=k == len(panels), colorbar=dict(title="J − chance", thickness=12))
        cells = dict(x=names, y=names, z=z, text=text, hovertext=hover, hoverinfo="text")
        figure.add_trace(go.Heatmap(**cells, **look, **bar), 1, k)
    styled(figure, 470, title=told("<br>".join(said))).update_annotations(font=SMALL)
    figure.update_xaxes(showgrid=False, zeroline=False, type="category")
    figure.update_yaxes(showgrid=False, zeroline=False, type="category", autorange="reversed", automargin=True)
    return figure.update_layout(margin=dict(t=60 + 22 * len(said), b=48), plot_bgcolor=OUT)


def _place(layer, site):
    return f"layer {layer}" if site == "block" else f"{layer} {site}"


# What is stored -----------------------------------------------------------------------------------


def storage(rows=None, tasks=(1, 5, 20, 100), backbone="micro-encoder"):
    """What lies in the files of some tasks, without their heads: a slider over the number of tasks.

    rows: of `unified_studies.stored`, which is asked for this backbone where none are given. From the second task on
    each costs what the third one costs.
    """
    if rows is None:
        from .unified_studies import stored

        rows = stored(backbone)
    table(rows, "name", "one", "two", "more")
    names = [r["name"] for r in rows]
    colours = [COLOURS[2] if r["more"] < r["one"] else BLUE for r in rows]
    size = lambda r, n: (r["one"] if n == 1 else r["two"] + (n - 2) * r["more"]) / 8
    most, least = (f(size(r, n) for r in rows for n in tasks) for f in (max, min))

    def bars(n):
        sizes = [size(r, n) for r in rows]
        text = dict(text=[*map(_bytes, sizes)], textposition="outside", cliponaxis=False)
        hover = dict(hovertemplate="%{y}: %{x:,.0f} bytes<extra></extra>")
        return go.Bar(y=names, x=sizes, orientation="h", marker_color=colours, **text, **hover)

    def title(n):
        sizes = {r["name"]: size(r, n) for r in rows}
        small, large = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
        return told(
            f"{n} task{'s' * (n > 1)}: least for {small} ({_bytes(sizes[small])}), most for {large} "
            f"({_bytes(sizes[large])}), {sizes[large] / sizes[small]:.0f} times as much<br>"
            f"green: one prototype for all layers and tasks, of which each has bits; blue: a module for each task"
        )

    figure = go.Figure(bars(tasks[0]))
    figure.frames = [go.Frame(name=str(n), data=[bars(n)], layout=dict(title=title(n))) for n in tasks]
    styled(figure, 200 + 36 * len(rows), title=title(tasks[0]))
    ends = [np.log10(least) - 0.3, np.log10(most) + 0.4]
    values = [10**k for k in range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)]
    ticks = dict(tickvals=values, ticktext=[*map(_bytes, values)])
    figure.update_xaxes(type="log", range=ends, title=dict(text="stored (log scale)", standoff=4), **ticks)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    return sliding(figure, tasks, "tasks: ", y=-0.16).update_layout(margin=dict(t=64, b=120))


def _bytes(n):
    """1234 is 1.2 kB."""
    for unit in ("B", "kB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.0f} MB" if n >= 100 else f"{n:.3g} MB"
