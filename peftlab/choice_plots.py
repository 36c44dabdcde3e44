"""Figures of the choice of a mask, from the rows of `peftlab.best_mask` and `peftlab.projection`. No torch here.

Lines and bars are means over seeds, bands and whiskers their 95 % intervals by Student's t (by Wilson for shares).
"""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .findings import grouped, spread
from .pictures import COLOURS, GREY
from .theory_plots import band, column, moving, only, reach

OPTIMIZERS = {"plain": "gradient descent", "Adam kept": "Adam, moments kept", "Adam reset": "Adam, moments reset"}

# Theorem 3 ----------------------------------------------------------------------------------------


def twice(mean, half):
    return mean, half, half


def shares(values, draws):
    """(mean, how far its interval goes up, and down) of shares of so many draws; Wilson's, which knows of 0 and 1."""
    from scipy.stats import binomtest

    total = len(values) * draws
    mean = values.mean(0)
    low, high = np.array([binomtest(round(m * total), total).proportion_ci(method="wilson") for m in mean]).T
    return mean.tolist(), (high - mean).tolist(), (mean - low).tolist()


def rules(rows):
    """How often each rule finds the best of all masks, and what share of the best gain it gets; a slider over the
    spread of the curvatures, or over the shift of the task. rows: of `best_mask.quadratic` or `best_mask.net`."""
    over = "spread" if "spread" in rows[0] else "shift"
    cases, kinds = (list(grouped(rows, k)) for k in (over, "hessian"))
    titles = ["finds the best mask", "gets of the best mask's gain"]
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    names = dict(diagonal="diagonal H", dense="dense H", net="net of 12 parameters")

    def traces(case):
        found = []
        for k, what in enumerate(("found", "share"), 1):
            for kind, colour in zip(kinds, COLOURS, strict=False):
                here = only(rows, **{over: case, "hessian": kind})
                rule, values = column(here, "rule", what)
                mean, high, low = shares(values, here[0]["draws"]) if what == "found" else twice(*spread(values))
                error = dict(type="data", array=high, arrayminus=low, thickness=1.5)
                text = [f"{m:.0%}" if m > 0.12 else "" for m in mean]  # a low bar has no room for it
                look = dict(marker_color=colour, text=text, textposition="inside", insidetextanchor="start")
                shown = dict(name=names[kind], legendgroup=kind, showlegend=k == 1 and len(kinds) > 1)
                found.append((go.Bar(x=rule, y=mean, error_y=error, **look, **shown), k))
        return found

    def title(case):
        if over == "spread":
            return f"curvatures that differ by a factor of up to {100**case:,.0f}"
        return f"labels of a net at the distance ‖θ − θ⁰‖ ≈ {case:g} from the pretrained one"

    moving(
        figure,
        cases,
        traces,
        title,
        dict(spread="h = 10<sup>u</sup>, u uniform in ± ", shift="distance of the new task ≈ ")[over],
    )
    return figure.update_yaxes(range=[0, 1.08], tickformat=".0%")


# Projection ---------------------------------------------------------------------------------------


def expansion(rows):
    """Two points on either side of the diagonal, and where the projection on the larger entry takes them; the ratio of
    the distances after and before. A slider over the distance. rows: of `projection.expansion`."""
    by = {f"{r['distance']:.3g}": r for r in rows}
    titles = ["the plane", "‖P(a) − P(b)‖ / ‖a − b‖"]
    figure = make_subplots(1, 2, subplot_titles=titles, column_widths=[0.42, 0.58], horizontal_spacing=0.12)

    def traces(case):
        r, found = by[case], []
        for name, colour in (("a", COLOURS[0]), ("b", COLOURS[1])):
            x, y = zip(r[name], r["P" + name], strict=True)
            marker = dict(size=[8, 12], symbol=["circle", "square"], color=colour)
            found.append((go.Scatter(x=x, y=y, name=f"{name} → P({name})", mode="lines+markers", marker=marker), 1))
        look = dict(mode="markers", marker=dict(size=12, color=COLOURS[4]), showlegend=False, cliponaxis=False)
        return [*found, (go.Scatter(x=[r["distance"]], y=[r["ratio"]], **look), 2)]

    def title(case):
        return f"‖a − b‖ = {case}: the projection takes them {by[case]['ratio']:,.1f} times as far apart"

    moving(figure, list(by), traces, title, "distance ‖a − b‖ = ")
    diagonal = dict(x=[0, 1.1], y=[0, 1.1], mode="lines", line=dict(dash="dot", color=GREY), showlegend=False)
    figure.add_trace(go.Scatter(**diagonal), 1, 1)
    x, y = zip(*((r["distance"], r["ratio"]) for r in rows), strict=True)
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=dict(color=GREY), name="P: one entry is kept"), 1, 2)
    line = dict(mode="lines", line=dict(color=GREY, dash="dash"), name="a convex set: at most 1")
    figure.add_trace(go.Scatter(x=[min(x), max(x)], y=[1, 1], **line), 1, 2)
    figure.update_xaxes(range=[-0.1, 1.2], col=1).update_yaxes(range=[-0.1, 1.2], col=1)
    room = [np.log10(min(x)) - 0.4, np.log10(max(x)) + 0.4]
    figure.update_xaxes(type="log", title="‖a − b‖", exponentformat="power", range=room, col=2)
    return figure.update_yaxes(type="log", exponentformat="power", col=2)


def projections(rows):
    """The loss while full steps and projections alternate, and how far it jumps at a projection against the share of
    entries that is kept; a slider over the share. rows: of `projection.projections`."""
    rows = [r | dict(zip(("before", "after", "jump"), ends(r), strict=True)) for r in rows]
    kept, colours = list(grouped(rows, "share")), dict(zip(grouped(rows, "optimizer"), COLOURS, strict=False))
    titles = ["loss on the training rows", "jump at a projection"]
    figure = make_subplots(1, 2, subplot_titles=titles, column_widths=[0.64, 0.36], horizontal_spacing=0.1)
    mean = lambda one, what: float(np.mean([r[what] for r in one]))

    def traces(share):
        groups = grouped(only(rows, share=share), "optimizer")
        loss = lambda o, here: band(here[0]["step"], [r["loss"] for r in here], OPTIMIZERS[o], colours[o])
        marker = dict(size=11, color=[*colours.values()])
        dots = dict(x=[share] * len(groups), y=[mean(one, "jump") for one in groups.values()], marker=marker)
        drawn = [(t, 1) for o, here in groups.items() for t in loss(o, here)]
        return [*drawn, (go.Scatter(**dots, mode="markers", showlegend=False), 2)]

    def title(share):
        groups = grouped(only(rows, share=share), "optimizer")
        jumps = [f"{mean(one, 'before'):.3f} → {mean(one, 'after'):.3f} ({o})" for o, one in groups.items()]
        same = [f"{mean(one, 'overlap'):.0%}" for one in groups.values()]
        told = f"loss {', '.join(jumps)}<br>entries that a mask shares with the one before: {', '.join(same)}"
        return f"{share:.0%} kept: {told}"

    moving(figure, kept, traces, title, "share kept = ", lines=2)
    for o, colour in colours.items():
        for trace in band(*column(only(rows, optimizer=o), "share", "jump"), OPTIMIZERS[o], colour, showlegend=False):
            figure.add_trace(trace, 1, 2)
    reach(figure.layout.yaxis, *(r["loss"] for r in rows), least=1e-3)
    figure.update_xaxes(title="step", col=1)
    return figure.update_xaxes(type="log", title="share kept", tickvals=kept, tickformat=".0%", col=2)


def ends(row):
    """(loss right before a projection, right after it, the difference), means over one run."""
    loss, again = np.array(row["loss"]), np.flatnonzero(np.diff(row["step"]) == 0)
    before, after = float(loss[again].mean()), float(loss[again + 1].mean())
    return before, after, after - before
