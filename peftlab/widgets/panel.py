"""The panel: settings, Run and Stop, live curves, baselines, and what each run gave. One line in a lab."""

import functools
import json
import threading
from types import SimpleNamespace

import ipywidgets as W

from .. import labs, ledger, memory, plots
from ..attachment import attach, counts
from ..backbones import backbone as load
from ..errors import PeftlabError
from ..many import cores, outcomes
from ..runs import run
from ..specs import identify, like, spec
from ..tasks import task as find
from ..training import BUSY
from . import report
from .charts import Charts
from .controls import Controls
from .curve import Curve
from .entries import Changes
from .runner import Runner, retire

SEEDS, ALL = 5, "All sizes"
PROCESS = 3 * 2**28  # bytes that a process takes beside its run: Python, torch and transformers


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
            (ALL, "sizes", "", self.run_sizes),
            ("Baselines", "baselines", about, self.run_baselines),
            ("Clear", "clear", "forget the runs shown here", self.clear),
        ]
        same = self.controls.layout
        show = lambda pairs: self.charts.show(pairs)
        self.runner = Runner(self._job, lambda: [self.spec], show, key, more=more, layout=same)
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
        self.charts = Charts(loss=self.loss, validation=self.score)
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

    def run_sizes(self):
        """The settings with every size of the method, 1 2 4 8 …, as far as the backbone can have it: a curve each."""
        now, (name, _, values) = self.spec, self.controls.sizes()
        if not values:
            raise PeftlabError("this recipe has no size of its own to sweep over; take a method such as lora")
        self.runner.start([now | dict(recipe=self.controls.recipe(**{name: v})) for v in values])

    def clear(self):
        """Forget the runs shown here; the ledger keeps them."""
        if self.runner.busy:
            raise PeftlabError("a run is on; stop it first")
        self.results = []
        self.charts.clear()
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
        self._offer_sizes()
        if not self._counted() and not self.runner.busy:  # another panel trains, with random numbers that are not ours
            threading.Thread(target=self._count_later, daemon=True).start()
        self._tell()

    def _offer_sizes(self):
        _, label, values = self.controls.sizes()
        button = self.runner.buttons["sizes"]
        button.disabled, button.description = not values, "All ranks" if "rank" in label else ALL
        each = f"the same settings with {label} {', '.join(map(str, values))}: a curve each"
        button.tooltip = each if values else "this recipe has no size of its own"

    def _counted(self):
        """Count, unless another run has the random numbers; whether that could be."""
        if free := BUSY.acquire(blocking=False):
            try:
                self._count()
            finally:
                BUSY.release()
        return free

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

    # runs -----------------------------------------------------------------------------------------

    def _job(self, specs, feed):
        """Make the runs that are not known here: one as `run` does, several side by side where that can be."""
        before = len(self.charts)
        try:
            with BUSY:
                specs = self._possible(specs)
            if due := [one for one in specs if not self._known(one)]:
                self._make(due, feed)
            runs = [self._known(one) for one in specs]
            if len({one["seed"] for one in specs}) > 1 and all(runs):
                self.charts.band(f"{plots.name_of(specs[0])} · {len(specs)} seeds", runs, before)
        finally:
            self.due |= self.entries.toggle.value  # a run may have found the entries that it trains
            with BUSY:
                self._count()
            self.runner.busy = False
            self._tell()

    def _possible(self, specs):
        """Those that the backbone can have, when any: the largest of many ranks may be above its width."""
        fit, problem = [], None
        for one in specs:
            try:
                self._weigh(one)
                fit.append(one)
            except PeftlabError as e:
                problem = e
        if problem and not fit:
            raise problem
        return fit

    def _jobs(self, due):
        """How many of these may go on at once: on a CPU, as cores and memory allow; starting processes takes about as
        long as a run, so that two runs are not worth it."""
        most = max((self._weigh(one)[1] for one in due), key=lambda parts: parts["total"])
        memory.require(most, memory.place())
        new = sum(not ledger.find(identify(one)) for one in due)
        if new < 3 or labs.synchronous() or memory.place() != "cpu":
            return 1
        return max(1, min(new, cores(), memory.free() // (most["total"] + PROCESS)))

    def _make(self, due, feed):
        with BUSY:
            jobs = self._jobs(due)
        feed.expect([one["steps"] for one in due], jobs)
        seeds, before = len({one["seed"] for one in due}) > 1, len(self.results)
        name = lambda i, one: f"{before + i}: {plots.name_of(one)}" + (f" · seed {one['seed']}" if seeds else "")
        self.charts.begin([name(i, one) for i, one in enumerate(due, 1)], max(one["steps"] for one in due))
        self._tell()
        self.runner.message.value = f"starting {jobs} processes …" if jobs > 1 else report.first(due)

        def each(one, row):
            self._counted()
            return feed.each(row, due.index(one))

        alone, how = functools.partial(each, due[0]), dict(stop=lambda: feed.stopped)
        try:  # a single run that diverges is an error, in a sweep it has the score 0
            come = outcomes(due, jobs, each=each, **how) if due[1:] else [run(due[0], each=alone, **how)]
            for i, result in enumerate(come):
                self._take(i, result, feed)
        except BaseException:
            feed.flush()
            self.charts.keep()
            raise
        feed.flush()  # before the whole truth: rows that came after it would be drawn twice, until the page is reloaded
        self.charts.end({name(i, r.spec): r for i, r in enumerate(self.results[before:], 1)})

    def _take(self, i, result, feed):
        """The Result of run i: into the table, unless it never began."""
        self.runner.stop() if result.stopped else feed.done(i)  # an interrupted kernel is Stop, too
        if result.rows or not result.stopped:
            result.counts = result.counts or self._weigh(result.spec)[0]  # one that diverged has none
            self.results = [*self.results, result]
        self.charts.keep()
        self._tell()


def panel(method="lora", task="reviews", backbone="micro-encoder", **settings):
    """A panel that fine-tunes live: `panel("lora", task="reviews", r=4)`.

    Settings: the method's knobs, where, layers, steps, seed, lr; those of a spec that have no control here stay fixed.
    """
    return Panel(method, task, backbone, **settings)
