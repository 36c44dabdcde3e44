"""Figures of what the studies of additive deltas found: points are means over seeds, bars their 95 % intervals.

No torch is imported here.
"""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .findings import LEGEND, grouped, line
from .mask_plots import BLUE, ORANGE, table
from .pictures import COLOURS, GREY, styled
from .study_plots import means

PLACES = dict(o="attention", down="feed-forward")
READS = {"adapter": "behind the", "parallel-adapter": "beside the"}
SPREAD = 0.06  # of the distance between two rates, so that bars do not hide each other


def placement(rows):
    """Adapters behind or beside the attention or the feed-forward part, over the learning rate.

    rows: of the study `placement`. The ring is at the rate with the best mean on validation; the title has the means
    on test there.
    """
    kinds = grouped(table(rows, "method", "where", "lr", "seed", "validation", "score"), "method", "where")
    rates, figure, said = sorted({r["lr"] for r in rows}), go.Figure(), []
    for i, ((method, where), mine) in enumerate(kinds.items()):
        name = f"{READS.get(method, method)} {PLACES.get(where, where)}"
        cells = grouped(mine, "lr")
        x = [rates.index(lr) + SPREAD * (i - (len(kinds) - 1) / 2) for lr in cells]
        mean, error = means([[r["score"] for r in cell] for cell in cells.values()], COLOURS[i])
        look = dict(name=name, line=dict(color=COLOURS[i], dash="dash" if where == "o" else "solid"))
        hover = dict(mode="lines+markers", hovertemplate="%{y:.3f}<extra>%{fullData.name}</extra>")
        figure.add_scatter(x=x, y=mean, error_y=error, **look, **hover)
        best = int(np.argmax([np.mean([r["validation"] for r in cell]) for cell in cells.values()]))
        ring = dict(mode="markers", marker=dict(symbol="circle-open", size=18, color=COLOURS[i], line_width=2))
        figure.add_scatter(x=x[best:][:1], y=mean[best:][:1], **ring, hoverinfo="skip", showlegend=False)
        said.append(f"{name} {mean[best]:.3f} ± {error['array'][best]:.3f}")
    title = dict(text="; ".join(said[:2]) + "<br>" + "; ".join(said[2:]), font_size=14)
    styled(figure, 440, title=title, yaxis_title="accuracy on test", legend=dict(orientation="h", y=-0.2))
    ticks = dict(tickvals=[*range(len(rates))], ticktext=[f"{lr:g}" for lr in rates])
    figure.update_xaxes(title="learning rate; the ring is chosen on validation", zeroline=False, **ticks)
    return figure.update_layout(margin=dict(t=76))


def prompts(rows):
    """Prompt-tuning over the number of its vectors, by what they start as. rows: of the study `prompts`."""
    figure = go.Figure()
    starts = grouped(table(rows, "n", "init", "seed", "score"), "init")
    for (init, mine), colour in zip(starts.items(), COLOURS, strict=False):
        by_seed = grouped(sorted(mine, key=lambda r: r["n"]), "seed")
        scores = [[r["score"] for r in one] for one in by_seed.values()]
        name = dict(vocabulary="starts as words of the vocabulary", random="starts as random vectors").get(init, init)
        line(figure, [r["n"] for r in next(iter(by_seed.values()))], scores, name, colour)
    lengths = sorted({r["n"] for r in rows})
    styled(figure, 360, yaxis_title="accuracy on test", legend=LEGEND)
    return figure.update_xaxes(title="vectors in the prompt", type="log", tickvals=lengths, ticktext=lengths)


def lent(rows):
    """What methods reach on few rows of a new task, by what they build on.

    rows: of the studies `lent` and `strangers`. Small dots are single seeds.
    """
    from .methods import get

    on = lambda r: ", ".join(r["sources"].split()) if "sources" in get(r["method"]).knobs else ""
    rows = [r | dict(on=on(r)) for r in table(rows, "method", "seed", "score", "sources")]
    best = {m: max(np.mean([r["score"] for r in g]) for g in grouped(mine, "on").values())
            for m, mine in grouped(rows, "method").items()}  # fmt: skip
    figure = go.Figure()
    for (sources, mine), colour in zip(grouped(rows, "on").items(), (BLUE, ORANGE, GREY), strict=False):
        groups = grouped(mine, "method")
        scores, titles = [[r["score"] for r in g] for g in groups.values()], [get(m).title for m in groups]
        mean, error = means(scores, colour)
        look = dict(mode="markers", hovertemplate="%{y}: %{x:.3f}<extra></extra>")
        name = f"builds on {sources}" if sources else "alone"
        figure.add_scatter(x=mean, y=titles, error_x=error, marker=dict(size=10, color=colour), name=name, **look)
        dots = dict(x=sum(scores, []), y=np.repeat(titles, [len(s) for s in scores]), showlegend=False)
        figure.add_scatter(**dots, marker=dict(size=5, color=colour, opacity=0.4), **look)
    task = f"accuracy on the test rows of {rows[0]['task']}, after {rows[0]['size']} rows to learn from"
    styled(figure, 150 + 30 * len(best), xaxis_title=task, legend=LEGEND).update_layout(margin=dict(t=60))
    titles = [get(m).title for m in sorted(best, key=best.get)]
    return figure.update_yaxes(categoryorder="array", categoryarray=titles, dtick=1, automargin=True)


def sizes(rows, name="prompt-tuning", other="full fine-tuning"):
    """A method beside another on backbones of growing size, for each task with several; dotted is a constant answer.

    rows: of `pl.by_size`. name and other: what its two methods are called.
    """
    found = grouped(table(rows, "backbone", "numbers", "task", "seed", "score", "other", "chance"), "task")
    tasks = {task: mine for task, mine in found.items() if len({r["numbers"] for r in mine}) > 1}
    figure = make_subplots(1, len(tasks), subplot_titles=list(tasks), shared_yaxes=True, horizontal_spacing=0.03)
    for k, mine in enumerate(tasks.values(), 1):
        by_size = dict(sorted(grouped(mine, "numbers").items()))
        for column, said, colour in (("other", other, GREY), ("score", name, BLUE)):
            mean, error = means([[r[column] for r in one] for one in by_size.values()], colour)
            backbones = [one[0]["backbone"] for one in by_size.values()]
            look = dict(name=said, legendgroup=column, showlegend=k == 1, line=dict(color=colour), text=backbones)
            hover = dict(mode="lines+markers", hovertemplate="%{text}: %{y:.3f}<extra>%{fullData.name}</extra>")
            figure.add_scatter(x=[*by_size], y=mean, error_y=error, **look, **hover, row=1, col=k)
        figure.add_hline(y=max(r["chance"] for r in mine), line=dict(dash="dot", color=GREY), row=1, col=k)
    styled(figure, 360, legend=LEGEND | dict(y=1.12))
    places = sorted({r["numbers"] for r in rows})
    labels = [f"{n / 1e6:.2g}" for n in places]
    figure.update_xaxes(type="log", title="million numbers", tickvals=places, ticktext=labels)
    figure.update_yaxes(title="accuracy on test, or F1", col=1)
    return figure.update_layout(margin=dict(t=90))
