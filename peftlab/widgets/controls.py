"""The settings of a panel, built from the registry: sliders for knobs, a grid for places; their state is a recipe."""

import math

import ipywidgets as W

from ..backbones import n_layers, site_names
from ..methods import METHODS, get
from ..recipes import recipe
from .grid import MaskGrid

STYLE = dict(description_width="104px")
STEPS = (10, 20, 50, 100, 200, 400, 800, 1600)
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


def slider(label, values, value, name, like=None):
    """A slider over listed values, with a stable css class. It shares the look of `like`: a look is a message too."""
    look = dict(layout=like.layout, style=like.style) if like else dict(layout=W.Layout(width="auto"), style=STYLE)
    options = [(f"{v:g}", v) for v in values]
    return W.SelectionSlider(options=options, value=value, description=label, _dom_classes=(f"pl-{name}",), **look)


def move(widget, value):
    """Set a slider, also to a value that its scale does not list."""
    values = [v for _, v in widget.options]
    if value not in values:
        widget.options = [(f"{v:g}", v) for v in sorted([*values, value])]
    widget.value = value


class Controls:
    """Widgets for one recipe row and its run: `recipe()` and `run()` read them, `set(r=4, where="q")` moves them."""

    def __init__(self, model, changed):
        self.model, self.changed, self.quiet, self.knobs = model, changed, False, {}
        self.grid, self.note = MaskGrid(), W.HTML()
        self.box = W.VBox(layout=self.note.layout)
        self.lr = slider("learning rate", RATES, RATES[0], "lr")
        self.steps = slider("steps", STEPS, 200, "steps", like=self.lr)
        options = [(m.title, n) for n, m in METHODS.items()]
        self.method = W.Dropdown(
            options=options,
            value="lora",
            description="method",
            style=STYLE,
            layout=self.lr.layout,
            _dom_classes=("pl-method",),
        )
        self.seed = W.BoundedIntText(
            0,
            0,
            2**31 - 1,
            description="seed",
            style=self.method.style,
            layout=W.Layout(width="200px"),
            _dom_classes=("pl-seed",),
        )
        self.method.observe(self.rebuild, "value")
        for widget, trait in ((self.lr, "value"), (self.steps, "value"), (self.seed, "value"), (self.grid, "mask")):
            widget.observe(self.touched, trait)
        left = W.VBox(
            [self.method, self.box, self.lr, self.steps, self.seed],
            layout=W.Layout(flex="1 1 320px", max_width="480px"),
        )
        right = W.VBox([self.note, self.grid], layout=W.Layout(flex="0 1 auto", margin="0 0 0 16px"))
        self.view = W.HBox([left, right], layout=W.Layout(flex_flow="row wrap"))

    def touched(self, _=None):
        if not self.quiet:
            self.changed()

    def rebuild(self, _=None):
        """Another method: its own knobs, sites and learning rate."""
        was, self.quiet = self.quiet, True
        method = METHODS[self.method.value]
        self.knobs = {n: slider(k.label, scale(k), k.default, n, like=self.lr) for n, k in method.knobs.items()}
        for widget in self.knobs.values():
            widget.observe(self.touched, "value")
        self.box.children = tuple(self.knobs.values())
        move(self.lr, method.lr)
        self.placed = bool(set(method.where.split()) - {"model"})
        self.grid.layout.display = None if self.placed else "none"
        self.note.value = f"<code>{_escape(method.equation)}</code>" + _places(method, self.placed)
        here = [s for s in site_names(self.model) if s in method.sites]
        self.grid.shape([f"layer {i}" for i in range(n_layers(self.model))], here, on=method.where.split())
        self.quiet = was
        self.touched()

    def recipe(self):
        """Rows as the controls stand. Raises PeftlabError when no cell of the grid is chosen."""
        name, settings = self.method.value, {n: w.value for n, w in self.knobs.items()}
        if not self.placed:
            return recipe(name, **settings)
        rows = [dict(method=name, where=w, layers=at, settings=settings) for w, at in self.grid.rows()]
        return recipe(rows or dict(method=name, where="", settings=settings))

    def run(self):
        return dict(lr=self.lr.value, steps=self.steps.value, seed=self.seed.value)

    def set(self, method=None, where=None, layers=None, **values):
        """Move several controls at once; unknown names and values are refused in one sentence before anything moves."""
        name = get(method or self.method.value).name
        own = {n: v for n, v in values.items() if n not in ("lr", "steps", "seed")}
        (row,) = recipe(name, where, layers, **own)
        self.quiet = True
        if method and self.method.value != name:
            self.method.value = name  # its observer builds the knobs
        elif method:
            self.rebuild()
        for n in own:
            move(self.knobs[n], row["settings"][n])
        for n in values.keys() - own:
            move(getattr(self, n), values[n]) if n != "seed" else setattr(self.seed, "value", values[n])
        if (where is not None or layers is not None) and self.placed:
            self.grid.paint(row["where"], row["layers"])
        self.quiet = False
        self.touched()


def _escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _places(method, placed):
    if placed:
        return '<div class="pl-hint">attached where a cell is filled; click cells or headers</div>'
    what = "attached to the whole model" if method.where else "nothing is attached"
    return f'<div class="pl-hint">{what}: no cells to choose</div>'
