"""The settings of a panel, built from the registry: sliders for knobs, a grid for places; their state is a recipe."""

import math

import ipywidgets as W

from ..backbones import n_layers, site_names
from ..errors import PeftlabError, choose
from ..methods import METHODS, Choice, Hybrid, Knob, get
from ..recipes import recipe
from ..training import PRECISIONS
from .grid import LayerBars, MaskGrid

STYLE = dict(description_width="112px")
STEPS = (10, 20, 50, 100, 200, 400, 800, 1600)
BATCHES = (4, 8, 16, 32, 64, 128, 256)
RATES = tuple(m * 10.0**e for e in (-5, -4, -3, -2) for m in (1, 2, 3, 5)) + (0.1,)


def scale(knob):
    """The values of a knob's slider, 1 2 4 8 … or 1 2 5 10 … on a log scale: exact, so that equal runs hash equally."""
    low, high = knob.low, knob.high
    if not knob.log:
        step = 1 if knob.kind is int else (high - low) / 20
        values = {knob.kind(round(low + i * step, 10)) for i in range(int(round((high - low) / step)) + 1)}
    elif knob.kind is int:
        values = {2**e for e in range(32) if low <= 2**e <= high}
    else:
        low = low or high * 1e-4
        values = {float(f"{m}e{e}") for e in range(math.floor(math.log10(low)), 7) for m in (1, 2, 5)}
        values = {v for v in values if low <= v <= high}
    return sorted(values | {knob.default})


def pick(knob, name, layout, style):
    """The widget for a knob: a slider for a number, a list to choose from for a word, a line for several."""
    if knob.kind is not str:
        return slider(knob.label, scale(knob), knob.default, name, layout, style)
    look = dict(description=knob.label, layout=layout, style=style, _dom_classes=(f"pl-{name}",))
    if isinstance(knob, Choice):
        return W.Dropdown(options=knob.options, value=knob.default, **look)
    look |= dict(style=STYLE)  # a slider's style is not a text's
    return W.Text(knob.default, placeholder=f"none; for example: {knob.example}", continuous_update=False, **look)


def slider(label, values, value, name, layout=None, style=STYLE):
    """A slider over listed values, with a stable css class."""
    look = dict(layout=layout or W.Layout(width="auto"), style=style)
    options = [(f"{v:g}", v) for v in values]
    return W.SelectionSlider(options=options, value=value, description=label, _dom_classes=(f"pl-{name}",), **look)


def move(widget, value):
    """Set a control, a slider also to a value that its scale does not list."""
    if isinstance(widget, W.SelectionSlider):
        offer(widget, value)
    widget.value = value


def offer(widget, value):
    values = [v for _, v in widget.options]
    if value not in values:
        widget.options = [(f"{v:g}", v) for v in sorted([*values, value])]


class Controls:
    """Widgets for a recipe and its run: `recipe()` and `run()` read them, `set(r=4, where="q")` moves them.

    The first knob of a method that sits in the layers may have another value in each: `set(r=[8, 4, 2, 1])`.
    """

    def __init__(self, model, changed):
        self.model, self.changed, self.quiet, self.knobs, self.varied = model, changed, False, {}, None
        self.names = [f"layer {i}" for i in range(n_layers(model))]
        # every layout and style is a message, so that they are few; what differs, the css knows by the class
        self.layout, self.bars = W.Layout(width="auto"), None
        self.note, self.grid = W.HTML(layout=self.layout), MaskGrid(layout=self.layout)
        self.lr = slider("learning rate", RATES, RATES[0], "lr", self.layout)
        self.steps = slider("steps", STEPS, 200, "steps", self.layout, self.lr.style)
        self.batch = slider("batch", BATCHES, 32, "batch", self.layout, self.lr.style)
        named = lambda name, style: dict(
            description=name, layout=self.layout, style=style, _dom_classes=(f"pl-{name}",)
        )
        titles = [(m.title, n) for n, m in METHODS.items()]
        self.method = W.Dropdown(options=titles, value="lora", **named("method", STYLE))
        self.seed = W.BoundedIntText(0, 0, 2**31 - 1, **named("seed", self.method.style))
        self.precision = W.Dropdown(options=list(PRECISIONS), **named("precision", self.method.style))
        self.each = W.Checkbox(False, indent=False, layout=self.layout, _dom_classes=("pl-each",))
        self.settings = {n: getattr(self, n) for n in ("lr", "steps", "batch", "seed", "precision")}
        self.method.observe(self.rebuild, "value")
        self.each.observe(self.level, "value")
        for widget, trait in [(w, "value") for w in (*self.settings.values(), self.each)] + [(self.grid, "mask")]:
            widget.observe(self.touched, trait)
        self.box = self.group(W.VBox, "knobs")
        last = self.group(W.HBox, "row", self.seed, self.precision)
        left = self.group(W.VBox, "left", self.method, self.box, self.lr, self.steps, self.batch, last)
        self.right = self.group(W.VBox, "right", self.note, self.grid)
        self.view = self.group(W.HBox, "row", left, self.right)

    def group(self, box, name, *widgets):
        """A box whose look the css knows by its class."""
        return box(widgets, layout=self.layout, _dom_classes=(f"pl-{name}",))

    def touched(self, _=None):
        if not self.quiet:
            self.changed()

    def rebuild(self, _=None):
        """Another method: its own knobs, sites and learning rate."""
        was, self.quiet = self.quiet, True
        method = METHODS[self.method.value]
        look = (self.layout, self.lr.style)
        self.knobs = {n: pick(k, n, *look) for n, k in method.knobs.items()}
        for widget in self.knobs.values():
            widget.observe(self.touched, "value")
        self.box.children = tuple(self.knobs.values())
        move(self.lr, method.lr)
        self.placed = bool(set(method.where.split()) - {"model"})
        self.varied = next(iter(method.knobs), None) if self.placed else None
        if self.varied:
            self.knobs[self.varied].observe(self.level, "value")
            self.each.description = f"{method.knobs[self.varied].label} per layer"
        self.each.value = False
        self.level()
        self.note.value = f"<code>{_escape(method.equation)}</code>" + _places(method, self.placed)
        here = [s for s in site_names(self.model) if s in method.sites]
        self.grid.shape(self.names, here, on=method.where.split())
        self.quiet = was
        self.touched()

    def level(self, _=None):
        """Show what this method can have: a grid, and on demand bars as high as the slider of their knob."""
        if self.varied and self.each.value:
            if not self.bars:  # made when it is first wanted: opening a panel should send little
                self.bars = LayerBars()
                self.bars.observe(self.touched, "values")
            knob = self.knobs[self.varied]
            self.bars.shape(self.names, [v for _, v in knob.options], knob.value, self.each.description)
        shown = [self.note, *[self.grid] * self.placed, *[self.each] * bool(self.varied)]
        self.right.children = (*shown, *[self.bars] * bool(self.varied and self.each.value))

    def recipe(self, **other):
        """Rows as the controls stand but for other values of knobs. PeftlabError when no cell of the grid is chosen."""
        name, settings = self.method.value, {n: w.value for n, w in self.knobs.items()} | other
        if not self.placed:
            return recipe(name, **settings)
        rows = [
            dict(method=name, where=where, layers=layers, settings=settings | own)
            for where, at in self.grid.rows()
            for own, layers in (self.levels(at) if self.varied not in other else [({}, at)])
        ]
        return recipe(rows or dict(method=name, where="", settings=settings))

    def sizes(self):
        """(name, label, values 1 2 4 8 …) of the knob that is the method's size: its first, if that counts something.

        Without one there are no values.
        """
        name, knob = next(iter(METHODS[self.method.value].knobs.items()), ("", None))
        if not isinstance(knob, Knob) or knob.kind is not int:
            return "", "", []
        return name, knob.label, [2**e for e in range(32) if knob.low <= 2**e <= knob.high]

    def levels(self, at):
        """Pairs (own settings, layers) of these layers (None: all), one for each value of the bars."""
        if not (self.varied and self.each.value):
            return [({}, at)]
        kind, found = METHODS[self.method.value].knobs[self.varied].kind, {}
        for i in range(len(self.names)) if at is None else at:
            found.setdefault(kind(self.bars.values[i]), []).append(i)
        return [({self.varied: v}, None if at is None and len(found) == 1 else i) for v, i in found.items()]

    def run(self):
        """What of a spec is not the recipe."""
        return {name: widget.value for name, widget in self.settings.items()}

    def set(self, method=None, where=None, layers=None, **values):
        """Move several controls at once; unknown names and values are refused in one sentence before anything moves."""
        name = get(method or self.method.value).name
        if layers is not None and isinstance(get(name), Hybrid):
            raise PeftlabError(f"{name} has no cells here; for some layers take pl.run(pl.spec({name!r}, layers=…))")
        own = {n: v for n, v in values.items() if n not in self.settings}
        each = {n: self._one_each(name, n, v) for n, v in own.items() if isinstance(v, list | tuple)}
        row, *_ = recipe(name, where, layers, **own | {n: v[0] for n, v in each.items()})
        if "precision" in values:
            choose(values["precision"], PRECISIONS, "precision")
        self.quiet = True
        if method and self.method.value != name:
            self.method.value = name  # its observer builds the knobs
        elif method:
            self.rebuild()
        for n in own:
            move(self.knobs[n], get(name).knobs[n].checked(n, each.get(n, [own[n]])[0]))
        if self.varied in own:
            self.each.value = bool(each)
        for bars in each.values():
            self.bars.options, self.bars.values = sorted({*self.bars.options, *bars}), bars
        for n in values.keys() - own:
            move(self.settings[n], values[n])
        if (where is not None or layers is not None) and self.placed:
            self.grid.paint(row["where"], row["layers"])
        self.quiet = False
        self.touched()

    def _one_each(self, method, knob, values):
        """The values for the layers, when they are what this method can have."""
        wanted, knobs = len(self.names), METHODS[method].knobs
        choose(knob, list(knobs)[:1] if METHODS[method].where != "model" else (), f"setting of {method} per layer")
        if len(values) != wanted:
            raise PeftlabError(f"{knob} per layer needs {wanted} values, one for each layer, not {len(values)}")
        return [knobs[knob].checked(knob, v) for v in values]


def _escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _places(method, placed):
    if placed:
        return '<div class="pl-hint">attached where a cell is filled; click cells or headers</div>'
    alone = "attached to the whole model" if method.where else "nothing is attached"
    what = "a recipe, whose rows say where it sits" if isinstance(method, Hybrid) else alone
    return f'<div class="pl-hint">{what}: no cells to choose</div>'
