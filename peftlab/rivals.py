"""Claims X2, X9, X10, from Xu et al. (2312.12148), on our runs: is a method better than its parts, or its rivals?"""

import numpy as np
import plotly.graph_objects as go

from .additive_plots import lines_of, told
from .claims import FAILS, HOLDS, UNDECIDED, Finding
from .claims_plots import SIGNS
from .errors import PeftlabError, choose
from .findings import LEGEND, grouped, line, spread
from .mask_plots import table
from .pictures import COLOURS, GREY, styled


def made_of(method, others):
    """Those of the others that are parts of a method: of another category, and the class of one of its rows is theirs
    or comes from it."""
    from .methods import get
    from .recipes import recipe

    kind = lambda name: get(name).review.split("/")[0]
    classes = [get(row["method"]).cls for row in recipe(method)]
    singles = {o: get(o).cls for o in others if kind(o) != kind(method) and isinstance(get(o).cls, type)}
    return [o for o, cls in singles.items() if any(issubclass(c, cls) for c in classes)]


def ahead(results, methods=None, margin=0.0):
    """[{method, title, rival, against, effect, low, high, verdict, seeds}]: a method's score on test less its rival's.

    methods: None are all that are made of others of these runs, and the rival is the best of its parts. Else these,
    each against the best of all others, baselines apart. The rival is chosen on validation. effect: the mean of the
    differences seed by seed, with a 95 % interval by Student's t. The claim is effect > -margin: with a margin, to be
    no worse than that. PeftlabError: fewer than two shared seeds, an unknown method, or none that is made of others.
    """
    from .budgets import BASELINES, named

    frame = named(results)
    scores, sure = (frame.pivot_table(index="seed", columns="method", values=v) for v in ("score", "validation"))
    known = [m for m in dict.fromkeys(frame.method) if m not in BASELINES]
    titles, found = dict(zip(frame.method, frame.title, strict=True)), []
    if methods is None:
        pairs = {m: parts for m in known if (parts := made_of(m, known))}
    else:
        names = methods.split() if isinstance(methods, str) else methods
        pairs = {choose(m, known, "method of these runs"): [o for o in known if o != m] for m in names}
    if not pairs:
        raise PeftlabError("no method of these runs is made of others; name the methods that are to be compared")
    for method, rivals in pairs.items():
        rival = sure[rivals].mean().idxmax()
        gaps = (scores[method] - scores[rival]).dropna()
        if len(gaps) < 2:
            raise PeftlabError(f"{method} and {rival} share {len(gaps)} seeds; an interval needs two at least")
        effect, half = spread(gaps)
        judged = Finding(effect, effect - half, effect + half, "", "", null=-margin)
        who = dict(method=method, title=titles[method], rival=titles[rival], against=len(rivals), seeds=len(gaps))
        found.append(who | dict(effect=effect, low=judged.low, high=judged.high, verdict=judged.verdict))
    return sorted(found, key=lambda r: -r["effect"])


def leads(results, methods=None, margin=0.0):
    """What `ahead` finds: differences in points with their 95 % intervals, coloured by the verdict."""
    rows, figure = ahead(results, methods, margin), go.Figure()
    lines = [f"{r['title']} − {r['rival']}" for r in rows]
    for verdict, mine in grouped(rows, "verdict").items():
        (sign, colour), at = SIGNS[verdict], [rows.index(r) for r in mine]
        points, half = [100 * r["effect"] for r in mine], [100 * (r["high"] - r["effect"]) for r in mine]
        words = [f"{lines[i]}: {p:+.1f} ± {h:.1f} points" for i, p, h in zip(at, points, half, strict=True)]
        look = dict(mode="markers", marker=dict(size=11, color=colour), name=f"{sign} {verdict}", showlegend=True)
        error = dict(type="data", array=half, color=colour, thickness=2, width=7)
        figure.add_scatter(x=points, y=at, error_x=error, hovertext=words, hoverinfo="text", **look)
    for x in {0.0, -100 * margin}:
        figure.add_vline(x=x, line=dict(color=GREY, dash="dot" if x else "solid", width=1.5))
    least = f"above −{100 * margin:g}" if margin else "above 0"
    said = f"claimed is {least} points, on test, {rows[0]['seeds']} seeds paired<br>the rival is the best on validation"
    styled(figure, 190 + 34 * len(rows), title=told(said), xaxis_title="points", legend=LEGEND)
    return lines_of(figure, lines).update_layout(margin=dict(t=96))


def averaged_or_ensemble(rows, within=0.02):
    """Claim X10, "weight-averaged ≈ ensemble of the routes": [{method, effect, low, high, verdict}].

    It holds if the 95 % interval of averaged - ensemble over the seeds lies within ± `within`, does not hold if it lies
    outside of that, else it is undecided. rows: of the study `routing`.
    """
    found = []
    for method, mine in grouped(table(rows, "method", "seed", "routes", "averaged", "ensemble"), "method").items():
        effect, half = spread([r["averaged"] - r["ensemble"] for r in mine])
        low, high = (effect - half, effect + half) if half is not None else (-np.inf, np.inf)
        verdict = HOLDS if -within <= low and high <= within else FAILS if low > within or high < -within else UNDECIDED
        found.append(dict(method=method, effect=effect, low=low, high=high, verdict=verdict))
    return found


def per_bit(results, rows):
    """Score on test against the bits of a file, heads apart: methods of a league beside LoRAs of lower rank, and what
    each has more than the LoRA nearest to its bits, seed by seed.

    rows: of the study `few_bits`. Bars are 95 % intervals over seeds.
    """
    from .budgets import named

    ranks, figure, said = grouped(table(rows, "r", "seed", "score", "bits"), "r"), go.Figure(), []
    thin = [(mine[0]["bits"], {one["seed"]: one["score"] for one in mine}, r) for r, mine in ranks.items()]
    scores = np.transpose([[*by_seed.values()] for _, by_seed, _ in thin])
    line(figure, [bits for bits, *_ in thin], scores, f"LoRA, r = {', '.join(map(str, ranks))}", GREY)
    for i, (title, mine) in enumerate(named(results).groupby("title", sort=False)):
        bits = float(mine.stored_bits.iloc[0])
        line(figure, [bits], mine.score.to_numpy()[:, None], title, COLOURS[i % len(COLOURS)], marker_size=11)
        other, by_seed, r = min(thin, key=lambda one: abs(np.log(one[0] / bits)))
        mean, half = spread([s - by_seed[k] for k, s in zip(mine.seed, mine.score, strict=True) if k in by_seed])
        more = f"{100 * mean:+.1f}".replace("-", "−") + (f" ± {100 * half:.1f}" if half is not None else "")
        said.append(f"{title}, {bits:,.0f} bits: {more} points to LoRA of rank {r}, {other:,.0f} bits")
    styled(figure, 400 + 19 * len(said), title=told("<br>".join(said)), yaxis_title="score on test", legend=LEGEND)
    figure.update_layout(margin=dict(t=84 + 19 * len(said)))
    return figure.update_xaxes(type="log", dtick="D2", title="bits in the file, without the head (log scale)")
