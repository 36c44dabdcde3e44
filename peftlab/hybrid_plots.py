"""Where the parts of a hybrid sit, as blocks on a backbone. No torch is imported at the top."""

import itertools

import plotly.graph_objects as go

from . import pictures
from .additive_plots import told
from .errors import PeftlabError
from .findings import grouped, sliding
from .pictures import styled

HYBRIDS = ("adapter", "mam", "unipelt", "compacter", "s4", "autopeft")
HUES = dict(  # of a kind of part, with variants
    adapter=("#2f7ed8", "#7fb7f0", "#1b4f8a", "#17a2b8", "#5a6fc0", "#8fd0da"),
    prompt=("#e08a1e", "#f2bc79", "#b3261e", "#d9534f"),
    rank=("#2aa876", "#86d1b3", "#1b6f4f", "#7f8c2a"),
    bias=("#9467bd", "#c3a8dc", "#5f3f86", "#b05f8a"),
    other=("#7f8c2a", "#b05f8a", "#5f6b7a", "#b9c06a"),
)
FROZEN = "rgba(128,136,144,.18)"
PITCH, HIGH, THIN = 4.4, 0.8, 0.05  # of a layer, of a block, and the width of the least one; the greatest has 1


def blocks(names_or_recipes=None, backbone="micro-encoder"):
    """Where recipes sit in a backbone, its layers from below: a slider over the recipes, a colour for each method.

    Each recipe is a name, a row, or a list of rows. A block is as wide as it has trained numbers, in all recipes alike,
    but never too thin to be seen. It sits behind or beside a sublayer, in an attention (a prefix), before the text (a
    prompt), or on the layer whose output or weights it changes.
    """
    from .backbones import backbone as load
    from .backbones import n_layers, site_names

    given = HYBRIDS if names_or_recipes is None else names_or_recipes
    wanted = [given] if isinstance(given, str) else list(given)
    if not wanted:
        raise PeftlabError("there are no recipes to draw; give at least one, such as 'mam'")
    model = load(backbone)
    L, looks = n_layers(model), [_look(model, one) for one in wanted]
    used = {r["cell"] for look in looks for r in look["rows"]}
    cells, colours = _cells(site_names(model), used, _norm_last(model), L), _colours(looks)
    most = max((r["numbers"] for look in looks for r in look["rows"]), default=1) or 1
    parts = max(len(look["parts"]) for look in looks)
    drawn = [_traces(look, cells, colours, most, parts, L) for look in looks]
    figure = go.Figure(drawn[0])
    names = [look["name"] for look in looks]
    names = names if len(names) == len({*names}) else [f"{i}. {name}" for i, name in enumerate(names, 1)]
    figure.add_trace(_words(cells, L))
    shapes = [_box(*cell) for cell in _frozen(cells, L)]
    high, below = int(21 * (PITCH * L + 3.4)), dict(orientation="h", x=0, y=0, yanchor="top")
    fixed = below | dict(itemclick=False, itemdoubleclick=False)
    styled(figure, 64 + high + 40, title=told(looks[0]["title"]), shapes=shapes, legend=fixed)
    figure.update_xaxes(visible=False, range=[-1.1, cells["text"][2] + 0.05])
    figure.update_yaxes(visible=False, range=[-1.5, PITCH * L + 1.9])
    figure.update_layout(margin=dict(l=8, r=8, t=64, b=40))
    if len(looks) > 1:
        figure.frames = [
            go.Frame(name=n, data=traces, traces=[*range(parts + 1)], layout=dict(title=told(look["title"])))
            for n, traces, look in zip(names, drawn, looks, strict=True)
        ]
        sliding(figure, names, "", y=-44 / high).update_layout(updatemenus=[pictures._play()], height=64 + high + 140)
        figure.layout.sliders[0].update(x=0.14, len=0.79)
        figure.layout.updatemenus[0].update(y=-66 / high)
        figure.update_layout(margin=dict(b=140))
    return figure


# What sits where ----------------------------------------------------------------------------------


def _look(model, what):
    """A recipe in words and numbers; rows: [{method, layer, cell, numbers}], one for each place of a method."""
    from .attachment import attach, counts
    from .methods import get
    from .recipes import name_of, title_of

    undo = attach(model, what)
    try:
        found, seen = {}, set()
        for d, m in undo.placed:
            own = [p for p in d.own().values() if getattr(p, "requires_grad", False) and id(p) not in seen]
            seen |= {id(p) for p in own}  # what several share is the first one's
            layer = getattr(m, "block_index", getattr(m, "layer", None))
            place = undo.recipe[d.row]["method"], layer, _cell(d, m)
            found[place] = found.get(place, 0) + sum(p.numel() for p in own)
        rows = [dict(zip(("method", "layer", "cell"), k, strict=True), numbers=n) for k, n in found.items()]
        parts = {m: sum(r["numbers"] for r in mine) for m, mine in grouped(rows, "method").items()}
        kinds = {undo.recipe[d.row]["method"]: _kind(d) for d in undo.deltas}
        title = "<b>{}</b>: {delta:,} trained numbers, {percent:.1f} % of the backbone's".format(
            title_of(undo.recipe), **counts(model)
        )
        title += "<br>the width of a block is the number of its trained numbers; grey is frozen"
        about = dict(titles={m: get(m).title for m in parts}, kinds=kinds)
        return dict(name=name_of(undo.recipe), title=title, rows=rows, parts=parts) | about
    finally:
        undo()


def _cell(d, m):
    """Where a delta at a module is drawn."""
    from .delta import TokenDelta
    from .methods.adapters import Adapter, Parallel, Pfeiffer

    site = m.site if isinstance(getattr(m, "site", None), str) else "model"
    if site == "model":
        return "prompt" if isinstance(d, TokenDelta) else "model"
    if site == "block":
        return "behind down" if isinstance(d, Pfeiffer) and m.ends_in_norm else "block"
    return f"beside {site}" if isinstance(d, Parallel) else f"behind {site}" if isinstance(d, Adapter) else site


def _kind(d):
    from .delta import KeyValueDelta, TokenDelta
    from .methods.adapters import Adapter
    from .methods.partial import BitFit
    from .methods.parts import AddedBias
    from .methods.reparameterized import LoRA

    classes = dict(adapter=Adapter, prompt=(KeyValueDelta, TokenDelta), rank=LoRA, bias=(AddedBias, BitFit))
    return next((kind for kind, those in classes.items() if isinstance(d, those)), "other")


def _colours(looks):
    """{method: its colour}: a hue for each kind of part, with a shade for each method as long as there are any."""
    hues, found = {kind: itertools.cycle(row) for kind, row in HUES.items()}, {}
    for look in looks:
        for method, kind in look["kinds"].items():
            found[method] = found.get(method) or next(hues[kind])
    return found


def _norm_last(model):
    return next(m.ends_in_norm for m in model.modules() if hasattr(m, "ends_in_norm"))


# The plan -----------------------------------------------------------------------------------------


def _cells(sites, used, norm_last, L):
    """{cell: (x, y, width, height)}, in a layer from the left as a text goes; there y counts from its lower edge."""
    found, x = {}, 0.1
    for parts, norm in (("q attn o", "norm1"), ("up down", "norm2")):
        *_, last = parts = [*parts.split(), f"behind {parts.split()[-1]}"]
        for name in [*parts, norm] if norm_last else [norm, *parts]:
            if name == "q":
                found |= {s: (x, 0.95 + i, 1.5, 0.9) for i, s in enumerate("vkq")}
            elif name in sites or name in ("attn", last):
                found[name] = (x, 0.95, 1.1, 2.9)
            x = sum(found.get(name, (x - 0.15, 0, 0))[:3:2]) + 0.15
        begin, end = found[parts[0]][0], sum(found[last][:3:2])
        found[last.replace("behind", "beside")] = (begin, 0.05, end - begin, 0.8)
        x += 0.25
    if used - {*found, "prompt", "embed", "model"}:  # what has no place inside a layer is behind it
        found["block"], x = (x, 0.95, 1.1, 2.9), x + 1.35
    left, right = 0.1, x - 1.35
    below = dict(text=(0, -1.3, x - 0.15, 0.95), prompt=(left, -1.3, 1.1, 0.95), embed=(right, -1.3, 1.1, 0.95))
    return found | below | dict(model=(right, PITCH * L + 0.8, 1.1, 0.95))


def _frozen(cells, L):
    """(x, y, width, height) of all that is drawn grey."""
    right, hidden = cells["text"][2], ("behind", "beside", "block", "model")
    within = [box for name, box in cells.items() if name.split()[0] not in hidden]
    layers = [(x, y + PITCH * i, w, h) for i in range(L) for x, y, w, h in within if y > 0]
    strips = [(0, PITCH * i, right, PITCH - 0.3) for i in range(L)]
    return [cells["text"], *strips, *layers, (0, PITCH * L + 0.8, right, 0.95)]


def _box(x, y, w, h):
    return dict(type="rect", x0=x, x1=x + w, y0=y, y1=y + h, fillcolor=FROZEN, line_width=0, layer="below")


def _words(cells, L):
    """What the grey boxes are called."""
    middle = cells["text"][2] / 2
    place = lambda x, y, w, h: (x + 0.16, y + h / 2) if h < 1 else (x + w / 2, y + h - 0.42)
    named = {s: place(*cells[s]) for s in "q k v attn o up down norm1 norm2".split() if s in cells}
    said = [(x, y + PITCH * i, s) for s, (x, y) in named.items() for i in range(L)]
    said += [(-0.55, PITCH * (i + 0.5) - 0.15, f"layer {i}") for i in range(L)]
    said += [(middle, -0.83, "tokens of the text"), (middle, PITCH * L + 1.27, "task head, trained as well")]
    half = {f"beside {s}": name for s, name in (("o", "attention"), ("down", "feed-forward part"))}
    said += [(cells[c][0] + cells[c][2] / 2, PITCH * L + 0.22, name) for c, name in half.items() if c in cells]
    x, y, text = zip(*said, strict=True)
    look = dict(mode="text", textfont=dict(size=11, color="#808890"), hoverinfo="skip", showlegend=False)
    return go.Scatter(x=x, y=y, text=text, **look)


def _traces(look, cells, colours, most, parts, L):
    """A trace for each part, then one that tells of each block when the mouse is over it."""
    outlines, tips = {m: ([], []) for m in look["parts"]}, []
    for (cell, layer), rows in grouped(look["rows"], "cell", "layer").items():
        x, y, w, h = cells[cell] if cell in cells else cells["block"]
        y += PITCH * layer if layer is not None and y > 0 else 0
        high = min(HIGH, (h - 0.1) / len(rows) - 0.04)
        for i, r in enumerate(rows):
            wide = max(THIN, r["numbers"] / most)
            inset = 0.4 if cell in ("q", "k", "v") else (w - (wide if cell.startswith("beside") else 1)) / 2
            left, low = x + inset, y + h / 2 + (i - len(rows) / 2) * (high + 0.04) + 0.02
            _add(outlines[r["method"]], left, low, wide, high)
            if cell.startswith("beside"):  # it takes what enters and adds to what leaves
                for a, b in ((x, left), (left + wide, x + w)):
                    _add(outlines[r["method"]], a, low + high / 2, b - a, 0.06)
            at = cell if layer is None or cell == "embed" else f"layer {layer}, {cell}"
            said = f"{look['titles'][r['method']]}<br>{at}: {r['numbers']:,} numbers"
            tips.append((left + wide / 2, low + high / 2, said))
    found = []
    for method, (x, y) in outlines.items():
        said = f"{look['titles'][method]}: {look['parts'][method]:,}"
        fill = dict(fill="toself", fillcolor=colours[method], line=dict(width=0.5, color=colours[method]))
        found.append(go.Scatter(x=x, y=y, name=said, mode="lines", hoverinfo="skip", showlegend=True, **fill))
    found += [go.Scatter(x=[None], y=[None], mode="lines", showlegend=False)] * (parts - len(found))
    x, y, text = zip(*tips, strict=True) if tips else ([None],) * 3
    look = dict(mode="markers", marker=dict(size=16, opacity=0), hoverinfo="text", showlegend=False)
    return [*found, go.Scatter(x=x, y=y, text=text, **look)]


def _add(outline, x, y, w, h):
    for values, corners in zip(outline, ((x, x + w, x + w, x, x, None), (y, y, y + h, y + h, y, None)), strict=True):
        values.extend(corners)
