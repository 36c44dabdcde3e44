"""The panel: settings, Run and Stop, live curves, baselines, and what each run gave. One line in a lab."""

import json
import threading
from types import SimpleNamespace

import ipywidgets as W

from .. import labs, memory, plots
from ..attachment import attach, counts
from ..backbones import backbone as load
from ..errors import PeftlabError
from ..methods import get
from ..runs import run
from ..specs import like, spec
from ..tasks import task as find
from ..training import BUSY
from . import report
from .controls import Controls
from .curve import Curve, band
from .entries import Changes
from .runner import Runner, retire

SEEDS = 5


class Panel(W.VBox):
    """`spec` is what Run would run now (JSON-able), `results` are the runs so far, `run()` presses Run.

    Counting attaches to the panel's own copy of the backbone and undoes it; training uses another.
    """

    def __init__(self, method="lora", task="reviews", backbone="micro-encoder", **settings):
        own = ("size", "head", "accumulate", "pretrained", "every", "task_knobs")
        self.fixed = {k: settings.pop(k) for k in own if k in settings} | dict(backbone=backbone, task=task)
        self.results, self.due, self.batches, self.weighed = [], False, {}, {}
        retire(key := f"{task} on {backbone}")
        with BUSY:  # drawing a fresh head would disturb the random numbers of a run that is under way
            self.task = find(task, size=self.fixed.get("size"), **self.fixed.get("task_knobs") or {})
            self.model = load(backbone, head=self.task.kind, labels=len(self.task.labels or "x"))
        self.controls = Controls(self.model, self.changed)
        about = "train the head only, then everything, on the same data and steps"
        more = [
            (f"{SEEDS} seeds", "seeds", "the same settings with other seeds: a band", self.run_seeds),
            ("Baselines", "baselines", about, self.run_baselines),
            ("Clear", "clear", "forget the runs shown here", self.clear),
        ]
        same = self.controls.layout
        self.runner = Runner(self._job, lambda: [self.spec], self._show, key, more=more, layout=same)
        self.entries = Changes(self.changed, same)
        # what is said at first comes with the widgets that say it: each message less is a panel that opens sooner
        self.text = {n: SimpleNamespace(value="") for n in ("counts", "memory", "stale", "runs", "code")}
        self.score = SimpleNamespace(lines=[])
        self.controls.set(method=method, **settings)
        look = dict(layout=same, style=self.controls.note.style)
        self.text = {n: W.HTML(said.value, _dom_classes=(f"pl-{n}",), **look) for n, said in self.text.items()}
        chart = dict(layout=same, _dom_classes=("pl-chart",))
        self.loss = Curve(title="training loss", **chart)
        title = f"{self.task.metric}: curves on validation, dashed lines on test"
        self.score = Curve(title=title, lines=self.score.lines, **chart)
        super().__init__(self._layout(), layout=same, _dom_classes=("pl-panel",))

    def _layout(self):
        charts = self.controls.group(W.HBox, "row", self.loss, self.score)
        before, after = ("counts", "memory"), ("runs", "code")
        return [
            self.controls.view,
            *(self.text[name] for name in before),
            self.entries,
            self.runner.view,
            self.text["stale"],
            charts,
            *(self.text[name] for name in after),
        ]

    @property
    def spec(self):
        """What Run would run now, complete and JSON-able. Raises PeftlabError when the settings do not make a run."""
        return spec(self.controls.recipe(), **self.controls.run(), **self.fixed)

    @property
    def result(self):
        """The newest run, or None."""
        return self.results[-1] if self.results else None

    def set(self, **values):
        """Move controls: `panel.set(method="lora", r=4, where="q v", layers=[0, 1], steps=100, seed=1, lr=1e-3)`."""
        self.controls.set(**values)

    def run(self):
        """Press Run. Where runs are synchronous (headless, Colab) the Result comes back, elsewhere None at once."""
        wanted = self.spec
        self.runner.start([wanted])
        return None if self.runner.busy else self._known(wanted)

    def run_baselines(self):
        """Head only and full fine-tuning with the panel's data, steps and seed; they become the dashed lines."""
        self.runner.start([like(self.spec, "head"), like(self.spec, "full")])

    def run_seeds(self):
        """The settings with seeds 0 to 4; the curves become one, with a band."""
        now = self.spec
        self.runner.start([now | dict(seed=seed) for seed in range(SEEDS)])

    def clear(self):
        """Forget the runs shown here; the ledger keeps them."""
        if self.runner.busy:
            raise PeftlabError("a run is on; stop it first")
        self.results, self.loss.series, self.score.series = [], [], []
        self.runner.message.value = "ready"  # the last run's words belonged to what is gone
        self._tell()

    def _repr_mimebundle_(self, **kwargs):
        """Headless nobody can move a slider, so the page gets the settings as they stand."""
        if not labs.headless():
            return super()._repr_mimebundle_(**kwargs)
        said = [self.controls.note, *(self.text[n] for n in ("counts", "memory", "runs", "code"))]
        body = "".join(f"<div>{part.value}</div>" for part in said)
        name = plots.name_of(self.spec)
        hint = f"<b>{name}</b>: a panel, which is live in a notebook"
        return {"text/plain": f"panel: {name}", "text/html": f'<div class="pl-panel">{hint}{body}</div>'}

    # what follows the sliders ---------------------------------------------------------------------

    def changed(self):
        """A control moved: count anew and say whether the picture still belongs to the settings."""
        self.due = True
        if BUSY.acquire(blocking=False):
            try:
                self._count()
            finally:
                BUSY.release()
        elif not self.runner.busy:  # another panel trains; its random numbers are not ours to draw
            threading.Thread(target=self._count_later, daemon=True).start()
        self._tell()

    def _count_later(self):
        with BUSY:
            self._count()

    def _count(self):
        """Weigh what the controls say. While this panel trains, its own job does this between two steps."""
        if not self.due:
            return
        self.due = False
        try:
            numbers, parts = self._weigh(self.spec)
            self.text["counts"].value = report.counted(numbers)
            self.text["memory"].value = report.needed(parts, memory.place())
            self.entries.update(self.model, self.spec)
        except PeftlabError as e:
            self.text["counts"].value, self.text["memory"].value = report.error(e), ""

    def _weigh(self, spec):
        """(counts, footprint of a step) of a spec: attach, count, predict, undo."""
        key = json.dumps([spec["recipe"], spec["batch"], spec["precision"]])
        if key not in self.weighed:
            size, share = spec["batch"], spec["accumulate"]
            if size not in self.batches:
                self.batches[size] = memory.first_batch(self.task, self.model, size, share)
            undo = attach(self.model, spec["recipe"], seed=spec["seed"])
            try:
                parts = memory.predict(self.model, self.batches[size], spec["precision"])
                self.weighed[key] = counts(self.model), parts
            finally:
                undo()
        return self.weighed[key]

    def _known(self, wanted):
        return next((r for r in self.results if r.spec == wanted and not r.stopped), None)

    def _tell(self):
        """The mark for stale pictures, baselines, table and code line, as settings and results stand now."""
        try:
            now = self.spec
        except PeftlabError:  # told beside the counts
            now = None
        known = now and self._known(now)
        stale = bool(self.results and now) and not known and not self.runner.busy
        self.text["stale"].value = report.STALE if stale else ""
        lines = report.baselines(now, self.task) if now else self.score.lines
        if lines != self.score.lines:
            self.score.lines = lines
        self.entries.offer(self.results)
        self.text["runs"].value = report.table(self.results, known, lines, self.task.metric)
        self.text["code"].value = report.code(now) if now else ""

    # one run --------------------------------------------------------------------------------------

    def _job(self, specs, feed):
        try:
            before = len(self.loss.series)
            for one in specs:
                if not self._known(one) and not feed.stopped:
                    with BUSY:
                        memory.require(self._weigh(one)[1], memory.place())
                    self._run(one, feed)
                feed.next(one["steps"])
            if len({one["seed"] for one in specs}) > 1 and not feed.stopped:
                self._band(specs, before)
        finally:
            self.due |= self.entries.toggle.value  # a run may have found the entries that it trains
            with BUSY:
                self._count()
            self.runner.busy = False
            self._tell()

    def _band(self, specs, before):
        """The curves after the first `before` are of these specs, which differ in their seed only: draw one of all."""
        done, name = [self._known(one) for one in specs], f"{plots.name_of(specs[0])} · {len(specs)} seeds"
        for key, chart in dict(loss=self.loss, validation=self.score).items():
            runs = [[(r["step"], r[key]) for r in one.rows if r.get(key) is not None] for one in done]
            chart.series = [*chart.series[:before], band(name, runs)]

    def _run(self, wanted, feed):
        charts = dict(loss=self.loss, validation=self.score)
        for chart in charts.values():
            chart.xmax = float(wanted["steps"])
            chart.begin(f"{len(self.results) + 1}: {plots.name_of(wanted)}")
        self._tell()
        if any(hasattr(get(row["method"]).cls, "begin") for row in wanted["recipe"]):
            self.runner.message.value = "looking at the data before training …"
        if any(row["settings"].get("sources") for row in wanted["recipe"]):
            self.runner.message.value = "training on the sources first, where they are not kept …"

        def each(row):
            self._count()
            return feed.each(row)

        try:
            result = run(wanted, each=each, stop=lambda: feed.stopped)
        except BaseException:
            feed.flush()
            for chart in charts.values():
                chart.keep()
            raise
        feed.flush()  # before the whole truth: rows that came after it would be drawn twice, until the page is reloaded
        self.results = [*self.results, result]
        for key, chart in charts.items():  # the whole truth: a known result sent no rows
            chart.end([[r["step"], r[key]] for r in result.rows if r.get(key) is not None])

    def _show(self, rows):
        self.loss.add([[r["step"], r["loss"]] for r in rows])
        if seen := [[r["step"], r["validation"]] for r in rows if r.get("validation") is not None]:
            self.score.add(seen)


def panel(method="lora", task="reviews", backbone="micro-encoder", **settings):
    """A panel that fine-tunes live: `panel("lora", task="reviews", r=4)`.

    Settings: the method's knobs, where, layers, steps, seed, lr; those of a spec that have no control here stay fixed.
    """
    return Panel(method, task, backbone, **settings)
