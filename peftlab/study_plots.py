"""Figures of the studies of sparse masks: SAM's recipe, rows left out, projections. No torch here.

Points are means over seeds, bars their 95 % intervals by Student's t.
"""

import numpy as np
import plotly.graph_objects as go

from .errors import PeftlabError
from .findings import LEGEND, grouped, sliding, spread
from .mask_plots import BLUE, ORANGE, RED, by_chance, percent, table
from .pictures import COLOURS, GREY, styled


def means(groups, colour):
    """The mean of each group of numbers, and its interval as an error bar."""
    mean, half = zip(*map(spread, groups), strict=True)
    return mean, dict(type="data", array=[h or 0 for h in half], color=colour, thickness=1.5, width=4)


def sam_steps(rows):
    """How much SAM's mask has in common with that of the reference recipe, and with its own from another seed.

    rows: of the study `sam`: {seed, choice, p, reference, seeds}. Small dots are single seeds; dashed is `by_chance`.
    """
    choices = grouped(table(rows, "seed", "choice", "p", "reference", "seeds"), "choice")
    figure, y = go.Figure(), np.arange(len(choices))
    kinds = dict(reference=("with the reference", BLUE, -0.14), seeds=("between two seeds", ORANGE, 0.14))
    for what, (name, colour, shift) in kinds.items():
        groups = [[r[what] for r in found] for found in choices.values()]
        mean, error = means(groups, colour)
        marks = dict(mode="markers", legendgroup=what)
        figure.add_scatter(
            x=mean, y=y + shift, error_x=error, marker=dict(size=9, color=colour), name=name, text=list(choices),
            hovertemplate="%{text}: %{x:.3f}<extra></extra>", **marks,
        )  # fmt: skip
        dots = dict(x=sum(groups, []), y=np.repeat(y + shift, [len(g) for g in groups]), hoverinfo="skip")
        figure.add_scatter(**dots, marker=dict(size=5, color=colour, opacity=0.35), showlegend=False, **marks)
    chance = by_chance(rows[0]["p"], rows[0]["p"])
    figure.add_vline(x=chance, line=dict(dash="dash", color=GREY))
    title = f"in common, |both| / |either|; dashed: by chance {chance:.2g}"
    styled(figure, 130 + 32 * len(choices), legend=LEGEND, xaxis=dict(title=title, range=[-0.01, 1.02]))
    names = dict(tickvals=y, ticktext=list(choices), range=[len(choices) - 0.5, -0.5])
    return figure.update_yaxes(**names, automargin=True, zeroline=False)


def left_out(rows):
    """Mean |ℓ(A(S∖Z), z) - ℓ(A(S), z)| over the rows z in Z that were left out, against the density p.

    rows: of the study `stability`: {mask, p, seed, left_out, reordered}. Dashed: between two trainings on
    all rows in another order, the noise of the training itself. The points of one p stand side by side.
    """
    masks = grouped(table(rows, "mask", "p", "seed", "left_out", "reordered"), "mask")
    kinds = dict(left_out=("rows left out", "solid", "circle"), reordered=("reordered", "dash", "circle-open"))
    figure, top = go.Figure(), 0.0
    for (mask, found), colour in zip(masks.items(), COLOURS, strict=False):
        at = dict(sorted(grouped(found, "p").items()))
        for what, (said, dash, symbol) in kinds.items():
            mean, error = means([[r[what] for r in one] for one in at.values()], colour)
            top = max(top, *np.add(mean, error["array"]))
            aside = 1.07 ** (len(figure.data) - len(masks) + 0.5)
            figure.add_scatter(
                x=[p * aside for p in at], y=mean, error_y=error, mode="lines+markers", name=f"{mask}, {said}",
                line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=8), text=[percent(p) for p in at],
                hovertemplate="p = %{text}: %{y:.3f}<extra>%{fullData.name}</extra>",
            )  # fmt: skip
    shown = sorted({r["p"] for r in rows})
    axis = dict(title="mean |difference of the loss|, nats", range=[0, 1.05 * top])
    styled(figure, 420, legend=LEGEND, yaxis=axis).update_layout(margin=dict(t=72))
    ticks = dict(type="log", tickvals=shown, ticktext=[percent(p) for p in shown])
    return figure.update_xaxes(title="density p (log scale)", **ticks)


def jumps(rows):
    """The training loss of ChildPruning, thrown back by each projection on a share p of the changes; a slider over p.

    rows: of the study `jumps`: {seed, p, every, step, loss}, step and loss a list each. The thick line is the mean of
    the seeds; dotted lines are the projections, red dots the losses right after them.
    """
    table(rows, "seed", "p", "every", "step", "loss")
    if len(grouped(rows, "every")) > 1:
        raise PeftlabError("the rows are of several `every`; draw those of one")
    every, shares, steps = rows[0]["every"], grouped(rows, "p"), rows[0]["step"]
    after = [i for i, step in enumerate(steps) if step > 1 and (step - 1) % every == 0]
    figure, losses = go.Figure(), {p: np.array([r["loss"] for r in found]) for p, found in shares.items()}

    def lines(p):
        each, mean = losses[p], losses[p].mean(0)
        x, y = [*steps, None] * len(each), [v for loss in each.tolist() for v in (*loss, None)]
        yield go.Scatter(x=x, y=y, mode="lines", line=dict(color=BLUE, width=1), opacity=0.35, name="one seed")
        yield go.Scatter(x=steps, y=mean, mode="lines", line=dict(color=BLUE, width=3), name="mean")
        look = dict(mode="markers", marker=dict(color=RED, size=9), name="right after a projection")
        yield go.Scatter(x=[steps[i] for i in after], y=mean[after], **look)

    def title(p):
        each = losses[p]
        before, now = each[:, [i - 1 for i in after]].mean(), each[:, after].mean()
        runs = f"{len(each)} seed{'s' * (len(each) > 1)}"
        said = f"{percent(p)} of the changes kept, {runs}: loss {before:.3f} before a projection, {now:.3f} after it"
        return dict(text=said, font=dict(size=14), y=0.97)

    for trace in lines(min(shares)):
        figure.add_trace(trace)
    for i in after:
        figure.add_vline(x=steps[i] - 0.5, line=dict(dash="dot", color=GREY, width=1))
    names = {percent(p): p for p in sorted(shares)}
    figure.frames = [
        go.Frame(name=n, data=[*lines(p)], traces=[0, 1, 2], layout=dict(title=title(p))) for n, p in names.items()
    ]
    flat = np.concatenate([v.ravel() for v in losses.values()])
    ticks = [m * 10.0**k for k in range(-6, 3) for m in (1, 2, 5)]
    bounds = np.log10([flat.min() / 1.2, flat.max() * 1.2]).tolist()
    styled(figure, 430, title=title(min(shares)), legend=LEGEND, xaxis_title="step")
    figure.update_yaxes(type="log", range=bounds, tickvals=ticks, title="training loss (log scale)")
    return sliding(figure, names, "share kept = ", y=-0.22).update_layout(margin=dict(t=80, b=120))
