"""Finished figures: functions from plain rows, results or a model's parameters to a plotly figure. No torch is imported here."""
import re

import numpy as np
import plotly.graph_objects as go

TAXONOMIES = {"review": "the review", "delta_tuning": "Delta Tuning", "sparse_view": "the sparse view"}
COLOURS = ("#2f7ed8", "#d9534f", "#2aa876", "#9467bd", "#e08a1e", "#17a2b8", "#b05f8a", "#7f8c2a")
GREY = "#9aa0a6"


def styled(figure, height=320, **layout):
    """The look all figures share: readable on a light and on a dark page, no wasted margin."""
    figure.update_layout(height=height, margin=dict(l=56, r=16, t=44, b=44), paper_bgcolor="rgba(0,0,0,0)",
                         plot_bgcolor="rgba(0,0,0,0)", font=dict(color="#808890", size=13), dragmode=False,
                         modebar=dict(remove=["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale"]), **layout)
    figure.update_xaxes(gridcolor="rgba(128,136,144,.25)", zerolinecolor="rgba(128,136,144,.4)")
    figure.update_yaxes(gridcolor="rgba(128,136,144,.25)", zerolinecolor="rgba(128,136,144,.4)")
    return figure


# The taxonomies ---------------------------------------------------------------------------------------------------------

def taxonomy(rows=None):
    """A sunburst of the registry, or of `rows` shaped like its catalogue; a menu switches between the three taxonomies."""
    if rows is None:
        from .methods import catalogue
        rows = catalogue()
    views = {key: sectors(rows, key) for key in TAXONOMIES}
    first = views["review"]
    figure = go.Figure(go.Sunburst(branchvalues="total", hovertemplate="%{customdata}<extra></extra>", maxdepth=4,
                                   insidetextorientation="horizontal", **{k: v for k, v in first.items() if k != "colors"},
                                   marker=dict(colors=first["colors"], line=dict(color="white", width=1)), textfont=dict(color="white")))
    buttons = [dict(label=label, method="restyle", args=[_restyle(views[key])]) for key, label in TAXONOMIES.items()]
    menu = dict(type="buttons", direction="right", buttons=buttons, x=0, xanchor="left", y=1.02, yanchor="bottom",
                showactive=True, font=dict(size=12, color="#444"), bgcolor="#eef1f4")
    styled(figure, 500, updatemenus=[menu])
    return figure.update_layout(margin=dict(l=8, r=8, t=56, b=8))


def _restyle(view):
    return {("marker.colors" if k == "colors" else k): [v] for k, v in view.items()}


def sectors(rows, key):
    """One taxonomy as a tree: centre, categories from the path "additive/adapter", a leaf per method."""
    ids, labels, parents, texts, colors, shade = ["all"], ["methods"], [""], [TAXONOMIES[key]], ["#5f6b7a"], {}
    for row in rows:
        path, parent = [part.strip() for part in row[key].replace("–", "not classified").split("/")], "all"
        colour = shade.setdefault(path[0], GREY if path[0] in ("baseline", "not classified") else COLOURS[len(shade) % len(COLOURS)])
        for depth in range(len(path)):
            sector = "/".join(path[:depth + 1])
            if sector not in ids:
                for column, value in zip((ids, labels, parents, texts, colors), (sector, _wrap(path[depth]), parent, sector, colour)):
                    column.append(value)
            parent = sector
        about = f"<b>{row.get('title') or row['name']}</b><br>{row['equation']}<br>sites: {row.get('where') or '–'}<br>{row['paper']}"
        for column, value in zip((ids, labels, parents, texts, colors), (f"{parent}/{row['name']}", _wrap(row["name"]), parent, about, colour)):
            column.append(value)
    values = [sum(child.startswith(i + "/") or i == "all" for child in _leaves(ids, parents)) or 1 for i in ids]
    return dict(ids=ids, labels=labels, parents=parents, values=values, customdata=texts, colors=colors)


def _leaves(ids, parents):
    inner = set(parents)
    return [i for i in ids if i not in inner]


def _wrap(word):
    """Long category names break over two lines, so that they fit their sector."""
    if len(word) < 12:
        return word
    return re.sub(r"[ -]", "<br>", word, count=1) if re.search(r"[ -]", word) else f"{word[:8]}-<br>{word[8:]}"


# What trains ------------------------------------------------------------------------------------------------------------

def parts(model):
    """Rows {layer, site, frozen, trained}: the parameters of each labelled module of a model, the delta's own counted as trained."""
    rows, owner = {}, {}
    for name, module in model.named_modules():
        place = _place(module, owner, name)
        owner[name] = place
        for p in module._parameters.values():
            if p is not None:
                row = rows.setdefault(place, dict(layer=place[0], site=place[1], frozen=0, trained=0))
                row["trained" if p.requires_grad else "frozen"] += p.numel()
    return list(rows.values())


def _place(module, owner, name):
    """Where a module's numbers belong: its own label, else that of the module around it."""
    parent = owner.get(name.rpartition(".")[0], (None, "other"))
    site = getattr(module, "site", None)
    if isinstance(site, str):
        return (None if site == "embed" else module.layer), site
    if hasattr(module, "block"):
        return module.block, "other"
    return (None, "head") if name.startswith(("classifier", "score", "lm_head", "classification_head")) else parent


def modules(model_or_rows):
    """Bars of frozen and trained parameters per kind of module, on a log axis so that small deltas remain visible."""
    rows = model_or_rows if isinstance(model_or_rows, list) else parts(model_or_rows)
    kinds = list(dict.fromkeys(r["site"] for r in rows))
    bars = [go.Bar(name=part, y=kinds, x=[sum(r[part] for r in rows if r["site"] == k) or None for k in kinds], orientation="h",
                   marker_color=colour, width=width, hovertemplate="%{y}: %{x:,} numbers " + part + "<extra></extra>")
            for part, colour, width in (("frozen", "#6fa8dc", 0.7), ("trained", "#e08a1e", 0.4))]
    total = {part: sum(r[part] for r in rows) for part in ("frozen", "trained")}
    title = f"{total['frozen']:,} numbers frozen, {total['trained']:,} trained ({total['trained'] / max(1, sum(total.values())):.2%})"
    figure = styled(go.Figure(bars), 90 + 34 * len(kinds), title=dict(text=title, font=dict(size=14)), barmode="overlay",
                    legend=dict(orientation="h", x=1, xanchor="right", y=1.0, yanchor="bottom"))
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(type="log", title="numbers (log scale)", dtick=1)


# A delta, moving --------------------------------------------------------------------------------------------------------

def delta(d=24, ranks=(1, 2, 3, 4, 6, 8, 12, 24), seed=0):
    """W + B A = W', with a slider over the rank: the product becomes able to follow a wanted change, at the price of r·2d numbers.

    The wanted change is a smooth pattern; B A is its best approximation of rank r (from the singular value decomposition).
    """
    W, want = _matrices(d, seed)
    U, s, V = np.linalg.svd(want)
    fits = {r: (U[:, :r] * s[:r]) @ V[:r] for r in ranks}
    start = 0
    figure = go.Figure([_tile(z, i) for i, z in enumerate((W, fits[ranks[start]], W + fits[ranks[start]], want))])
    figure.frames = [go.Frame(name=str(r), data=[_z(fit), _z(W + fit)], traces=[1, 2],
                              layout=dict(title=dict(text=_caption(r, d, fit, want)))) for r, fit in fits.items()]
    names = ("W, frozen", "B A, trained", "W + B A, used", "the wanted change")
    for i in range(4):
        k = "" if i == 0 else str(i + 1)
        figure.update_layout({"xaxis" + k: dict(domain=[i * 0.26, i * 0.26 + 0.22], visible=False),
                              "yaxis" + k: dict(anchor="x" + k, visible=False, autorange="reversed")})
    notes = [dict(text=n, x=i * 0.26 + 0.11, y=1.0, xref="paper", yref="paper", yanchor="bottom", showarrow=False)
             for i, n in enumerate(names)]
    signs = [dict(text=f"<b>{c}</b>", x=i * 0.26 + 0.24, y=0.5, xref="paper", yref="paper", showarrow=False, font=dict(size=20))
             for i, c in enumerate("+=")]
    styled(figure, 380, annotations=notes + signs, title=dict(text=_caption(ranks[start], d, fits[ranks[start]], want), font=dict(size=14)),
           sliders=[_slider(ranks)], updatemenus=[_play()])
    return figure.update_layout(margin=dict(l=12, r=12, t=76, b=96))


def _matrices(d, seed):
    rng = np.random.default_rng(seed)
    a, b = np.meshgrid(np.linspace(-1, 1, d), np.linspace(-1, 1, d))
    rings = np.cos(7 * np.hypot(a, b)) * np.exp(-np.hypot(a - 0.2, b + 0.1)) + 0.5 * np.sign(a + b) * (np.abs(a - b) < 0.25)
    return rng.normal(size=(d, d)) * 0.35, rings


def _z(matrix):
    return go.Heatmap(z=np.round(matrix, 2).tolist())


def _tile(matrix, i):
    k = "" if i == 0 else str(i + 1)
    return go.Heatmap(z=np.round(matrix, 2).tolist(), xaxis="x" + k, yaxis="y" + k, zmin=-1.2, zmax=1.2, colorscale="RdBu",
                      showscale=False, hovertemplate="row %{y}, column %{x}: %{z}<extra></extra>")


def _caption(r, d, fit, want):
    missing = np.linalg.norm(want - fit) / np.linalg.norm(want)
    return f"rank r = {r}: B and A hold {2 * d * r:,} numbers, W holds {d * d:,}; {1 - missing**2:.0%} of the wanted change is reached"


def _slider(ranks):
    now = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    return dict(currentvalue=dict(prefix="rank r = "), x=0.12, len=0.86, y=-0.04, pad=dict(t=24),
                steps=[dict(label=str(r), method="animate", args=[[str(r)], now]) for r in ranks])


def _play():
    go_on = dict(frame=dict(duration=700, redraw=True), transition=dict(duration=0), fromcurrent=False)
    return dict(type="buttons", x=0, xanchor="left", y=-0.16, yanchor="top", showactive=False, bgcolor="#eef1f4",
                font=dict(color="#444"), buttons=[dict(label="▶ play", method="animate", args=[None, go_on])])


# Runs -------------------------------------------------------------------------------------------------------------------

def interval(values):
    """(mean, low, high): 95 % interval of the mean by Student's t; low and high are None for a single value."""
    from scipy.stats import t

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), None, None
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def told(values, percent=True):
    """"0.961 ± 0.008 (5 seeds)": a mean with its 95 % interval, in words."""
    mean, low, _ = interval(values)
    return f"{mean:.3f}" + (f" ± {mean - low:.3f}" if low is not None else "") + f" ({len(values)} seed{'s' * (len(values) > 1)})"


def name_of(spec):
    """A short name for a run: its methods and their settings, "lora r=8 alpha=16"."""
    rows = [" ".join([row["method"], *(f"{k}={v:g}" for k, v in row["settings"].items())]) for row in spec["recipe"]]
    return " + ".join(dict.fromkeys(rows))          # one method at two places is named once


def curves(results, what="loss"):
    """Learning curves of `what` ("loss" or "validation"): the mean over the seeds of each recipe, with a band from least to most."""
    groups = {}
    for r in results:
        groups.setdefault(name_of(r.spec), []).append([(row["step"], row[what]) for row in r.rows if row.get(what) is not None])
    figure = go.Figure()
    for (name, runs), colour in zip(groups.items(), COLOURS * (1 + len(groups) // len(COLOURS))):
        n = min(map(len, runs))
        steps, values = [s for s, _ in runs[0][:n]], np.array([[v for _, v in run[:n]] for run in runs])
        if len(runs) > 1:
            band = [*values.max(0).tolist(), *values.min(0).tolist()[::-1]]
            figure.add_trace(go.Scatter(x=steps + steps[::-1], y=band, fill="toself", line=dict(width=0), opacity=0.25,
                                        fillcolor=colour, hoverinfo="skip", showlegend=False))
        figure.add_trace(go.Scatter(x=steps, y=values.mean(0).tolist(), name=f"{name} ({len(runs)})", line=dict(color=colour)))
    return styled(figure, xaxis_title="step", yaxis_title=what, legend=dict(orientation="h", y=1.02, yanchor="bottom"))


def scores(results):
    """One bar per recipe: mean score on the test split, 95 % interval over seeds, every seed as a dot, baselines as lines."""
    groups = {}
    for r in results:
        groups.setdefault(name_of(r.spec), []).append(r.score)
    stats = {name: interval(v) for name, v in groups.items()}
    errors = [0 if low is None else mean - low for mean, low, _ in stats.values()]
    figure = go.Figure(go.Bar(x=list(stats), y=[m for m, _, _ in stats.values()], marker_color="#6fa8dc", name="mean",
                              error_y=dict(type="data", array=errors, color="#808890"), showlegend=False))
    dots = [(name, v) for name, values in groups.items() for v in values]
    figure.add_trace(go.Scatter(x=[n for n, _ in dots], y=[v for _, v in dots], mode="markers", name="one seed",
                                marker=dict(color="#e08a1e", size=7), showlegend=False))
    for name, value in (results[0].baselines if results else {}).items():
        if value is not None:
            figure.add_hline(y=value, line=dict(dash="dash", color=GREY), annotation_text=f"{name} {value:.3f}")
    return styled(figure, yaxis_title=results[0].metric if results else "score")
