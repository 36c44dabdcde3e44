"""Figures of searches: their fronts, how these grow with every run, and what winners get on fresh seeds. No torch here.

Searches come from `pl.search`, one or several, with other seeds or of another kind.
"""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .errors import PeftlabError
from .findings import LEGEND, spread
from .fronts import Search
from .mask_plots import BLUE, ORANGE, table
from .pictures import COLOURS, GREY, styled
from .plots import told

ORDER = ("bayes", "evolution", "random")  # each has its colour, whichever are drawn


def kinds(searches):
    """{kind of search: (searches, colour)}; PeftlabError for searches of several tasks, backbones or spaces."""
    searches = [searches] if isinstance(searches, Search) else list(searches)
    if not any(s.trials for s in searches):
        raise PeftlabError("there are no trials to draw; a figure needs at least one search that has made a run")
    spaces = {(s.settings["task"], s.settings["backbone"], *s.reference) for s in searches}
    if len(spaces) > 1:
        said = " and ".join(f"{task} with {backbone}, {most:,} numbers" for task, backbone, most, _ in sorted(spaces))
        raise PeftlabError(f"a figure shows searches of one task, backbone and space, not {said}; draw them one by one")
    mine = {how: [s for s in searches if s.how == how and s.trials] for how in ORDER}
    return {how: (found, colour) for (how, found), colour in zip(mine.items(), COLOURS, strict=False) if found}


def design_of(trial):
    """ "serial 8, prefix 16 in layers 0 1": a design in words."""
    names = dict(serial="serial", parallel="parallel", n="prefix")
    sizes = ", ".join(f"{names[part]} {size}" for part, size in trial["settings"].items() if size)
    return f"{sizes} in layer{'s' * (len(trial['layers']) > 1)} {' '.join(map(str, trial['layers']))}"


def front(searches):
    """Every trial of the searches, and their front as steps: the best validation for so many trained numbers.

    Several searches of a kind have one line, the mean of their fronts, in a band of its 95 % interval over seeds; the
    legend has the hypervolume under a front, and its interval.
    """
    figure, groups = go.Figure(), kinds(searches)
    for how, (found, colour) in groups.items():
        trials = [t for s in found for t in s.trials]
        look = dict(mode="markers", marker=dict(color=colour, size=6, opacity=0.4), legendgroup=how, showlegend=False)
        figure.add_scatter(
            x=[t["numbers"] for t in trials], y=[t["validation"] for t in trials], text=[*map(design_of, trials)],
            hovertemplate=f"%{{text}}<br>%{{x:,}} numbers, %{{y:.3f}}<extra>{how}</extra>", **look,
        )  # fmt: skip
        x, mean, half = attained(found)
        if half:
            figure.add_scatter(**band(x, mean, half, colour, how))
        runs = "–".join(map(str, sorted({min(c := [len(s.trials) for s in found]), max(c)})))
        name = f"{how}, {runs} runs: hypervolume {told([s.hypervolume() for s in found])}"
        points = dict(color=colour, size=[8] * (len(x) - 1) + [0]) if len(found) == 1 else dict(color=colour, size=4)
        line = dict(color=colour, shape="hv", width=2)
        look = dict(mode="lines+markers", line=line, marker=points, name=name, legendgroup=how, showlegend=True)
        figure.add_scatter(x=x, y=mean, hoverinfo="skip", **look)
    shared = next(iter(groups.values()))[0][0]
    figure.add_hline(y=shared.reference[1], line=dict(dash="dash", color=GREY), annotation_text="best constant answer")
    legend = LEGEND | dict(orientation="v")
    styled(figure, 460, yaxis_title=f"{shared.metric} on validation", legend=legend).update_layout(margin=dict(t=92))
    seen = [t["validation"] for found, _ in groups.values() for s in found for t in s.trials]
    figure.update_yaxes(range=[min(*seen, shared.reference[1]) - 0.02, max(*seen, shared.reference[1]) + 0.04])
    return figure.update_xaxes(type="log", dtick="D2", title="trained numbers, without the head (log scale)")


def attained(searches):
    """(numbers, mean, half): the best validation of so many numbers, over searches; from where each has a design.

    half: of the 95 % interval of the mean; None for one search.
    """
    fronts = [s.front() for s in searches]
    begin = max(points[0]["numbers"] for points in fronts)
    x = sorted({begin, *(t["numbers"] for points in fronts for t in points if t["numbers"] > begin)})
    x = [*x, searches[0].reference[0]]  # the largest design there is
    best = lambda points, most: max(t["validation"] for t in points if t["numbers"] <= most)
    return x, *spread([[best(points, most) for most in x] for points in fronts])


def band(x, mean, half, colour, group):
    """What fills the steps around a mean."""
    x, low, high = np.repeat(x, 2)[1:], *(np.repeat(v, 2)[:-1] for v in (np.subtract(mean, half), np.add(mean, half)))
    look = dict(fill="toself", line_width=0, fillcolor=colour, opacity=0.18, mode="lines")
    sides = dict(x=[*x.tolist(), *x[::-1].tolist()], y=[*high.tolist(), *low[::-1].tolist()])
    return sides | dict(hoverinfo="skip", showlegend=False, legendgroup=group, **look)


def progress(searches):
    """The hypervolume under the front after every run: mean over seeds, and a band of its 95 % interval."""
    figure = go.Figure()
    for how, (found, colour) in kinds(searches).items():
        n = min(len(s.trials) for s in found)
        x, (mean, half) = [*range(1, n + 1)], spread([s.growth()[:n] for s in found])
        if half:
            figure.add_scatter(**band(x, mean, half, colour, how))
        name = f"{how} ({len(found)} seed{'s' * (len(found) > 1)})"
        figure.add_scatter(x=x, y=mean, name=name, legendgroup=how, line=dict(color=colour, shape="hv"))
    styled(figure, 380, legend=LEGEND, xaxis_title="runs", yaxis_title="hypervolume, score × decades")
    return figure.update_yaxes(rangemode="tozero")


def curse(rows):
    """What the winners of a search won with, beside what they get on seeds that chose nothing: the winner's curse.

    rows: of `Search.again`. Bars are 95 % intervals over the fresh seeds, small dots these seeds. Validation chose the
    winner, test did not.
    """
    rows = table(rows, "numbers", "metric", "validation", "score", "validations", "scores")
    rows = sorted(rows, key=lambda r: r["numbers"])
    panels = dict(validation="chosen on validation", score="not chosen on test")
    drop = {w: np.mean([r[w] - np.mean(r[f"{w}s"]) for r in rows]) for w in panels}
    titles = [f"{said}: {'−' if drop[w] > 0 else '+'}{abs(drop[w]):.3f} on fresh seeds" for w, said in panels.items()]
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    at, words = np.arange(len(rows)), [*map(design_of, rows)]
    for k, what in enumerate(panels, 1):
        place, hover = dict(row=1, col=k), "%{text}: %{y:.3f}<extra>%{fullData.name}</extra>"
        once = dict(showlegend=k == 1, hovertemplate=hover)
        won = dict(symbol="diamond", size=11, color=ORANGE)
        figure.add_scatter(
            x=at - 0.12, y=[r[what] for r in rows], mode="markers", marker=won, name="in the search", text=words,
            legendgroup="won", **once, **place,
        )  # fmt: skip
        mean, half = zip(*(spread(r[f"{what}s"]) for r in rows), strict=True)
        error = dict(type="data", array=[h or 0 for h in half], color=BLUE, thickness=1.5, width=5)
        figure.add_scatter(
            x=at + 0.12, y=mean, error_y=error, mode="markers", marker=dict(size=10, color=BLUE), text=words,
            name="on fresh seeds", legendgroup="fresh", **once, **place,
        )  # fmt: skip
        dots = dict(x=[i + 0.2 for i, r in enumerate(rows) for _ in r[f"{what}s"]], hoverinfo="skip", showlegend=False)
        figure.add_scatter(
            y=[v for r in rows for v in r[f"{what}s"]], mode="markers", marker=dict(size=5, color=BLUE, opacity=0.4),
            **dots, **place,
        )  # fmt: skip
    styled(figure, 400, legend=LEGEND | dict(y=1.1)).update_layout(margin=dict(t=84))
    ticks = dict(tickvals=at, ticktext=[f"{r['numbers']:,}" for r in rows], range=[-0.5, len(rows) - 0.5])
    figure.update_yaxes(title=rows[0]["metric"], col=1)
    return figure.update_xaxes(title="trained numbers of the winner", zeroline=False, **ticks)
