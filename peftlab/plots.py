"""Finished figures of a model or of results, for reading and printing. No torch is imported here."""

import importlib
import itertools

import numpy as np
import plotly.graph_objects as go

from .pictures import COLOURS, GREY, styled

_WHERE = {  # each is imported when it is first drawn, so that opening a lab does not wait for all of them
    "pictures": "TAXONOMIES delta sectors spectrum taxonomy",
    "findings": "bits costs dimension factors hub league ranks reliability truncation",
    "mask_plots": "density overlap located memory",
    "additive_plots": "added gates heard mixture words",
    "additive_findings": "lent placement prompts sizes",
    "study_plots": "sam_steps left_out jumps",
    "sparse_plots": "definitions traps",
    "theory_plots": "generalisation hard_mask stability u_shape",
    "choice_plots": "expansion projections rules",
    "claims_plots": "sweep tables verdicts",
    "hybrid_plots": "blocks",
    "hybrid_findings": "combining openness structure",
    "rivals": "leads per_bit",
    "search_plots": "curse front progress",
    "unified_plots": "large_sparse mask_overlap prototype routes sparsity storage",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = sorted(["curves", "interval", "modules", "name_of", "parts", "scores", "told", *_HOME])


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"peftlab.plots has no {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __package__), name)


def __dir__():
    return __all__


# What trains --------------------------------------------------------------------------------------


def parts(model):
    """Rows {layer, site, frozen, trained}: numbers of parameters at each labelled place of a model, deltas included."""
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
        layer = module.block_index if site == "block" else module.layer
        return (None if site == "embed" else layer), site
    return (None, "head") if name.startswith(("classifier", "score", "lm_head", "classification_head")) else parent


def modules(model_or_rows):
    """Bars of frozen and trained parameters per kind of module, on a log axis so that small deltas remain visible."""
    rows = model_or_rows if isinstance(model_or_rows, list) else parts(model_or_rows)
    kinds = list(dict.fromkeys(r["site"] for r in rows))
    bars = [
        go.Bar(
            name=part,
            y=kinds,
            x=[sum(r[part] for r in rows if r["site"] == k) or None for k in kinds],
            orientation="h",
            marker_color=colour,
            width=width,
            hovertemplate="%{y}: %{x:,} numbers " + part + "<extra></extra>",
        )
        for part, colour, width in (("frozen", "#6fa8dc", 0.7), ("trained", "#e08a1e", 0.4))
    ]
    total = {part: sum(r[part] for r in rows) for part in ("frozen", "trained")}
    share = total["trained"] / max(1, sum(total.values()))
    title = f"{total['frozen']:,} numbers frozen, {total['trained']:,} trained ({share:.2%})"
    figure = styled(
        go.Figure(bars),
        90 + 34 * len(kinds),
        title=dict(text=title, font=dict(size=14)),
        barmode="overlay",
        legend=dict(orientation="h", x=1, xanchor="right", y=1.0, yanchor="bottom"),
    )
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(type="log", title="numbers (log scale)", dtick=1)


# Runs ---------------------------------------------------------------------------------------------


def interval(values):
    """(mean, low, high): 95 % interval of the mean by Student's t; low and high are None for a single value."""
    from scipy.stats import t

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), None, None
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def told(values, percent=True):
    """ "0.961 ± 0.008 (5 seeds)": a mean with its 95 % interval, in words."""
    mean, low, _ = interval(values)
    return (
        f"{mean:.3f}"
        + (f" ± {mean - low:.3f}" if low is not None else "")
        + f" ({len(values)} seed{'s' * (len(values) > 1)})"
    )


def shown(setting):
    """A setting as it is read: 16, 0.005, global."""
    return setting if isinstance(setting, str) else f"{setting:g}"


def name_of(spec):
    """A short name for a run: its methods and their settings, "lora r=8 alpha=16", or r=8/4 where places differ."""
    methods = {}
    for row in spec["recipe"]:
        said = methods.setdefault(row["method"], {})
        for k, v in row["settings"].items():
            said.setdefault(k, []).append(shown(v))
    words = [[m, *(f"{k}={'/'.join(dict.fromkeys(v))}" for k, v in said.items())] for m, said in methods.items()]
    return " + ".join(map(" ".join, words))


def curves(results, what="loss"):
    """Curves of `what` ("loss" or "validation"): the mean over each recipe's seeds, and a band from least to most."""
    groups = {}
    for r in results:
        groups.setdefault(name_of(r.spec), []).append(
            [(row["step"], row[what]) for row in r.rows if row.get(what) is not None]
        )
    figure = go.Figure()
    for (name, runs), colour in zip(groups.items(), itertools.cycle(COLOURS), strict=False):
        n = min(map(len, runs))
        steps, values = [s for s, _ in runs[0][:n]], np.array([[v for _, v in run[:n]] for run in runs])
        if len(runs) > 1:
            band = [*values.max(0).tolist(), *values.min(0).tolist()[::-1]]
            figure.add_trace(
                go.Scatter(
                    x=steps + steps[::-1],
                    y=band,
                    fill="toself",
                    line=dict(width=0),
                    opacity=0.25,
                    fillcolor=colour,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        figure.add_trace(
            go.Scatter(x=steps, y=values.mean(0).tolist(), name=f"{name} ({len(runs)})", line=dict(color=colour))
        )
    return styled(figure, xaxis_title="step", yaxis_title=what, legend=dict(orientation="h", y=1.02, yanchor="bottom"))


def scores(results):
    """Mean test score of each recipe with its 95 % interval over seeds; each seed a dot, other baselines as lines."""
    groups = {}
    for r in results:
        groups.setdefault(name_of(r.spec), []).append(r.score)
    stats = [interval(v) for v in groups.values()]
    halves = [None if low is None else mean - low for mean, low, _ in stats]
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(len(groups))),
        y=[mean for mean, _, _ in stats],
        mode="markers",
        name="mean and 95 % interval",
        marker=dict(symbol="square", size=11, color="#2f7ed8"),
        error_y=dict(type="data", array=halves, color="#2f7ed8", thickness=2, width=8),
    )
    dots = [(i + 0.12, v) for i, values in enumerate(groups.values()) for v in values]
    figure.add_scatter(
        x=[x for x, _ in dots],
        y=[v for _, v in dots],
        mode="markers",
        name="one seed",
        marker=dict(color="#e08a1e", size=7),
    )
    shown = {row["method"] for r in results for row in r.spec["recipe"]}
    for name, value in (results[0].baselines if results else {}).items():
        if value is not None and name not in shown:
            figure.add_hline(y=value, line=dict(dash="dash", color=GREY), annotation_text=f"{name} {value:.3f}")
    names = dict(tickvals=list(range(len(groups))), ticktext=list(groups), range=[-0.5, max(0, len(groups) - 1) + 0.5])
    legend = dict(orientation="h", x=0, y=1.02, yanchor="bottom")
    return styled(
        figure, xaxis=names, yaxis_title=f"{results[0].metric} on test" if results else "score", legend=legend
    )
