"""Which entries change: a heat map from the model to a layer to a tensor, alone or compared with another mask."""

import html

import anywidget
import ipywidgets as W
import traitlets as T

from .. import masks, plots, runs
from ..errors import PeftlabError
from ..methods import get
from ..training import BUSY
from .curve import lean

NOTHING = dict(title="", rows=[], columns=[], values=[], opens="", notes="")


class Entries(anywidget.AnyWidget):
    """`show(model, mask, other)` draws; `path` is where the learner is: [], [layer] or [layer, tensor].

    Colours are the share of entries that change; with another mask, the share of either that is in both.
    """

    _esm, _css = lean("heat.js"), lean("heat.css")
    view, path = T.Dict(NOTHING).tag(sync=True), T.List(T.Unicode()).tag(sync=True)

    def __init__(self):
        super().__init__()
        self.mask, self.other, self.places, self.shapes = {}, None, {}, {}
        self.observe(self.draw, "path")

    def show(self, model, mask, other=None):
        """A mask of this model ({name: booleans}, as `masks.changes` gives it), and perhaps one to compare it with."""
        self.mask, self.other, self.places = mask, other, masks.places(model)
        self.shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n in self.places}
        self.draw()

    def draw(self, _=None):
        level = (self.model, self.layer, self.tensor)[len(self.path)]
        try:
            view = level(*self.path)
        except KeyError:  # another backbone has no such place
            self.path, view = [], self.model()
        self.view = NOTHING | view

    def inside(self, layer=None):
        """Names of the tensors, of one layer or of all."""
        return [n for n, (at, _) in self.places.items() if layer is None or title(at) == layer]

    def value(self, names):
        """One number for several tensors together; None where there is none."""
        import torch

        if not names:
            return None
        flat = lambda mask: torch.cat([mask.get(n, torch.zeros(self.shapes[n], dtype=bool)).flatten() for n in names])
        return masks.share(flat(self.mask), None if self.other is None else flat(self.other))

    def model(self):
        layers = list(dict.fromkeys(title(at) for at, _ in self.places.values()))
        sites = list(dict.fromkeys(site for _, site in self.places.values()))
        values = [
            [self.value([n for n in self.inside(layer) if self.places[n][1] == site]) for site in sites]
            for layer in layers
        ]
        said = self.said(self.inside())
        return dict(title=f"{said}; open a layer", rows=layers, columns=sites, values=values, opens="row")

    def layer(self, layer):
        names = self.inside(layer)
        if not names:
            raise KeyError(layer)
        rows = [self.called(n) for n in names]
        values = [[self.value([n])] for n in names]
        return dict(title=f"{layer}: {self.said(names)}; open a tensor", rows=rows, columns=["share"], values=values,
                    opens="row")  # fmt: skip

    def tensor(self, layer, called):
        import torch

        name = {self.called(n): n for n in self.inside(layer)}[called]
        of = lambda mask: mask.get(name, torch.zeros(self.shapes[name], dtype=bool))
        mask = of(self.mask) if self.other is None else of(self.mask) & of(self.other)
        values = masks.blocks(mask)
        size = " × ".join(map(str, self.shapes[name]))
        said = f"{layer}, {called} ({size}): {self.said([name])}; a square is a block of entries"
        return dict(title=said, rows=[""] * len(values), columns=[""] * len(values[0]), values=values)

    def called(self, name):
        return f"{self.places[name][1]} {name.rpartition('.')[2]}"

    def said(self, names):
        number = self.value(names)
        what = "of the entries change" if self.other is None else "of what either changes is changed by both"
        return f"{0 if number is None else number:.3%} {what}"


class Changes(W.VBox):
    """The heat map behind a button, and what to compare it with; `update` draws only while it is open.

    moved() is called when the learner opens it or compares with something else. A mask that is chosen by the data is
    looked for when the learner asks for it, as that takes a while.
    """

    ALONE, SEED = "nothing", "the same with another seed"

    def __init__(self, moved, layout):
        self.map, self.runs = None, {}  # made when it is first wanted: opening a panel should send little
        self.toggle = W.ToggleButton(description="which entries change", layout=layout, _dom_classes=("pl-entries",))
        self.against = None
        self.moved = moved
        super().__init__([self.toggle], layout=layout, _dom_classes=("pl-changes",))
        self.toggle.observe(self._fold, "value")

    def _fold(self, _):
        if not self.map:
            self._make()
        self.moved()

    def _make(self):
        layout = self.toggle.layout
        self.map = Entries()
        self.against = W.Dropdown(
            options=[self.ALONE, self.SEED, *self.runs], description="compare with", layout=layout,
            style=dict(description_width="initial"), _dom_classes=("pl-against",),
        )  # fmt: skip
        self.against.observe(lambda _: self.moved(), "value")
        self.look = W.Button(description="look for the entries", layout=layout, _dom_classes=("pl-look",))
        self.look.on_click(lambda _: self._look())
        self.asks = W.HTML(_dom_classes=("pl-hint",), layout=layout)

    def offer(self, results):
        """The runs that one can compare with, by number."""
        self.runs = {f"run {i}: {plots.name_of(r.spec)}": r.spec for i, r in enumerate(results, 1)}
        options = (self.ALONE, self.SEED, *self.runs)
        if self.against and self.against.options != options:
            now = self.against.value
            self.against.options = options
            self.against.value = now if now in options else self.ALONE

    def update(self, model, spec):
        """Draw what a spec changes in the model, if anybody looks."""
        if not self.toggle.value:
            self.children = [self.toggle]
            return
        chosen = {self.ALONE: None, self.SEED: spec | dict(seed=spec["seed"] + 1)} | self.runs
        shown = [one for one in (spec, chosen[self.against.value]) if one]
        found = [known(model, one) for one in shown]
        self.unknown = [one for one, mask in zip(shown, found, strict=True) if mask is None]
        if not self.unknown:
            self.map.show(model, *found)
            self.children = [self.toggle, self.against, self.map]
        else:
            method = self.unknown[0]["recipe"][0]["method"]
            self.asks.value = f"{get(method).title} chooses its entries by the data, before training."
            self.children = [self.toggle, self.against, self.asks, self.look]

    def _look(self):
        if not BUSY.acquire(blocking=False):  # waiting would freeze the page
            self.asks.value = "A run is on; look when it has ended."
            return
        self.asks.value, self.look.disabled = "looking …", True
        try:
            for one in self.unknown:
                runs.mask(one)
            self.moved()
        except PeftlabError as problem:
            self.asks.value = html.escape(str(problem))
        finally:
            BUSY.release()
            self.look.disabled = False


def known(model, spec):
    """The mask of a spec, when it needs no look at the data or has had it; None otherwise."""
    try:
        return masks.changes(model, spec["recipe"], spec["seed"])
    except masks.Blind:
        return runs.mask(spec) if runs.mask_file(spec).exists() else None


def title(layer):
    return "embed" if layer is None else f"layer {layer}"
