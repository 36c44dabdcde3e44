"""Figures of what the studies of hybrids found. No torch is imported here."""

import itertools

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import claims, published
from .additive_plots import lines_of, told
from .findings import grouped, spread
from .mask_plots import table
from .pictures import COLOURS, GREY, styled

# The gates of UniPELT -----------------------------------------------------------------------------

HUES = {"adapter": "#2f7ed8", "prefix": "#e08a1e", "LoRA at q": "#2aa876", "LoRA at v": "#86d1b3"}


def openness(rows):
    """How far UniPELT's gates are open, by layer and part: a bar goes from before the training to after it.

    rows: of the study `openness`, a panel for each task, or of `gates_of`, whose bars begin at 0.5. Bars are means over
    seeds, dots are seeds; the grey line is the standard deviation from text to text, to both sides.
    """
    rows = rows if rows and "after" in rows[0] else [dict(task="", seed=0, before=None, after=rows)]
    table(rows[0]["after"], "layer", "part", "mean", "spread", "rows")
    tasks = grouped(rows, "task")
    look = dict(shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[*tasks])
    figure, said = make_subplots(1, len(tasks), **look), []
    for k, (task, runs) in enumerate(tasks.items(), 1):
        after, before = ([_gates(r[when]) for r in runs if r[when]] for when in ("after", "before"))
        parts = list(dict.fromkeys(part for _, part in after[0]))
        colours = dict(zip(parts, COLOURS, strict=False)) | HUES
        for i, part in enumerate(parts):
            places = [place for place in after[0] if place[1] == part]
            each = np.array([[one[p][0] for p in places] for one in after])  # (seeds places)
            texts = np.mean([[one[p][1] for p in places] for one in after], 0)
            first = np.mean([[one[p][0] for p in places] for one in before] or [[0.5] * len(places)], 0)
            x = np.array([layer for layer, _ in places]) + (i - (len(parts) - 1) / 2) * 0.84 / len(parts)
            hover = [
                f"layer {layer}, {part}: {e.mean():.2f}, at first {b:.2f}<br>{e.min():.2f} to {e.max():.2f} over "
                f"{len(e)} seed{'s' * (len(e) > 1)}<br>from text to text ± {sd:.3f} (standard deviation)"
                for (layer, _), e, b, sd in zip(places, each.T, first, texts, strict=True)
            ]
            bar = dict(base=first, width=0.74 / len(parts), marker_color=colours[part], legendgroup=part)
            words = dict(hovertext=hover, hoverinfo="text", name=part, showlegend=k == 1)
            figure.add_bar(x=x, y=each.mean(0) - first, opacity=0.8, **bar, **words, row=1, col=k)
            look = dict(mode="markers", hoverinfo="skip", showlegend=False)
            error = dict(type="data", array=texts, thickness=6, width=0, color="rgba(90,96,104,.4)")
            figure.add_scatter(x=x, y=each.mean(0), error_y=error, marker_size=0.1, **look, row=1, col=k)
            dots = dict(size=5, color="#3c4248", line=dict(width=1, color="white"))
            figure.add_scatter(x=np.tile(x, len(each)), y=each.ravel(), marker=dots, **look, row=1, col=k)
        said.append(_told_gates(task, after, before))
        layers = sorted({layer for layer, _ in after[0]})
        figure.update_xaxes(tickvals=layers, title="layer", showgrid=False, zeroline=False, row=1, col=k)
    figure.add_hline(y=0.5, line=dict(dash="dot", color=GREY))
    below = dict(orientation="h", x=0, y=-0.2, yanchor="top")
    figure.update_yaxes(range=[0, 1], title="share that the gate lets through", col=1)
    said.append("dots: seeds; grey: the standard deviation from text to text, to both sides")
    styled(figure, 380 + 19 * len(said), title=told("<br>".join(said)), legend=below)
    return figure.update_layout(margin=dict(t=50 + 19 * len(said), b=84))


def _gates(looks):
    """{(layer, part): (mean, spread)}"""
    return {(r["layer"], r["part"]): (r["mean"], r["spread"]) for r in looks}


def _told_gates(task, after, before):
    """How far the gates of a task are open, and by how much they differ, in words."""
    means = np.array([[mean for mean, _ in one.values()] for one in after])  # (seeds gates)
    texts = np.mean([[s for _, s in one.values()] for one in after])
    ends = "{:.2f} to {:.2f}".format(*(f(means.mean(0)) for f in (np.min, np.max)))
    first = np.array([[mean for mean, _ in one.values()] for one in before]) if before else None
    began = "" if first is None else f", at first {first.mean():.2f}"
    seeds = f", from seed to seed {means.std(0, ddof=1).mean():.3f}" if len(means) > 1 else ""
    name = f"{task}: " if task else ""
    return f"{name}gates {ends}{began}; standard deviation from text to text {texts:.3f}{seeds}"


# One method or several ----------------------------------------------------------------------------

NAMES = dict(none="none of them", adapter="adapter", bitfit="BitFit", prompt="prompt")
BUDGETS = dict(equal="equal budget", added="added")
SAME = "="


def named(parts):
    return " + ".join(NAMES[p] for p in parts.split())


def helps(rows):
    """[{task, budget, combination, single, effect, low, high, verdict}]: is the best combination above the best part?

    Which are the best is chosen on validation. effect: the difference of their scores on test, the mean over seeds,
    with a 95 % interval by Student's t; it decides as in `claims.verdicts`.
    """
    table(rows, "parts", "task", "budget", "seed", "validation", "score")
    found = []
    for (task, budget), mine in grouped(rows, "task", "budget").items():
        by_parts = grouped(sorted(mine, key=lambda r: r["seed"]), "parts")
        sure = {parts: np.mean([r["validation"] for r in one]) for parts, one in by_parts.items() if parts != "none"}
        single, several = ([p for p in sure if (" " in p) == joint] for joint in (False, True))
        if not single or not several:
            continue
        one, more = max(single, key=sure.get), max(several, key=sure.get)
        score = {p: {r["seed"]: r["score"] for r in by_parts[p]} for p in (one, more)}
        seeds = sorted(score[one].keys() & score[more].keys())
        mean, half = spread([score[more][s] - score[one][s] for s in seeds])
        low, high = (np.nan, np.nan) if half is None else (mean - half, mean + half)
        finding = claims.Finding(mean, low, high, "", "")
        who = dict(task=task, budget=budget, combination=more, single=one)
        found.append(who | dict(effect=mean, low=low, high=high, verdict=finding.verdict))
    return found


def combining(rows):
    """Adapter, BitFit and prompt alone and together: mean scores on test, beside those of a paper, and what follows.

    rows: of the study `combining`. ± is half of a 95 % interval over seeds. A colour is the distance to the adapter
    alone. With equal budget an adapter beside others is narrower, else these are added to it; = is the same run.
    """
    table(rows, "parts", "task", "budget", "seed", "validation", "score", "numbers")
    names, n = list(grouped(rows, "parts")), len({r["seed"] for r in rows})
    panels, decided = (_ours(rows, names), _theirs(names)), helps(rows)
    here = f"here: accuracy, {n} seed{'s' * (n > 1)}, the head trained in all<br>= is the run on its left"
    titles = [here, "Ding et al., Table 2:<br>mean of 8 tasks, added"]
    widths = [len(x) for x, _, _ in panels]
    look = dict(shared_yaxes=True, horizontal_spacing=0.03, column_widths=widths, subplot_titles=titles)
    figure = make_subplots(1, 2, **look)
    for k, (x, z, text) in enumerate(panels, 1):
        hover = "%{x}: %{text}<br>%{z:+.1f} points to the adapter alone<extra></extra>"
        show = dict(texttemplate="%{text}", textfont_size=11, coloraxis="coloraxis", xgap=1, ygap=1)
        tile = go.Heatmap(x=x, y=[*range(len(names))], z=z, text=text, hovertemplate=hover, hoverongaps=False, **show)
        figure.add_trace(tile, 1, k)
    said = ["<b>Combining helps</b>: best combination − best single part, in points, with a 95 % interval over seeds"]
    said = [*said, *map(_told, decided)] if decided else [""]
    styled(figure, 226 + 40 * len(names) + 19 * len(decided), title=told("<br>".join(said)))
    bar = dict(text="points above the adapter alone (deepest from 8 on)", side="bottom", font_size=12)
    bar = dict(orientation="h", y=-0.02, yanchor="top", thickness=10, len=0.6, title=bar)
    figure.update_layout(coloraxis=dict(colorscale="RdBu", cmin=-8, cmax=8, colorbar=bar))
    figure.update_annotations(font_size=12, yshift=32)
    figure.update_xaxes(side="top", showgrid=False, tickangle=0, tickfont_size=11)
    axis = dict(tickvals=[*range(len(names))], ticktext=[_label(p, rows) for p in names])
    axis |= dict(range=[len(names) - 0.5, -0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(**axis, automargin=True)
    return figure.update_layout(margin=dict(t=118 + 19 * len(decided), b=64))


def _ours(rows, names):
    """(columns, colours, words) of our own runs."""
    cells, tasks, budgets = grouped(rows, "parts", "task", "budget"), grouped(rows, "task"), grouped(rows, "budget")
    columns, z, text = [(t, b) for t in tasks for b in BUDGETS if b in budgets], [], []
    mean = lambda *cell: np.mean([r["score"] for r in cells[cell]]) if cell in cells else np.nan
    for parts in names:
        line = []
        for task, budget in columns:
            _, half = spread([r["score"] for r in cells.get((parts, task, budget), [dict(score=0)])])
            line.append(_cell(mean(parts, task, budget), half, "±"))
            if budget == "added" and "equal" in budgets and (parts == "adapter" or "adapter" not in parts):
                line[-1] = SAME
        text.append(line)
        gains = [100 * (mean(parts, *column) - mean("adapter", *column)) for column in columns]
        z.append([None if word == SAME or np.isnan(v) else float(v) for v, word in zip(gains, line, strict=True)])
    return [f"{task}<br>{BUDGETS[budget]}" for task, budget in columns], z, text


def _theirs(names):
    """(columns, colours, words) of the paper."""
    wide = published.combined().pivot(index="parts", columns="template") / 100
    gains, text = 100 * (wide["mean"] - wide["mean"].loc["adapter"]).loc[names], []
    for parts in names:
        text.append([_cell(wide["mean"].loc[parts, t], wide["std"].loc[parts, t], "sd ") for t in (False, True)])
    return ["no<br>template", "with<br>template"], gains.to_numpy().tolist(), text


def _cell(mean, error, sign):
    """A score in points, and below it how sure it is."""
    sure = error is not None and not np.isnan(error)
    return ("" if np.isnan(mean) else f"{100 * mean:.1f}") + (f"<br>{sign}{100 * error:.1f}" if sure else "")


def _label(parts, rows):
    """A line of the grid, and how many numbers it trains under each budget."""
    counts = list(dict.fromkeys(f"{r['numbers']:,}" for r in rows if r["parts"] == parts))
    return f"{named(parts)}<br><span style='font-size:10px'>{' or '.join(counts)} numbers</span>"


def _told(one):
    """What `helps` found, in words."""
    signed = lambda v: f"{100 * v:+.1f}".replace("-", "−")
    between = "" if np.isnan(one["low"]) else f" [{signed(one['low'])}, {signed(one['high'])}]"
    what = f"{named(one['combination'])} − {named(one['single'])} = {signed(one['effect'])}{between}"
    return f"{one['task']}, {BUDGETS[one['budget']]}: {what}: <b>{one['verdict']}</b>"


# What S³Delta keeps -------------------------------------------------------------------------------


def structure(rows):
    """Which candidates S³Delta keeps, by kind, site and layer: a cell is how likely its gate is open, its words are in
    how many seeds it is kept.

    rows: of the study `structured`, a panel for each task, or of `pl.structure`.
    """
    rows = rows if rows and "candidates" in rows[0] else [dict(task="", seed=0, candidates=rows)]
    table(rows[0]["candidates"], "layer", "site", "kind", "p", "kept", "numbers")
    tasks, said = grouped(rows, "task"), []
    figure = make_subplots(1, len(tasks), subplot_titles=[*tasks], shared_yaxes=True, horizontal_spacing=0.04)
    for k, (task, runs) in enumerate(tasks.items(), 1):
        every = [r["candidates"] for r in runs]
        lines = [f"{kind} {site}" for kind, site in grouped(every[0], "kind", "site")]
        layers = sorted({c["layer"] for c in every[0]})
        n, p, kept = len(every), *(np.array([[c[w] for c in one] for one in every], float) for w in ("p", "kept"))
        z, text = np.full((2, len(lines), len(layers)), None)
        for c, likely, often in zip(every[0], p.mean(0), kept.sum(0), strict=True):
            cell = lines.index(f"{c['kind']} {c['site']}"), layers.index(c["layer"])
            z[cell] = round(float(likely), 3)
            text[cell] = f"{often:.0f}" if n > 1 else "kept" * bool(often)
        tile = dict(z=z.tolist(), x=layers, text=text.tolist(), texttemplate="%{text}", xgap=1, ygap=1)
        hover = "%{y}, layer %{x}: open with p = %{z:.2f}<extra></extra>"
        figure.add_trace(go.Heatmap(**tile, hovertemplate=hover, coloraxis="coloraxis"), 1, k)
        said.append(_told_structure(task, every))
    styled(figure, 260 + 24 * len(lines) + 19 * len(said), title=told("<br>".join(said)))
    bar = dict(title="p: its gate is open", thickness=12)
    figure.update_layout(coloraxis=dict(colorscale="Blues", cmin=0, cmax=1, colorbar=bar))
    figure.update_xaxes(title="layer", showgrid=False, zeroline=False, tickvals=layers)
    return lines_of(figure, lines).update_layout(margin=dict(t=64 + 19 * len(said)))


def _told_structure(task, every):
    """What is kept of which kind, and whether seeds agree."""
    spent = {}
    for c in itertools.chain(*every):
        spent[c["kind"]] = spent.get(c["kind"], 0) + c["kept"] * c["numbers"] / len(every)
    total = sum(spent.values())
    shares = ", ".join(f"{kind} {n / total:.0%}" for kind, n in sorted(spent.items(), key=lambda kn: -kn[1]))
    name = f"{task}: " if task else ""
    return f"{name}{total:,.0f} numbers, of these {shares}"
