"""The builder: a hybrid put together by ticks and sliders, and trained, within a budget that nothing exceeds."""

from html import escape
from types import SimpleNamespace

import anywidget
import ipywidgets as W
import traitlets as T

from .. import plots
from ..errors import PeftlabError, choose
from ..methods import get
from ..pictures import COLOURS
from ..recipes import name_of
from ..specs import SPEC_KEYS, spec
from . import report
from .curve import lean
from .panel import Panel
from .planning import ALL, GROUPINGS, SINGLE, Plan, State

FOUR, OWN = ("adapter", "prefix", "added-bias", "lora"), "your own"


class Blocks(anywidget.AnyWidget):
    """`ticks` are pairs [group, method], `sizes` {method: size}: a page moves them, and Python says what they become.

    methods: {name, title, colour, knob, scale}. prices[group][method]: what a cell trains, or would.
    """

    _esm, _css = lean("follow.js", "blocks.js"), lean("grid.css", "blocks.css")
    methods, groups = T.List(T.Dict()).tag(sync=True), T.List(T.Unicode()).tag(sync=True)
    ticks, sizes = T.List(T.List()).tag(sync=True), T.Dict().tag(sync=True)
    prices, budget = T.List(T.Dict()).tag(sync=True), T.Int().tag(sync=True)
    refused = T.Unicode().tag(sync=True)  # why the last move was taken back


class Table:
    """A panel's controls with `Blocks` in place of a method, its knobs and its grid. `state` is what counts."""

    def __init__(self, usual, plan, changed):
        self.usual, self.plan, self.changed, self.quiet = usual, plan, changed, False
        self.layout, self.group, self.run, self.steps = usual.layout, usual.group, usual.run, usual.steps
        self.colours = {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(plan.methods)}
        named = lambda n: dict(layout=self.layout, style=usual.method.style, _dom_classes=(f"pl-{n}",))
        self.start = W.Dropdown(options=[*plan.known[ALL], OWN], description="start from", **named("start"))
        self.grouping = W.Dropdown(options=GROUPINGS, description="groups of layers", **named("grouping"))
        self.blocks = Blocks(budget=plan.budget, layout=self.layout)
        self.start.observe(self.begin, "value")
        self.grouping.observe(self.regroup, "value")
        self.blocks.observe(self.moved, ["ticks", "sizes"])
        left = usual.view.children[0]
        left.children = left.children[2:]  # without the method and its knobs
        above = self.group(W.HBox, "row", self.start, self.grouping)
        self.view = self.group(W.HBox, "row", self.group(W.VBox, "build", above, self.blocks), left)
        self.adopt(State(SINGLE, frozenset(), plan.sizes))

    def recipe(self):
        return self.plan.rows(self.state)

    def sizes(self):
        """A recipe of several methods has no size of its own."""
        return "", "", []

    @property
    def note(self):
        """What a page without widgets shows."""
        return SimpleNamespace(value=self.picture(self.state))

    def adopt(self, state, refused=""):
        """Show a state that is within the budget."""
        plan, self.state, self.quiet = self.plan, state, True
        for n in plan.knobs:  # `set` may have a size that the slider does not list
            plan.scales[n] = sorted({*plan.scales[n], state.sizes[n]})
        cells, groups, known = plan.cells(state), plan.groups[state.grouping], plan.known[state.grouping].items()
        same = (name for name, s in known if (s.grouping, s.ticks) == (state.grouping, state.ticks))
        self.start.value, self.grouping.value = next(same, OWN), state.grouping
        look = lambda n: dict(title=plan.methods[n].title, colour=self.colours[n], knob=plan.labels[n])
        with self.blocks.hold_sync():
            self.blocks.methods = [dict(name=n, scale=plan.scales[n], **look(n)) for n in plan.methods]
            self.blocks.groups = [label for *_, label in groups]
            self.blocks.prices = [{n: cells[g, n] for n in plan.methods} for g in range(len(groups))]
            # in the order of the page: what it knows already is not sent back, where it could overtake a click
            there = [(g, n) for g, n in self.blocks.ticks]
            kept = [t for t in there if t in state.ticks]
            self.blocks.ticks = [list(t) for t in (*kept, *sorted(state.ticks.difference(there)))]
            self.blocks.sizes, self.blocks.refused = state.sizes, refused
        self.quiet = False
        self.changed()

    def moved(self, _):
        """The page has moved ticks or sizes, perhaps several: each that is above the budget is taken back."""
        if self.quiet:
            return
        state, refused, there = self.state, "", [(g, n) for g, n in self.blocks.ticks]
        moves = [(self.plan.tick, t) for t in (*state.ticks, *there) if t in state.ticks.symmetric_difference(there)]
        moves += [(self.plan.resize, (n, s)) for n, s in self.blocks.sizes.items() if s != state.sizes[n]]
        for act, what in moves:
            try:
                state = act(state, *what)
            except PeftlabError as e:
                refused = str(e)
        self.adopt(state, refused)

    def regroup(self, _):
        if not self.quiet:
            self.adopt(self.plan.regroup(self.state, self.grouping.value))

    def begin(self, _):
        if not self.quiet:
            self.set(None if self.start.value == OWN else self.start.value)

    def set(self, start=None, grouping=None, ticks=None, sizes=None, **values):
        """Move several at once: `set(grouping="spindle", ticks={"adapter": [1, 2], "lora": [1]}, r=4, steps=100)`.

        ticks: numbers of groups, or of single layers. r=4 is the size of all methods whose knob it is, sizes={"lora":
        4} of one. What is wrong, or above the budget, is refused in one sentence before anything moves.
        """
        plan, state = self.plan, self.state
        run = {n: values.pop(n) for n in [*values] if n in self.usual.settings}
        for key in values:
            choose(key, {*self.usual.settings, *(key for key, _ in plan.knobs.values())}, "setting of the builder")
        if start is not None:
            known = plan.known[state.grouping]
            state = known[choose(start, known, "recipe to start from within the budget")]
            run = (dict(lr=get(start.removesuffix(" everywhere")).lr) if start != "empty" else {}) | run
        state = plan.regroup(state, state.grouping if grouping is None else grouping)
        sizes = {n: values[key] for n, (key, _) in plan.knobs.items() if key in values} | (sizes or {})
        state = plan.chosen(state, ticks, sizes)
        spec("head", **run)  # refuses what makes no run
        if run:
            self.usual.set(**run)
        self.adopt(state)

    def picture(self, state, small=False):
        """The blocks as HTML, the lowest layers below; small: single layers without words, for the list of runs."""
        plan = self.plan
        state = plan.regroup(state, SINGLE) if small else state
        cells, lines, high = plan.cells(state), [], max(2, min(5, 24 // len(plan.layers)))
        look = f"padding:0;width:12px;height:{high}px" if small else "padding:2px 8px;text-align:right"
        for g, (*_, label) in enumerate(plan.groups[state.grouping]):
            line = "" if small else f"<th>{label}</th>"
            for n, colour in self.colours.items():
                on = (g, n) in state.ticks
                back = (colour if small else f"{colour}66") if on else "rgba(128,136,144,.15)"
                line += f'<td style="{look};background:{back}">{f"{cells[g, n]:,}" if on and not small else ""}</td>'
            lines.insert(0, f"<tr>{line}</tr>")
        if small:
            return f'<table class="pl-sketch" style="border-spacing:1px">{"".join(lines)}</table>'
        sizes = {n: f"{plan.labels[n]} {state.sizes[n]:g}" if n in plan.knobs else "" for n in self.colours}
        head = "".join(f"<th>{n}<br><small>{size}</small></th>" for n, size in sizes.items())
        total = f"<caption>{plan.total(state):,} of {plan.budget:,} numbers</caption>"
        return f"<table>{total}<tr><th></th>{head}</tr>{''.join(lines)}</table>"


class Builder(Panel):
    """A panel whose recipe is ticked: `spec`, `results`, `run()` and the rest are a panel's, `set` is that of `Table`.

    `builder.set(grouping="spindle", ticks={"adapter": [1, 2], "lora": [1]}, r=4)`
    """

    def __init__(self, methods, task, backbone, budget, start, **settings):
        run = {n: settings.pop(n) for n in [*settings] if n in SPEC_KEYS}
        super().__init__("lora", task, backbone, **run)
        self.controls = Table(self.controls, Plan(self.model, methods, budget), self.changed)
        self.children = self._layout()
        self.set(start=start, **settings, **{n: run[n] for n in run if n == "lr"})

    def _layout(self):
        return [part for part in super()._layout() if part is not self.entries]

    def _tell(self):
        super()._tell()
        if self.results:
            below = report.seeds(self.results, self.task.metric)
            below += report.table([], None, self.score.lines, self.task.metric)
            try:
                self.text["runs"].value = self._table(self.spec) + below
            except PeftlabError:  # told beside the counts
                self.text["runs"].value = self._table() + below

    def _table(self, now=None):
        """One row per run, with its picture; that of the settings `now` is marked."""
        heads = "run", "", "recipe", "trained", f"{self.task.metric} on test", "rate", "steps", "seed", "time"
        lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
        for i, r in enumerate(self.results, 1):
            rows, plan, ran = r.spec["recipe"], self.controls.plan, r.spec
            state, name = plan.read(rows), plots.name_of(ran)
            name = f"{name_of(rows)}: {name}" if name_of(rows) in plan.known[ALL] else name
            score = report.score(r)
            said = f"{r.counts['delta']:,}", score, f"{ran['lr']:g}", ran["steps"], ran["seed"], f"{r.seconds:.1f} s"
            drawn = self.controls.picture(state, small=True) if state else ""
            cells = f"{i}", drawn, *(escape(f"{word}") for word in (name, *said))
            mark = ' class="pl-current"' if ran == now and not r.stopped else ""
            lines.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table>{''.join(lines)}</table>"


def builder(methods=FOUR, task="entail", backbone="micro-encoder", budget=16_384, start="empty", **settings):
    """Put a hybrid together: `builder(start="s4", steps=200)`; rows are groups of layers, columns are `methods`.

    budget: the most numbers that it may train, without the head. start: "empty", a hybrid of these methods, or "lora
    everywhere". Settings: those of `Builder.set`; those of a spec that have no control here stay fixed.
    """
    return Builder(methods, task, backbone, budget, start, **settings)
