"""Where a method attaches, painted: a button per layer and site, and a bar per layer for what may differ there."""

import anywidget
import traitlets as T

from .curve import lean


class MaskGrid(anywidget.AnyWidget):
    """`mask[layer][site]` is 1 where a delta goes. Row and column headers toggle all of theirs."""

    _esm, _css = lean("follow.js", "grid.js"), lean("grid.css")
    layers, sites = T.List(T.Unicode()).tag(sync=True), T.List(T.Unicode()).tag(sync=True)
    mask = T.List(T.List(T.Int())).tag(sync=True)  # the whole matrix: one message per click
    label = T.Unicode("layers and sites where the method attaches").tag(sync=True)
    disabled = T.Bool(False).tag(sync=True)

    def shape(self, layers, sites, on=()):
        """Show `layers` x `sites`, with the sites named in `on` chosen in every layer."""
        row = [int(s in on) for s in sites]
        with self.hold_sync():  # one message, never a mask of another shape
            self.layers, self.sites = [str(layer) for layer in layers], list(sites)
            self.mask = [list(row) for _ in layers]

    def paint(self, where, layers=None):
        """Choose the sites of `where` ("q v") in `layers` (None: all), and nothing else."""
        words = where.split()
        self.mask = [
            [int(s in words and (layers is None or i in layers)) for s in self.sites] for i in range(len(self.layers))
        ]

    def rows(self):
        """The choice as pairs (where, layers), one per different set of sites; layers None means all."""
        found = {}
        for i, line in enumerate(self.mask):
            where = " ".join(s for s, on in zip(self.sites, line, strict=True) if on)
            if where:
                found.setdefault(where, []).append(i)
        return [(where, None if len(at) == len(self.mask) else at) for where, at in found.items()]


class LayerBars(anywidget.AnyWidget):
    """`values[layer]` is one of `options`: a rank, a bottleneck or a density of its own for every layer."""

    _esm, _css = lean("follow.js", "bars.js"), lean("bars.css")
    layers, options = T.List(T.Unicode()).tag(sync=True), T.List(T.Float()).tag(sync=True)
    values = T.List(T.Float()).tag(sync=True)
    label = T.Unicode("rank per layer").tag(sync=True)

    def shape(self, layers, options, value, label):
        """Show one bar per layer, all at `value`."""
        with self.hold_sync():
            self.layers, self.options, self.label = list(layers), list(options), label
            self.values = [value] * len(layers)
