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

    def begin(self, *names):
        """New, empty curves, after those that are there; to `add` they are 0, 1, …"""
        self._fresh = [[] for _ in names]
        self.series = [*self.series, *(dict(name=name, points=[]) for name in names)]

    def add(self, points, run=0):
        """Points [[x, y], …] of a curve that has begun."""
        self._fresh[run] += points
        at = len(self.series) - len(self._fresh) + run
        self.send(dict(kind="add", pts=[[at, x, y] for x, y in points]))

    def keep(self):
        """Write what `add` has sent into `series`."""
        begun = self.series[len(self.series) - len(self._fresh) :]
        self._write(dict(s, points=[*points]) for s, points in zip(begun, self._fresh, strict=True))

    def end(self, curves):
        """These {name, points} take the place of those that have begun."""
        self._write(curves)
        self._fresh = []

    def _write(self, curves):
        self.series = [*self.series[: len(self.series) - len(self._fresh)], *curves]


def band(name, runs):
    """One curve of several runs [(x, y), …]: their mean, in a band from the least to the most."""
    runs = [dict(run) for run in runs]
    points = []
    for x in runs[0]:
        if all(x in run for run in runs):
            values = [run[x] for run in runs]
            points.append([x, sum(values) / len(values), min(values), max(values)])
    return dict(name=name, points=points)
