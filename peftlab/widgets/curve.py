"""A live chart in the notebook: curves that grow point by point, and baselines as lines."""

import pathlib
import re

import anywidget
import traitlets as T

STATIC = pathlib.Path(__file__).parent / "static"


def lean(*names):
    """Files of `static` as one text without indentation and comments: every chart on a page sends the whole of it."""
    text = "\n".join((STATIC / name).read_text("utf-8") for name in names)
    lines = (re.sub(r"(^|\s+)// .*", "", line).strip() for line in text.splitlines())
    return "\n".join(filter(None, lines))


class Curve(anywidget.AnyWidget):
    """Curves of (step, value), one per run, and dashed `lines` to compare them with.

    `series` is a list of {name, points: [[x, y], …]}, where [x, mean, least, most] draws a band, `lines` is one of
    {name, value, low, high, note}.
    `add` sends single points; `keep` or `end` write them into `series`, so that a reload of the page shows them too.
    """

    _esm, _css = lean("curve.js"), lean("curve.css")
    title, xlabel = T.Unicode("").tag(sync=True), T.Unicode("step").tag(sync=True)
    empty = T.Unicode("press Run").tag(sync=True)  # written where no run is yet
    series, lines = T.List(T.Dict()).tag(sync=True), T.List(T.Dict()).tag(sync=True)
    xmax, height = T.Float(0).tag(sync=True), T.Int(240).tag(sync=True)

    def begin(self, name):
        """A new, empty curve; the next points belong to it."""
        self.series = [*self.series, dict(name=name, points=[])]
        self._fresh = []

    def add(self, points):
        """Points [[x, y], …] of the newest curve."""
        self._fresh += points
        self.send(dict(kind="add", pts=[[len(self.series) - 1, x, y] for x, y in points]))

    def keep(self):
        """Write what `add` has sent into `series`."""
        self.end(self._fresh)

    def end(self, points):
        """The newest curve is complete, and these are its points."""
        *before, last = self.series
        self.series, self._fresh = [*before, dict(last, points=list(points))], []


def band(name, runs):
    """One curve of several runs [(x, y), …]: their mean, in a band from the least to the most."""
    runs = [dict(run) for run in runs]
    points = []
    for x in runs[0]:
        if all(x in run for run in runs):
            values = [run[x] for run in runs]
            points.append([x, sum(values) / len(values), min(values), max(values)])
    return dict(name=name, points=points)
