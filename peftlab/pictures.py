"""Pictures that teach: the map of all methods, and a low-rank delta that moves. No torch is imported here."""

import json
import re

import numpy as np
import plotly.graph_objects as go

from .paths import data

TAXONOMIES = {"review": "the review", "delta_tuning": "Delta Tuning", "sparse_view": "the sparse view"}
COLOURS = ("#2f7ed8", "#d9534f", "#2aa876", "#9467bd", "#e08a1e", "#17a2b8", "#b05f8a", "#7f8c2a")
GREY = "#9aa0a6"


def styled(figure, height=320, **layout):
    """The look all figures share: readable on a light and on a dark page, no wasted margin."""
    figure.update_layout(
        height=height,
        margin=dict(l=56, r=16, t=44, b=44),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(color="#808890", size=13),
        dragmode=False,
        modebar=dict(remove=["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale"]),
        **layout,
    )
    figure.update_xaxes(gridcolor="rgba(128,136,144,.25)", zerolinecolor="rgba(128,136,144,.4)")
    figure.update_yaxes(gridcolor="rgba(128,136,144,.25)", zerolinecolor="rgba(128,136,144,.4)")
    return figure


# The taxonomies -----------------------------------------------------------------------------------


def taxonomy(rows=None):
    """A sunburst of the registry (or of `rows` like its catalogue); a menu switches between the three taxonomies."""
    if rows is None:
        from .methods import catalogue

        rows = catalogue()
    views = {key: sectors(rows, key) for key in TAXONOMIES}
    first = views["review"]
    figure = go.Figure(
        go.Sunburst(
            branchvalues="total",
            hovertemplate="%{customdata}<extra></extra>",
            maxdepth=4,
            insidetextorientation="auto",
            **{k: v for k, v in first.items() if k != "colors"},
            marker=dict(colors=first["colors"], line=dict(color="white", width=1)),
            textfont=dict(color="white"),
        )
    )
    buttons = [dict(label=label, method="restyle", args=[_restyle(views[key])]) for key, label in TAXONOMIES.items()]
    menu = dict(
        type="buttons",
        direction="right",
        buttons=buttons,
        x=0,
        xanchor="left",
        y=1.02,
        yanchor="bottom",
        showactive=True,
        font=dict(size=12, color="#444"),
        bgcolor="#eef1f4",
    )
    styled(figure, 700, updatemenus=[menu])
    return figure.update_layout(margin=dict(l=8, r=8, t=56, b=8))


def _restyle(view):
    return {("marker.colors" if k == "colors" else k): [v] for k, v in view.items()}


def sectors(rows, key):
    """One taxonomy as a tree: centre, categories from the path "additive/adapter", a leaf per method."""
    ids, labels, parents, texts, colors, shade = ["all"], ["methods"], [""], [TAXONOMIES[key]], ["#5f6b7a"], {}
    for row in rows:
        path, parent = [part.strip() for part in row[key].replace("–", "not classified").split("/")], "all"
        colour = shade.setdefault(
            path[0], GREY if path[0] in ("baseline", "not classified") else COLOURS[len(shade) % len(COLOURS)]
        )
        for depth in range(len(path)):
            sector = "/".join(path[: depth + 1])
            if sector not in ids:
                for column, value in zip(
                    (ids, labels, parents, texts, colors),
                    (sector, _wrap(path[depth]), parent, sector, colour),
                    strict=True,
                ):
                    column.append(value)
            parent = sector
        lines = (f"<b>{row['title']}</b>", row["equation"], f"sites: {row['where'] or '–'}", row["paper"])
        about = "<br>".join(lines)
        for column, value in zip(
            (ids, labels, parents, texts, colors),
            (f"{parent}/{row['name']}", _wrap(row["name"]), parent, about, colour),
            strict=True,
        ):
            column.append(value)
    values = [sum(child.startswith(i + "/") or i == "all" for child in _leaves(ids, parents)) or 1 for i in ids]
    return dict(ids=ids, labels=labels, parents=parents, values=values, customdata=texts, colors=colors)


def _leaves(ids, parents):
    inner = set(parents)
    return [i for i in ids if i not in inner]


def _wrap(word):
    """Long category names break over two lines, so that they fit their sector."""
    if len(word) < 10:
        return word
    return re.sub(r"[ -]", "<br>", word, count=1) if re.search(r"[ -]", word) else f"{word[:8]}-<br>{word[8:]}"


# A delta, moving ----------------------------------------------------------------------------------


def delta(d=24, ranks=(1, 2, 3, 4, 6, 8, 12, 24), seed=0):
    """W + B A = W', with a slider over the rank: B A follows a wanted change better and better, for 2·d·r numbers.

    The wanted change is a pattern; B A is its best approximation of rank r (by singular value decomposition).
    """
    W, want = _matrices(d, seed)
    U, s, V = np.linalg.svd(want)
    fits = {r: (U[:, :r] * s[:r]) @ V[:r] for r in ranks}
    start = 0
    figure = go.Figure([_tile(z, i) for i, z in enumerate((W, fits[ranks[start]], W + fits[ranks[start]], want))])
    figure.frames = [
        go.Frame(
            name=str(r),
            data=[_z(fit), _z(W + fit)],
            traces=[1, 2],
            layout=dict(title=dict(text=_caption(r, d, fit, want))),
        )
        for r, fit in fits.items()
    ]
    names = ("W, frozen", "B A, trained", "W + B A, used", "the wanted change")
    for i in range(4):
        k = "" if i == 0 else str(i + 1)
        figure.update_layout(
            {
                "xaxis" + k: dict(domain=[i * 0.26, i * 0.26 + 0.22], visible=False),
                "yaxis" + k: dict(anchor="x" + k, visible=False, autorange="reversed"),
            }
        )
    notes = [
        dict(text=n, x=i * 0.26 + 0.11, y=1.0, xref="paper", yref="paper", yanchor="bottom", showarrow=False)
        for i, n in enumerate(names)
    ]
    signs = [
        dict(
            text=f"<b>{c}</b>",
            x=i * 0.26 + 0.24,
            y=0.5,
            xref="paper",
            yref="paper",
            showarrow=False,
            font=dict(size=20),
        )
        for i, c in enumerate("+=")
    ]
    styled(
        figure,
        380,
        annotations=notes + signs,
        title=dict(text=_caption(ranks[start], d, fits[ranks[start]], want), font=dict(size=14)),
        sliders=[_slider(ranks)],
        updatemenus=[_play()],
    )
    return figure.update_layout(margin=dict(l=12, r=12, t=76, b=96))


def _matrices(d, seed):
    rng = np.random.default_rng(seed)
    a, b = np.meshgrid(np.linspace(-1, 1, d), np.linspace(-1, 1, d))
    rings = np.cos(7 * np.hypot(a, b)) * np.exp(-np.hypot(a - 0.2, b + 0.1)) + 0.5 * np.sign(a + b) * (
        np.abs(a - b) < 0.25
    )
    return rng.normal(size=(d, d)) * 0.35, rings


def _z(matrix):
    return go.Heatmap(z=np.round(matrix, 2).tolist())


def _tile(matrix, i):
    k = "" if i == 0 else str(i + 1)
    return go.Heatmap(
        z=np.round(matrix, 2).tolist(),
        xaxis="x" + k,
        yaxis="y" + k,
        zmin=-1.2,
        zmax=1.2,
        colorscale="RdBu",
        showscale=False,
        hovertemplate="row %{y}, column %{x}: %{z}<extra></extra>",
    )


def _caption(r, d, fit, want):
    missing = np.linalg.norm(want - fit) / np.linalg.norm(want)
    held = f"B and A hold {2 * d * r:,} numbers, W holds {d * d:,}"
    return f"rank r = {r}: {held}; {1 - missing**2:.0%} of the wanted change is reached"


def _slider(ranks):
    now = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    return dict(
        currentvalue=dict(prefix="rank r = "),
        x=0.12,
        len=0.86,
        y=-0.04,
        pad=dict(t=24),
        steps=[dict(label=str(r), method="animate", args=[[str(r)], now]) for r in ranks],
    )


def _play():
    go_on = dict(frame=dict(duration=700, redraw=True), transition=dict(duration=0), fromcurrent=False)
    return dict(
        type="buttons",
        x=0,
        xanchor="left",
        y=-0.16,
        yanchor="top",
        showactive=False,
        bgcolor="#eef1f4",
        font=dict(color="#444"),
        buttons=[dict(label="▶ play", method="animate", args=[None, go_on])],
    )


# The spectrum of a change -------------------------------------------------------------------------


def spectrum(record=None):
    """Singular values of ΔW, each as a share of the largest: full fine-tuning's, and with a slider over r LoRA's.

    record: what `peftlab.spectra` makes; without one, the shipped one. Lines are means over seeds, the grey band goes
    from the least to the most.
    """
    if record is None:
        record = json.loads((data() / "results" / "spectra.json").read_text(encoding="utf-8"))
    shares = {name: np.array([np.array(s) / s[0] for s in seeds]) for name, seeds in record["spectra"].items()}
    full, ranks = shares.pop("full"), [int(r) for r in shares]
    most = max(ranks)  # beyond it LoRA has nothing to show
    numbers, grey = list(range(1, most + 1)), full[:, :most]
    band = dict(x=numbers + numbers[::-1], y=[*grey.max(0), *grey.min(0)[::-1]], fill="toself", hoverinfo="skip")
    look = dict(mode="lines+markers", line=dict(color=COLOURS[0]), name="LoRA")
    curve = lambda r: go.Scatter(x=numbers[:r], y=shares[str(r)].mean(0)[:r].tolist(), **look)
    figure = go.Figure(
        [
            go.Scatter(**band, line=dict(width=0), fillcolor="rgba(128,136,144,.25)", showlegend=False),
            go.Scatter(x=numbers, y=grey.mean(0).tolist(), name="full fine-tuning", line=dict(color=GREY)),
            curve(ranks[0]),
        ]
    )
    largest = {name: np.mean([s[0] for s in seeds]) for name, seeds in record["spectra"].items()}
    titles = {r: dict(text=_told_spectrum(r, largest, shares[str(r)].mean(0)[:r], full.mean(0))) for r in ranks}
    figure.frames = [go.Frame(name=str(r), data=[curve(r)], traces=[2], layout=dict(title=titles[r])) for r in ranks]
    axes = dict(xaxis_title="number of the singular value", yaxis_title="share of the largest", yaxis_range=[0, 1.05])
    legend = dict(orientation="h", y=1.02, yanchor="bottom", x=1, xanchor="right")
    more = dict(title=titles[ranks[0]] | dict(font=dict(size=14)), sliders=[_slider(ranks)], updatemenus=[_play()])
    styled(figure, 420, **axes, legend=legend, **more)
    figure.update_layout(sliders=[dict(figure.layout.sliders[0].to_plotly_json(), y=-0.2)], margin=dict(t=92, b=132))
    return figure.update_layout(updatemenus=[dict(figure.layout.updatemenus[0].to_plotly_json(), y=-0.36)])


def _told_spectrum(r, largest, lora, full):
    """How many singular values hold 90 % of the squared change."""
    needs = lambda s: int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9) + 1)
    return (
        f"90 % of the change of q and v lies in {needs(full)} directions for full fine-tuning, in {needs(lora)} for "
        f"LoRA of rank {r}<br>the largest singular value is {largest['full']:.2f} there, {largest[str(r)]:.2f} here"
    )
