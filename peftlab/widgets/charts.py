"""A panel's two charts, of the loss and of the score on validation, as one."""

from .curve import band


class Charts:
    """`begin`, `show` and `keep` follow runs that are on, `end` draws what came of them; `band` is one curve of many.

    charts: key of a row -> its Curve.
    """

    def __init__(self, **charts):
        self.charts = charts

    def __len__(self):
        """How many curves each has."""
        return min(len(chart.series) for chart in self.charts.values())

    def begin(self, names, steps):
        """A curve for each run; the longest has so many steps."""
        for chart in self.charts.values():
            chart.xmax = float(steps)
            chart.begin(*names)

    def show(self, pairs):
        """New rows, each after the number of its run."""
        for run in dict.fromkeys(run for run, _ in pairs):
            rows = [row for at, row in pairs if at == run]
            for key, chart in self.charts.items():
                if found := points(rows, key):
                    chart.add(found, run)

    def keep(self):
        """A reload of the page should show what has been shown."""
        for chart in self.charts.values():
            chart.keep()

    def end(self, results):
        """{name: Result}: the whole truth, as a known one sent no rows."""
        for key, chart in self.charts.items():
            chart.end([dict(name=name, points=points(r.rows, key)) for name, r in results.items()])

    def band(self, name, results, before):
        """One curve of these in place of all after the first `before`."""
        for key, chart in self.charts.items():
            one, kept = band(name, [points(r.rows, key) for r in results]), chart.series[:before]
            chart.series = kept if one in kept else [*kept, one]

    def clear(self):
        for chart in self.charts.values():
            chart.series = []


def points(rows, key):
    return [[row["step"], row[key]] for row in rows if row.get(key) is not None]
