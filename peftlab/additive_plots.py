"""Figures of additive deltas: what they add, what they are near to, what they listen to. No torch is imported here."""

import html
import json

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import pictures
from .errors import PeftlabError
from .findings import LEGEND, grouped, sliding, spread
from .mask_plots import BLUE, ORANGE, table
from .paths import data
from .pictures import COLOURS, GREY, styled

SMALL = dict(size=14)


def word(token):
    """A token as it is read: <s> is no tag, and a blank is seen."""
    return html.escape(token) or "␣"


def told(text):
    """A title of one or two lines, at the left, above everything."""
    place = dict(x=0.01, xref="container", xanchor="left", y=1, yref="container", yanchor="top", pad=dict(t=10))
    return dict(text=text, font=SMALL) | place


def lines_of(figure, names, **more):
    """The y axis names the lines of a heat map, from the top; equal names stay apart."""
    look = dict(tickvals=[*range(len(names))], ticktext=names, range=[len(names) - 0.5, -0.5])
    return figure.update_yaxes(**look, showgrid=False, zeroline=False, automargin=True, **more)


# What is added, and what draws attention ----------------------------------------------------------


def added(record=None):
    """What the adapters of each layer add to each token's state, and a prompt's share of the attention; over the steps.

    record: what `peftlab.additive_figure` makes; without one, the shipped one. Adapter and prompt are two runs. Bars
    are means over the heads, dots are heads; the dashed line is n / (n + t), where each place gets the same.
    """
    record = record or json.loads((data() / "results" / "additive_figure.json").read_text(encoding="utf-8"))
    sentences, steps, end = record["sentences"], record["steps"], len(record["sentences"]) + 1
    figure = make_subplots(
        1,
        end,
        subplot_titles=[*(f"a {s['label']} sentence" for s in sentences), "attention to the prompt"],
        column_widths=[0.7] * len(sentences) + [1],
        horizontal_spacing=0.13,
    )
    layers = [f"{i}" for i in range(len(record["pull"][0]))]
    most = 100 * max(np.max(one) for now in record["added"] for one in now)
    look = dict(colorscale="Blues", zmin=0, zmax=most, showscale=False, xgap=1, ygap=1)

    def tiles(i):
        for s, one in zip(sentences, record["added"][i], strict=True):
            z = 100 * np.array(one)
            cells = [
                [f"{word(t)}, layer {k}: {v:.1f} %" for k, v in enumerate(line)]
                for t, line in zip(s["tokens"], z, strict=True)
            ]
            text = dict(text=[[f"{v:.0f}" for v in line] for line in z], texttemplate="%{text}")
            yield go.Heatmap(x=layers, z=z.tolist(), **text, hovertext=cells, hoverinfo="text", **look)

    def bars(i):
        shares = 100 * np.array(record["pull"][i])
        hover = dict(hovertemplate="layer %{x}: %{y:.1f} %<extra></extra>")
        yield go.Bar(x=layers, y=shares.mean(1).tolist(), marker_color=ORANGE, opacity=0.7, **hover)
        x = [layer for layer, line in zip(layers, shares, strict=True) for _ in line]
        heads = [
            f"head {h} of layer {layer}: {v:.1f} %" for layer, line in enumerate(shares) for h, v in enumerate(line)
        ]
        look = dict(mode="markers", marker=dict(color=GREY, size=6), text=heads, hoverinfo="text")
        yield go.Scatter(x=x, y=shares.ravel().tolist(), **look)

    traces = lambda i: [*tiles(i), *bars(i)]
    for trace, panel in zip(traces(0), [*range(1, end + 1), end], strict=True):
        figure.add_trace(trace, 1, panel)
    titles = [told(_told_added(record, i)) for i in range(len(steps))]
    numbers = [*range(len(figure.data))]
    figure.frames = [
        go.Frame(name=str(s), data=traces(i), traces=numbers, layout=dict(title=titles[i])) for i, s in enumerate(steps)
    ]
    styled(figure, 560, title=titles[0], showlegend=False, updatemenus=[pictures._play()]).update_annotations(
        font=SMALL
    )
    for k, s in enumerate(sentences, 1):
        lines_of(figure, [word(t) for t in s["tokens"]], col=k, tickfont=dict(size=12))
    figure.update_xaxes(type="category", showgrid=False, title=dict(text="layer", standoff=4))
    even = dict(dash="dash", color=GREY)
    figure.add_hline(y=100 * record["even"], line=even, row=1, col=end)
    top = 100 * max(record["even"], *(np.max(now) for now in record["pull"]))
    figure.update_yaxes(range=[0, 1.06 * top], title=dict(text="% of the text's attention", standoff=4), col=end)
    sliding(figure, steps, "training step ", y=-0.11).update_layout(margin=dict(l=12, r=12, t=86, b=118))
    figure.layout.sliders[0].update(x=0.14, len=0.84)
    figure.layout.updatemenus[0].update(y=-0.2)
    return figure


def _told_added(record, i):
    """The means at a step, in words."""
    mean = np.mean([v for one in record["added"][i] for line in one for v in line])
    step, share, n = record["steps"][i], np.mean(record["pull"][i]), record["place"]["n"]
    return (
        f"step {step}: a layer's adapters change a token's state by {mean:.1%} of its length (cells: %)<br>"
        f"{share:.1%} of the text's attention goes to the {n} prompt tokens; evenly: {record['even']:.1%} (dashed)"
    )


# What a prompt is near to -------------------------------------------------------------------------


def words(found):
    """The words nearest to each trained vector, the nearest first, with their cosines. found: of `nearest_words`."""
    if not found:
        raise PeftlabError("there are no words to draw; give what pl.nearest_words returns")
    z = [[cosine for _, cosine in line] for line in found]
    cells = [[f"{word(w)}  {cosine:.2f}" for w, cosine in line] for line in found]
    hover = [
        [f"vector {i}: {word(w)} is nearest no. {k}, cosine {cosine:.3f}" for k, (w, cosine) in enumerate(line, 1)]
        for i, line in enumerate(found, 1)
    ]
    look = dict(colorscale="Blues", zmin=0, zmax=1, showscale=False, xgap=2, ygap=2, hovertext=hover, hoverinfo="text")
    figure = go.Figure(go.Heatmap(z=z, text=cells, texttemplate="%{text}", textfont_size=13, **look))
    first = [line[0][1] for line in found]
    mean = f"{np.mean(first):.2f} on average ({min(first):.2f} to {max(first):.2f})"
    title = f"words and their cosines; of the nearest ones {mean}"
    styled(figure, 130 + 30 * len(found), title=told(title)).update_layout(margin=dict(t=40, b=52))
    lines_of(figure, [*range(1, len(found) + 1)], title="vector of the prompt")
    places = [*range(len(found[0]))]
    names = dict(tickvals=places, ticktext=["nearest", *(f"no. {i + 1}" for i in places[1:])])
    return figure.update_xaxes(**names, showgrid=False, zeroline=False, title="rank of the word by its cosine")


# What is listened to ------------------------------------------------------------------------------


def around(z, even):
    """Colours of weights: white is an even share, red is more; what hardly differs from it is pale."""
    reach = max(even / 4, *(abs(v - even) for line in z for v in line))
    return dict(z=z, colorscale="RdBu_r", zmin=even - reach, zmax=even + reach, showscale=False)


def looked(rows):
    """The rows of one look, or of all the looks in the rows of a study."""
    return [one | dict(seed=r["seed"]) for r in rows for one in r["heard"]] if rows and "heard" in rows[0] else rows


def heard(rows):
    """The weights with which AdapterFusion hears each adapter, a line for each place.

    rows: of `pl.heard`, or of the study `fusion`; then they are means over the seeds, and hovering tells their range.
    """
    by_place = grouped(table(rows := looked(rows), "place", "source", "weight", "rows", "tokens"), "place")
    names = list(grouped(rows, "source"))
    cells = [[[r["weight"] for r in line if r["source"] == n] for n in names] for line in by_place.values()]
    z = [[float(np.mean(c)) for c in line] for line in cells]
    hover = [
        [f"{place}: {word(n)} {np.mean(c):.1%}" + (f" ({min(c):.1%} to {max(c):.1%})" if len(c) > 1 else "")
         for n, c in zip(names, line, strict=True)]
        for place, line in zip(by_place, cells, strict=True)
    ]  # fmt: skip
    even, text = 1 / len(names), dict(text=[[f"{v:.2f}" for v in line] for line in z], texttemplate="%{text}")
    look = dict(hovertext=hover, hoverinfo="text", xgap=1, ygap=1) | around(z, even)
    figure, one = go.Figure(go.Heatmap(x=list(map(word, names)), **text, **look)), rows[0]
    seeds = f" and {len(cells[0][0])} seeds" if len(cells[0][0]) > 1 else ""
    title = (
        f"weight of each adapter, mean over {one['tokens']:,} tokens of {one['rows']:,} test rows{seeds}<br>"
        f"blue: less than an even {even:.2f}, red: more"
    )
    styled(figure, 170 + 30 * len(z), title=told(title)).update_layout(margin=dict(t=62, b=60))
    lines_of(figure, list(by_place), title="place of the fusion")
    return figure.update_xaxes(type="category", showgrid=False, title="adapter of the task")


def mixture(rows):
    """What ATTEMPT mixes: a line for each row, and beside it the mean of each class with its 95 % interval over rows.

    rows: of `pl.mixture`, or of the study `mixing`; then the rows of its seeds stand together, and intervals are over
    the seeds.
    """
    by_class = grouped(table(rows := looked(rows), "text", "label", "weights"), "label")
    names = list(rows[0]["weights"])
    weight = lambda line: [[r["weights"][n] for n in names] for r in line]
    seeds = grouped([dict(seed=None) | r for r in rows], "seed")
    order = [r for _, line in sorted(by_class.items(), key=lambda c: str(c[0])) for r in _sorted(line, names)]
    named = lambda label: "all rows" if label is None else str(label)
    figure = make_subplots(1, 2, horizontal_spacing=0.14, subplot_titles=["each row", "mean of each class"])
    hover = [
        [f"{named(r['label'])}: {html.escape(r['text'])}<br>{word(n)} {r['weights'][n]:.3f}" for n in names]
        for r in order
    ]
    z, even = weight(order), 1 / len(names)
    figure.add_trace(go.Heatmap(x=list(map(word, names)), hovertext=hover, hoverinfo="text", **around(z, even)), 1, 1)
    labels = sorted(by_class, key=str)
    for label, colour in zip(labels, COLOURS[2:], strict=False):  # red and blue are taken
        parts = grouped([dict(seed=None) | r for r in by_class[label]], "seed").values()
        mean, half = spread([np.mean(weight(p), 0) for p in parts] if len(seeds) > 1 else weight(by_class[label]))
        error = dict(type="data", array=half, visible=half is not None, color=colour, thickness=1.5)
        said = f"{named(label)} ({len(by_class[label])} rows)"
        about = dict(hovertemplate="%{x}: %{y:.3f}<extra>%{fullData.name}</extra>", marker_color=colour)
        figure.add_bar(x=list(map(word, names)), y=mean, error_y=error, name=said, **about, row=1, col=2)
    figure.add_hline(y=even, line=dict(dash="dash", color=GREY), row=1, col=2)
    differ = max(np.ptp(weight(line), axis=0).max() for line in seeds.values())
    within = f" within one of {len(seeds)} seeds" if len(seeds) > 1 else ""
    title = (
        f"weight of each prompt in {len(rows):,} test rows; blue: less than an even {even:.2f} (dashed), red: more"
        f"<br>from row to row the weight of a prompt differs by up to {differ:.2g}{within}"
    )
    below = LEGEND | dict(y=-0.42, yanchor="top", x=0.5)
    styled(figure, 490, title=told(title), barmode="group", legend=below)
    ends = np.cumsum([len(by_class[label]) for label in labels])
    middles = [(a + b - 1) / 2 for a, b in zip([0, *ends], ends, strict=False)]
    axis = dict(tickvals=middles, ticktext=list(map(named, labels)), range=[len(rows) - 0.5, -0.5], tickangle=-90)
    figure.update_yaxes(**axis, showgrid=False, zeroline=False, title="test rows, by class", col=1)
    for e in ends[:-1]:
        figure.add_hline(y=e - 0.5, line=dict(color=ORANGE, width=2), row=1, col=1)
    figure.update_yaxes(rangemode="tozero", title="weight", col=2)
    figure.update_xaxes(type="category", showgrid=False, title="prompt of the task").update_annotations(font=SMALL)
    return figure.update_layout(margin=dict(t=80, b=150))


def _sorted(rows, names):
    """Rows that mix alike beside each other: seed by seed, by the weight of the first prompt."""
    return sorted(rows, key=lambda r: (r.get("seed", 0), -r["weights"][names[0]]))


def gates(rows):
    """What each layer of the side network takes from below, and what from the backbone.

    rows: of `pl.gates`, or of the study `side`; then they are means over the seeds, with their 95 % intervals.
    """
    layers = grouped(table(looked(rows), "place", "below"), "place")
    below, half = zip(*(spread([r["below"] for r in line]) for line in layers.values()), strict=True)
    names, figure, several = list(layers), go.Figure(), half[0] is not None
    both = (
        ("μ, of the side layer below", below, BLUE),
        ("1 − μ, of the backbone's layer", [1 - v for v in below], ORANGE),
    )
    for name, values, colour in both:
        anchor = "start" if colour == BLUE else "end"
        text = dict(texttemplate="%{x:.2f}", insidetextanchor=anchor, hovertemplate="%{y}: %{x:.3f}<extra></extra>")
        figure.add_bar(y=names, x=values, name=name, orientation="h", marker_color=colour, **text)
    if several:  # above both bars
        error = dict(type="data", array=half, color="white", thickness=1.5)
        figure.add_scatter(x=below, y=names, error_x=error, mode="none", showlegend=False, hoverinfo="skip")
    figure.add_vline(x=0.5, line=dict(dash="dash", color=GREY))
    seeds = f", {len(layers[names[0]])} seeds" if several else ""
    title = f"what goes into each side layer: {np.mean(below):.2f} from below on average{seeds}, 0.50 (dashed) at first"
    styled(figure, 170 + 32 * len(names), title=told(title), barmode="stack", legend=LEGEND | dict(traceorder="normal"))
    figure.update_yaxes(
        autorange="reversed", automargin=True, dtick=1, showgrid=False, title="layer of the side network"
    )
    return figure.update_xaxes(range=[0, 1], title="share").update_layout(margin=dict(t=76))
