"""Figures of Theorems 1 and 2 of Fu et al. (2211.15583), from the rows of `peftlab.theory`. No torch here.

Lines are means over seeds, bands their 95 % intervals by Student's t.
"""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .errors import PeftlabError
from .findings import grouped, sliding, spread
from .pictures import COLOURS, styled

KINDS = dict(soft="soft: (1 − p)‖θ − θ⁰‖²", fixed="fixed: ‖(I − M)(θ − θ⁰)‖²", hard="hard: only M moves")
LOSSES = dict(squares="least squares", logistic="logistic regression")


def band(x, values, name, colour, dash=None, width=2, **more):
    """Two traces: the mean of values (seeds x), and what of its interval is above 0, as a log axis shows no more."""
    mean, half = (np.asarray(v if v is not None else 0.0) for v in spread(values))
    x, shared = list(x), dict(legendgroup=name, **more)
    line = dict(name=name, mode="lines", line=dict(color=colour, dash=dash, width=width))
    edge = brief([*(mean + half), *np.maximum(mean - half, mean / 50)[::-1]])
    look = dict(fill="toself", fillcolor=colour, opacity=0.2, line=dict(width=0), mode="lines", hoverinfo="skip")
    area = go.Scatter(x=x + x[::-1], y=edge, **look, **shared | dict(showlegend=False))
    return [go.Scatter(x=x, y=brief(mean), **line, **shared), area]


def brief(values):
    """Four digits are enough for an eye, and half the page."""
    return [float(f"{v:.4g}") for v in values]


def column(rows, over, what):
    """(the values of `over`, values of `what` (seeds, over)) of rows that differ in these and the seed alone."""
    groups = grouped(rows, over)
    return list(groups), np.array([[r[what] for r in one] for one in groups.values()], float).T


def only(rows, **wanted):
    """The rows with these settings; a PeftlabError where there are none."""
    found = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    if not found:
        raise PeftlabError(f"no row has {wanted}; make the rows with that setting")
    return found


def moving(figure, cases, traces, titles, prefix, lines=1):
    """A frame for each case: traces(case) is a list of (trace, panel), the same number of them each time; titles(case)
    has so many lines. The legend stands above the titles of the panels."""
    for trace, panel in traces(cases[0]):
        figure.add_trace(trace, 1, panel)
    numbers = [*range(len(figure.data))]
    place = dict(font=dict(size=14), x=0, xref="paper", xanchor="left", y=0.97, yref="container", yanchor="top")
    told = {c: place | dict(text=titles(c)) for c in cases}
    figure.frames = [
        go.Frame(name=str(c), data=[t for t, _ in traces(c)], traces=numbers, layout=dict(title=told[c])) for c in cases
    ]
    legend = dict(orientation="h", x=0, xanchor="left", y=1.09, yanchor="bottom")
    styled(figure, 460 + 20 * lines, title=told[cases[0]], legend=legend)
    figure.update_annotations(font=dict(size=14))
    return sliding(figure, cases, prefix, y=-0.18).update_layout(margin=dict(t=76 + 20 * lines, b=124))


def reach(axis, *values, least=0.0):
    """A log axis on which all these values above the least one fit, whatever the slider shows."""
    flat = np.concatenate([np.ravel(v) for v in values])
    flat = flat[flat > least]
    bounds = np.log10([flat.min() / 1.5, flat.max() * 1.5]).tolist()
    axis.update(type="log", range=bounds, dtick=1, tickformat="~g")


def axis(figure, panel):
    return figure.layout[f"yaxis{panel if panel > 1 else ''}"]


# Theorems 1 and 2 ---------------------------------------------------------------------------------


def stability(rows):
    """Measured stability against Theorem 1's bound over p, for the objective that is the mean over masks; a slider over
    n, a menu over d. rows: of `theory.stability`."""
    rows = only(rows, kind="soft", scale=rows[0]["scale"])
    losses, n, d = (list(grouped(rows, k)) for k in ("loss", "n", "d"))
    figure = make_subplots(1, len(losses), subplot_titles=[LOSSES[k] for k in losses], horizontal_spacing=0.1)
    lines = (("phs", "measured, each row left out", COLOURS[0], None), ("bound", "Theorem 1", COLOURS[1], "dash"))

    def traces(n):
        found = []
        for k, loss in enumerate(losses, 1):
            for d_ in d:
                here = only(rows, n=n, loss=loss, d=d_)
                for what, name, colour, dash in lines:
                    found += [(t, k) for t in band(*column(here, "p", what), name, colour, dash, showlegend=k == 1)]
        return found

    def title(n):
        ratio = [r["bound"] / r["phs"] for r in only(rows, n=n)]
        held = f"{n} rows, all d: the bound holds in {sum(q >= 1 for q in ratio)} of {len(ratio)} cases"
        return f"{held}, at {min(ratio):.1f} to {max(ratio):,.0f} times what is measured"

    moving(figure, n, traces, title, "rows n = ")
    shown = [[bool(d_ == one) for _ in losses for d_ in d for _ in range(4)] for one in d]
    for trace, visible in zip(figure.data, shown[-1], strict=True):  # not in the frames: the menu's choice must last
        trace.visible = visible
    buttons = [dict(label=f"d = {v}", method="restyle", args=[dict(visible=s)]) for v, s in zip(d, shown, strict=True)]
    place = dict(type="buttons", direction="right", x=1, xanchor="right", y=1.1, yanchor="bottom")
    look = dict(active=len(d) - 1, bgcolor="#eef1f4", font=dict(color="#444", size=12))
    figure.update_layout(updatemenus=[place | look | dict(buttons=buttons)])
    for k, loss in enumerate(losses, 1):
        here = only(rows, loss=loss)
        figure.update_xaxes(title="density p", range=[0, 1], col=k)
        reach(axis(figure, k), [r["phs"] for r in here], [r["bound"] for r in here])
    return figure.update_yaxes(title="change of the loss left out", col=1)


def hard_mask(rows):
    """One mask that is really drawn: its stability against Theorem 1's number, and the curvature of its objective
    against the theorem's Λ_min + 2(1 − p); a slider over the scale of the inputs. rows: of `theory.stability` with
    these kinds and scales."""
    rows = only(rows, n=rows[0]["n"], d=rows[0]["d"], loss=rows[0]["loss"])
    scales, kinds = list(grouped(rows, "scale")), list(grouped(rows, "kind"))
    titles = ["measured, and Theorem 1 (dashed)", "least curvature where it moves"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)

    def traces(scale):
        found = []
        for kind, colour, width in zip(kinds, COLOURS, (2, 6, 2), strict=False):  # two of them may coincide
            here = only(rows, scale=scale, kind=kind)
            lines = (("phs", None, 1, True), ("bound", "dash", 1, False), ("curvature", None, 2, False))
            for what, dash, panel, legend in lines:
                drawn = band(*column(here, "p", what), KINDS[kind], colour, dash, width, showlegend=legend)
                found += [(t, panel) for t in drawn]
        return found

    def title(scale):
        groups = grouped(only(rows, scale=scale), "kind")
        broken = [f"{sum(r['phs'] > r['bound'] for r in one)} of {len(one)} ({k})" for k, one in groups.items()]
        return "measured above Theorem 1's number in " + ", ".join(broken)

    moving(figure, scales, traces, title, "standard deviation of an input = ")
    reach(figure.layout.yaxis, *([r[k] for r in rows] for k in ("phs", "bound")))
    reach(figure.layout.yaxis2, [r["curvature"] for r in rows])
    return figure.update_xaxes(title="density p", range=[0, 1])


def generalisation(rows, d=None):
    """Loss on the training rows, on new ones, and Theorem 2's bound on it, over p; a slider over n. rows: of
    `theory.stability`; d: which of theirs, else the largest."""
    rows = only(rows, kind="soft", scale=rows[0]["scale"], d=d or max(r["d"] for r in rows))
    rows = [r | dict(ceiling=r["train"] + r["gap"]) for r in rows]
    losses, n = list(grouped(rows, "loss")), list(grouped(rows, "n"))
    figure = make_subplots(1, len(losses), subplot_titles=[LOSSES[k] for k in losses], horizontal_spacing=0.1)
    lines = (
        ("train", "on the training rows", COLOURS[0], None),
        ("test", "on new rows", COLOURS[2], None),
        ("ceiling", "bound of Theorem 2", COLOURS[1], "dash"),
    )

    def traces(n):
        return [
            (trace, k)
            for k, loss in enumerate(losses, 1)
            for what, name, colour, dash in lines
            for trace in band(
                *column(only(rows, n=n, loss=loss), "p", what), name, colour, dash, showlegend=k == 1
            )
        ]  # fmt: skip

    def least(n, what):
        columns = {loss: column(only(rows, n=n, loss=loss), "p", what) for loss in losses}
        return ", ".join(f"{p[v.mean(0).argmin()]:g} ({LOSSES[loss]})" for loss, (p, v) in columns.items())

    def title(n):
        return f"least loss on new rows at p = {least(n, 'test')}<br>least bound at p = {least(n, 'ceiling')}"

    moving(figure, n, traces, title, "rows n = ", lines=2)
    for k, loss in enumerate(losses, 1):
        values = ([r[w] for r in only(rows, loss=loss)] for w in ("train", "test", "ceiling"))
        reach(axis(figure, k), *values)
    figure.update_yaxes(title="mean loss of a row", col=1)
    return figure.update_xaxes(title="density p", range=[0, 1])


def u_shape(rows, over="n"):
    """Training and test error when only the share p of all entries is fitted, those of the largest g² or random ones; a
    slider over n, or over the noise. rows: of `theory.u_shape`."""
    other = "noise" if over == "n" else "n"
    rows = only(rows, **{other: rows[0][other]})
    cases, parts = list(grouped(rows, over)), dict(train="on the training rows", test="on new rows")
    figure = make_subplots(1, 2, subplot_titles=list(parts.values()), shared_yaxes=True, horizontal_spacing=0.04)
    p, colours = rows[0]["p"], dict(zip(("g²", "random"), (COLOURS[0], COLOURS[4]), strict=True))

    def traces(case):
        found = []
        for k, part in enumerate(parts, 1):
            for rule, here in grouped(only(rows, **{over: case}), "rule").items():
                name = "largest g²" if rule == "g²" else "random mask"
                values = [r[part] for r in here]
                found += [(t, k) for t in band(p, values, name, colours[rule], showlegend=k == 1)]
        return found

    def title(case):
        groups = grouped(only(rows, **{over: case}), "rule")
        best = {rule: np.mean([r["test"] for r in one], 0) for rule, one in groups.items()}
        where = [f"p = {p[m.argmin()]:.2f} ({rule}, {m.min():.2f})" for rule, m in best.items()]
        return f"{over} = {case:g}: least error on new rows at " + " and ".join(where)

    moving(figure, cases, traces, title, f"{over} = ")
    means = [np.mean([r[w] for r in one], 0) for one in grouped(rows, over, "rule").values() for w in parts]
    for axis in (figure.layout.yaxis, figure.layout.yaxis2):
        reach(axis, *means)
    figure.update_yaxes(title="mean squared error", col=1)
    return figure.update_xaxes(title="density p", range=[0, 1.02])
