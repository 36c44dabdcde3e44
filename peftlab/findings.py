"""Figures of what the studies found: means over seeds, with the seeds or an interval beside them. No torch here."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .pictures import COLOURS, GREY, styled

LEGEND = dict(orientation="h", x=0, y=1.02, yanchor="bottom")


def grouped(rows, *keys):
    """{values of the keys: rows with them}, in the order of their first row."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys) if len(keys) > 1 else row[keys[0]], []).append(row)
    return groups


def spread(values):
    """(mean, half of its 95 % interval; None for a single seed), over the first axis."""
    from scipy.stats import t

    values = np.asarray(values, float)
    n = len(values)
    half = None if n < 2 else (t.ppf(0.975, n - 1) * values.std(0, ddof=1) / n**0.5).tolist()
    return values.mean(0).tolist(), half


def line(figure, x, values, name, colour, **more):
    """A mean with its interval at every x; values (seeds x)."""
    mean, half = spread(values)
    error = dict(type="data", array=half, visible=half is not None, color=colour, thickness=1.5)
    figure.add_scatter(x=x, y=mean, error_y=error, name=name, mode="lines+markers", line=dict(color=colour), **more)


def sliding(figure, names, prefix, y=-0.2):
    """A slider over the frames of a figure."""
    now = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    steps = [dict(label=str(n), method="animate", args=[[str(n)], now]) for n in names]
    slider = dict(currentvalue=dict(prefix=prefix), x=0.02, len=0.96, y=y, steps=steps)
    return figure.update_layout(sliders=[slider], margin=dict(b=110))


def ranks(rows):
    """The rank of every layer and site while AdaLoRA and IncreLoRA learn: mean over seeds, a slider over the steps."""
    groups = grouped(rows, "method")
    figure = make_subplots(1, len(groups), subplot_titles=list(groups), horizontal_spacing=0.08)
    steps = rows[0]["steps"]
    means = {
        m: np.mean([[[n for *_, n in now] for now in r["ranks"]] for r in found], 0) for m, found in groups.items()
    }
    places = [(layer, site) for layer, site, _ in rows[0]["ranks"][0]]
    layers, sites = (list(dict.fromkeys(p[i] for p in places)) for i in (0, 1))
    look = dict(zmin=0, zmax=max(map(np.max, means.values())), colorscale="Blues", texttemplate="%{z:.1f}", x=sites)

    def tile(mean, i, last):
        grid = np.full((len(layers), len(sites)), None)
        for (layer, site), n in zip(places, mean, strict=True):
            grid[layers.index(layer), sites.index(site)] = round(float(n), 2)
        return go.Heatmap(z=grid.tolist(), y=[f"layer {k}" for k in layers], showscale=last, **look)

    tiles = lambda i: [tile(mean[i], i, k == len(means) - 1) for k, mean in enumerate(means.values())]
    for k, one in enumerate(tiles(0), 1):
        figure.add_trace(one, 1, k)
    figure.frames = [go.Frame(name=str(s), data=tiles(i), traces=[*range(len(means))]) for i, s in enumerate(steps)]
    return sliding(styled(figure, 380), steps, "step ")


def truncation(rows):
    """Score of a trained DyLoRA and a trained LoRA when all but their first b ranks are cut off."""
    figure = go.Figure()
    for (method, found), colour in zip(grouped(rows, "method").items(), COLOURS, strict=False):
        scores = [r["scores"] for r in found]
        line(figure, [*range(1, len(scores[0]) + 1)], scores, f"{method} ({len(scores)} seeds)", colour)
    return styled(figure, 340, xaxis_title="ranks kept", yaxis_title="score on test", legend=LEGEND)


def dimension(rows, ceilings):
    """Share of full fine-tuning's score against the number of directions d, for each snapshot of the pretraining; the
    dashed line is 90 %, and d90 stands in the legend: the least d whose mean reaches it."""
    figure, whole = go.Figure(), grouped(ceilings, "backbone")
    for (name, found), colour in zip(grouped(rows, "backbone").items(), COLOURS, strict=False):
        full = {r["seed"]: r["score"] for r in whole[name]}
        by_d = {d: [r["score"] / full[r["seed"]] for r in one] for d, one in grouped(found, "d").items()}
        reached = [d for d, shares in by_d.items() if np.mean(shares) >= 0.9]
        said = f"{name}: full {np.mean([*full.values()]):.2f}, d90 " + (
            f"= {min(reached):,}" if reached else "not reached"
        )
        line(figure, list(by_d), list(zip(*by_d.values(), strict=True)), said, colour)
    figure.add_hline(y=0.9, line=dict(dash="dash", color=GREY))
    styled(figure, 400, xaxis_title="d, numbers that are trained (log scale)", yaxis_title="share of full fine-tuning")
    figure.update_xaxes(type="log", tickvals=list(by_d))
    return figure.update_layout(legend=LEGEND | dict(orientation="v"), margin=dict(t=110))


def bits(rows):
    """Error of the packed weights before training and score after it, with a slider over the bits."""
    groups, widths = grouped(rows, "bits", "method"), list(grouped(rows, "bits"))
    methods = list(grouped(rows, "method"))
    figure = make_subplots(
        1, 2, subplot_titles=["error of the weights, ‖Ŵ + BA − W‖ / ‖W‖", "score on test after training"]
    )

    def bars(b):
        for what in ("error", "score"):
            mean, half = zip(*(spread([r[what] for r in groups[b, m]]) for m in methods), strict=True)
            error = dict(type="data", array=[h or 0 for h in half], thickness=1.5)
            yield go.Bar(
                x=methods, y=mean, error_y=error, marker_color=COLOURS[: len(methods)], texttemplate="%{y:.3f}",
                textposition="inside", insidetextanchor="start", showlegend=False,
            )  # fmt: skip

    for k, bar in enumerate(bars(widths[0]), 1):
        figure.add_trace(bar, 1, k)
    figure.frames = [go.Frame(name=str(b), data=[*bars(b)], traces=[0, 1]) for b in widths]
    styled(figure, 400)
    figure.update_yaxes(range=[0, 1.1 * max(r["error"] for r in rows)], col=1)
    figure.update_yaxes(range=[0, 1], col=2)
    return sliding(figure, widths, "bits a weight = ")


def hub(rows):
    """LoRAHub's weight of every module, a dot for each seed; beside it the score of the mixtures on the new task."""
    figure = make_subplots(
        1, 2, subplot_titles=["weight of the module", f"score on {rows[0]['of']}"], column_widths=[0.55, 0.45]
    )
    for k, (what, names) in enumerate((("weights", rows[0]["modules"]), ("scores", list(rows[0]["scores"]))), 1):
        values = [r[what] if what == "weights" else list(r[what].values()) for r in rows]
        mean, half = spread(values)
        error = dict(type="data", array=half, visible=half is not None, thickness=1.5)
        figure.add_bar(x=names, y=mean, error_y=error, marker_color=COLOURS[k - 1], opacity=0.6, row=1, col=k)
        dots = [(n, v) for one in values for n, v in zip(names, one, strict=True)]
        look = dict(mode="markers", marker=dict(color=COLOURS[4], size=7), showlegend=False)
        figure.add_scatter(x=[n for n, _ in dots], y=[v for _, v in dots], row=1, col=k, **look)
    styled(figure, 380, showlegend=False).update_yaxes(range=[0, 1.02], col=2)
    return figure.update_layout(margin=dict(b=90))


def reliability(rows):
    """How often an answer is right against how sure it was: on the diagonal the two agree. The error is their mean
    distance; size shows how many answers are that sure."""
    figure = go.Figure(
        go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line=dict(dash="dash", color=GREY), name="calibrated")
    )
    for (key, name), colour in zip(dict(lora="LoRA", laplace="Laplace-LoRA").items(), COLOURS, strict=False):
        mean, half = spread([r[key]["error"] for r in rows])
        said = f"{name}: error {mean:.3f}" + (f" ± {half:.3f}" if half else "")
        points = [p for r in rows for p in zip(*(r[key][c] for c in ("confidence", "accuracy", "share")), strict=True)]
        x, y, share = zip(*points, strict=True)
        size = [6 + 30 * s**0.5 for s in share]
        figure.add_scatter(x=x, y=y, mode="markers", name=said, marker=dict(size=size, color=colour, opacity=0.6))
    axes = dict(xaxis_title="how sure (probability of the answer)", yaxis_title="how often right")
    styled(figure, 400, legend=LEGEND | dict(itemsizing="constant"), **axes)
    return figure.update_yaxes(range=[0, 1.05])


def league(results):
    """Mean score of every method with its 95 % interval, the best on top; colours are the groups of the review."""
    from .budgets import named
    from .methods import get

    frame = named(results)
    groups, titles = frame.groupby("method").score.apply(list), dict(zip(frame.method, frame.title, strict=True))
    order = sorted(titles, key=lambda m: np.mean(groups[m]))
    place = {m: get(m.split(" + ")[0]).review for m in order}
    group = lambda p: p.replace("/", ", ") if p.startswith("hybrid") else p.split("/")[-1]
    kinds = {m: group(p) if p != "–" else "beyond the review" for m, p in place.items()}
    figure = go.Figure()
    for kind, colour in zip(dict.fromkeys(kinds.values()), COLOURS, strict=False):
        mine = [m for m in order if kinds[m] == kind]
        mean, half = zip(*(spread(groups[m]) for m in mine), strict=True)
        error = dict(type="data", array=[h or 0 for h in half], thickness=1.5)
        look = dict(mode="markers", marker=dict(size=10, color=GREY if kind == "baseline" else colour), name=kind)
        figure.add_scatter(x=mean, y=[titles[m] for m in mine], error_x=error, **look)
    for name, value in results[0].baselines.items():
        if value is not None and name not in titles:
            figure.add_vline(x=value, line=dict(dash="dash", color=GREY), annotation_text=f"{name} {value:.3f}")
    task = f"{results[0].metric} on the test rows of {results[0].spec['task']}"
    styled(figure, 110 + 24 * len(order), xaxis_title=task, legend=LEGEND)
    figure.update_yaxes(categoryorder="array", categoryarray=[titles[m] for m in order], dtick=1)
    return figure.update_layout(margin=dict(l=150, t=90))


def costs(rows):
    """Time of an answer beside the backbone's own, coloured by whether it merges, and of a step beside LoRA's."""
    order = sorted(rows, key=lambda r: r["answer"])
    titles = ["an answer, backbone alone = 1", "a training step, LoRA = 1"]
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    for merges, colour, name in ((True, COLOURS[0], "merges: 1.00 afterwards"), (False, COLOURS[1], "stays attached")):
        mine = [r for r in order if r["merges"] == merges]
        for k, what in enumerate(("answer", "step"), 1):
            look = dict(orientation="h", marker_color=colour, texttemplate="%{x:.2f}", name=name, showlegend=k == 1)
            figure.add_bar(y=[r["title"] for r in mine], x=[r[what] for r in mine], row=1, col=k, **look)
    figure.add_vline(x=1, line=dict(dash="dash", color=GREY))
    styled(figure, 150 + 24 * len(rows), legend=LEGEND | dict(y=-0.1, yanchor="top"))
    figure.update_yaxes(categoryorder="array", categoryarray=[r["title"] for r in order], dtick=1)
    return figure.update_layout(margin=dict(l=150))


def factors(attached, i=0):
    """B, A and the change B A of one delta of low rank, as they stand, and the singular values of the change."""
    d, place = attached.deltas[i], attached.placed[i][1]
    B, A = (getattr(d, n).detach().float().cpu().numpy() for n in "BA")
    change = B @ A
    values = np.linalg.svd(change, compute_uv=False)[: 2 * len(A)]
    titles = [f"B {B.shape}", f"A {A.shape}", f"B A, at {place.site} of layer {place.layer}", "its singular values"]
    figure = make_subplots(1, 4, subplot_titles=titles, column_widths=[0.14, 0.3, 0.3, 0.26], horizontal_spacing=0.05)
    for k, matrix in enumerate((B, A, change), 1):
        most = float(np.abs(matrix).max()) or 1.0
        look = dict(zmin=-most, zmax=most, colorscale="RdBu", showscale=False)
        figure.add_trace(go.Heatmap(z=np.round(matrix, 4).tolist(), **look), 1, k)
    figure.add_bar(x=[*range(1, len(values) + 1)], y=values.tolist(), marker_color=COLOURS[0], row=1, col=4)
    styled(figure, 300, showlegend=False)
    figure.update_xaxes(showticklabels=False, col=1)
    return figure.update_yaxes(autorange="reversed", row=1, col=1)
