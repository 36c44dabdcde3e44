"""What the builder can build: methods in groups of layers, what each trains there, and a budget that holds."""

from itertools import groupby
from typing import NamedTuple

from ..attachment import attach, counts
from ..backbones import layer_of, n_layers
from ..errors import PeftlabError, choose
from ..grouping import PATTERNS, layers_of
from ..methods import METHODS, Hybrid, Knob, get
from ..recipes import recipe
from ..training import BUSY
from .controls import scale

SINGLE, ALL = "single layers", "all layers"
GROUPINGS = (SINGLE, *PATTERNS, ALL)


class State(NamedTuple):
    """What is ticked, {(group, method)} with groups from 0, the lowest, and {method: size}, None where it has none."""

    grouping: str
    ticks: frozenset
    sizes: dict

    def sized(self, **sizes):
        return self._replace(sizes=self.sizes | sizes)


class Plan:
    """Recipes of these methods in this model, within the budget.

    The size of a method is its first knob; an `alpha` moves along, so that the scale α/r stays as it is.
    """

    def __init__(self, model, methods, budget):
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise PeftlabError(f"budget must be a whole number from 1, not {budget!r}")
        self.methods = {m.name: m for m in map(get, methods)}
        if not self.methods or len(self.methods) < len(methods):
            raise PeftlabError(f"methods must be names, each once, such as ('adapter', 'lora'), not {methods!r}")
        self.model, self.layers, self.budget, self.prices = model, range(n_layers(model)), budget, {}
        first = {n: next(iter(m.knobs.items()), ("", None)) for n, m in self.methods.items()}
        self.knobs = {n: (key, knob) for n, (key, knob) in first.items() if isinstance(knob, Knob)}
        self.sizes = {n: self.knobs[n][1].default if n in self.knobs else None for n in first}
        self.labels = {n: self.knobs[n][1].label if n in self.knobs else "" for n in first}
        with BUSY:  # attaching draws random numbers, and a run that is under way has its own
            self.scales = {n: self.scale(n) for n in first}
        self.groups = {grouping: self.divide(grouping) for grouping in GROUPINGS}
        self.known = {grouping: self.starts(grouping) for grouping in GROUPINGS}

    # what it trains -------------------------------------------------------------------------------

    def scale(self, name):
        """The sizes to choose from: those of the knob's scale, and those half way, that fit into the model."""
        whole = self.price(name, self.sizes[name])
        if any(self.weigh(name, self.sizes[name], [i])[i] != whole[i] for i in self.layers):
            raise PeftlabError(f"what {name} trains in one layer depends on the others; take a method such as lora")
        if name not in self.knobs:
            return []
        knob, found = self.knobs[name][1], []
        between = {3 * v // 2 for v in scale(knob) if knob.log and knob.kind is int and 1 < v <= knob.high // 2}
        for value in sorted({*scale(knob), *between}):
            try:
                found += [value] * bool(self.price(name, value))
            except PeftlabError:  # wider than the layers
                break
        return found

    def settings(self, name, size):
        """What a recipe's row says of a size."""
        if name not in self.knobs:
            return {}
        (key, knob), alpha = self.knobs[name], self.methods[name].knobs.get("alpha")
        return {key: size} | (dict(alpha=alpha.kind(alpha.default * size / knob.default)) if alpha else {})

    def price(self, name, size):
        """How many numbers a method of this size trains in each layer."""
        if (name, size) not in self.prices:
            if not BUSY.acquire(blocking=False):
                raise PeftlabError(f"a run is on; what {name} of size {size} trains can be counted when it has ended")
            try:
                self.prices[name, size] = self.weigh(name, size)
            finally:
                BUSY.release()
        return self.prices[name, size]

    def weigh(self, name, size, layers=None):
        undo = attach(self.model, recipe(name, None, layers, **self.settings(name, size)))
        try:
            found, total = {}, counts(self.model)["delta"]
            for delta, m in undo.placed:
                own = {id(t): t.numel() for t in delta.own().values() if t.requires_grad}
                found.setdefault(layer_of(m) if hasattr(m, "site") else None, {}).update(own)
        finally:
            undo()
        numbers = [sum(found.get(i, {}).values()) for i in self.layers]
        if sum(numbers) != total or not total:
            raise PeftlabError(f"{name} trains nothing that belongs to one layer; take a method such as lora")
        return numbers

    def cells(self, state):
        """{(group, method): what it trains, or would if it were ticked}."""
        prices = {n: self.price(n, size) for n, size in state.sizes.items()}
        groups = enumerate(self.groups[state.grouping])
        return {(g, n): sum(each[i] for i in at) for g, (_, at, _) in groups for n, each in prices.items()}

    def total(self, state):
        cells = self.cells(state)
        return sum(cells[tick] for tick in state.ticks)

    # recipes --------------------------------------------------------------------------------------

    def divide(self, grouping):
        """(as a recipe names it, its layers, as the table names it) of each group, from the lowest."""
        if grouping == SINGLE:
            return [([i], [i], f"layer {i}") for i in self.layers]
        if grouping == ALL:
            return [(None, self.layers, "all layers")]
        names = [f"{grouping} {g}" for g in range(1, 1 + len(PATTERNS[grouping]))]
        return [(n, at := layers_of(self.model, n), f"group {n[-1]} ({said(at)})") for n in names]

    def rows(self, state):
        """The recipe, group by group, as S4 is written; single layers, or all of them, are one row of a method."""
        groups, found = self.groups[state.grouping], []
        for j, name in enumerate(self.methods):
            at = sorted(g for g, n in state.ticks if n == name)
            if at and (state.grouping == SINGLE or len(at) == len(groups)):
                spans = [(0, None if len(at) == len(groups) else at)]
            else:
                spans = [(g, groups[g][0]) for g in at]
            own = self.settings(name, state.sizes[name])
            found += [(g, j, span, recipe(name, None, span, **own)) for g, span in spans]
        mixed = any(span is None for *_, span, _ in found)
        found.sort(key=lambda f: f[1] if mixed else f[:2])  # in each layer the order is that of the columns
        return [row for *_, rows in found for row in rows] or recipe("head")

    def read(self, rows, grouping=ALL):
        """The State that makes these rows, in this grouping unless they name another; None if there is none."""
        sizes, ticks = dict(self.sizes), set()
        named = [row["layers"] for row in rows if row["layers"] is not None]
        if named:
            grouping = named[0].split()[0] if isinstance(named[0], str) else SINGLE
        for row in rows:
            name, layers = row["method"], row["layers"]
            sizes[name] = row["settings"].get(self.knobs[name][0]) if name in self.knobs else None
            at = [int(layers[-1]) - 1] if isinstance(layers, str) else layers
            ticks |= {(g, name) for g in (range(len(self.groups[grouping])) if at is None else at)}
        state = State(grouping, frozenset(ticks), sizes)
        return state if sizes.keys() == self.methods.keys() and self.rows(state) == rows else None

    def starts(self, grouping):
        """{name: State}: what one can begin with, known hybrids among it, each as small as the budget asks for."""
        found = dict(empty=State(grouping, frozenset(), self.sizes))
        found |= {m.name: self.read(m.parts(), grouping) for m in METHODS.values() if isinstance(m, Hybrid)}
        groups = range(len(self.groups[grouping]))
        everywhere = lambda n: State(grouping, frozenset((g, n) for g in groups), self.sizes)
        found |= {f"{n} everywhere": everywhere(n) for n in self.methods}
        fitting = {name: state and self.fitted(state) for name, state in found.items()}
        return {name: state for name, state in fitting.items() if state}

    def fitted(self, state):
        """The state, its largest sizes lowered until the budget holds, those of one knob together; None if in vain."""
        while self.total(state) > self.budget:
            low = {n for _, n in state.ticks if n in self.knobs and state.sizes[n] > self.scales[n][0]}
            room = {self.knobs[n][0]: state.sizes[n] for n in self.methods if n in low}
            if not room:
                return None
            most = max(reversed(room), key=room.get)
            fall = [n for n in low if self.knobs[n][0] == most]
            state = state.sized(**{n: max(v for v in self.scales[n] if v < state.sizes[n]) for n in fall})
        return state

    # moves: another State, or a PeftlabError where that would be too much ---------------------------

    def tick(self, state, group, name):
        """With that cell ticked, or no longer."""
        where = self.groups[state.grouping][group][2]
        return self.within(state._replace(ticks=state.ticks ^ {(group, name)}), name, f"{name} in {where}")

    def resize(self, state, name, size):
        """With another size of a method."""
        return self.within(state.sized(**{name: size}), name, f"{name} with {self.labels[name]} {size:g}")

    def within(self, state, name, what):
        smaller = [v for v in self.scales[name] if v < state.sizes[name]]
        fits = [v for v in smaller if self.total(state.sized(**{name: v})) <= self.budget]
        how = f"with {self.labels[name]} {fits[-1]:g} it fits" if fits else "untick or shrink something first"
        return self.held(state, what, how)

    def held(self, state, what, how):
        if (over := self.total(state) - self.budget) > 0:
            raise PeftlabError(f"{what} would go {over:,} numbers above the budget of {self.budget:,}; {how}")
        return state

    def regroup(self, state, grouping):
        """With other groups: a method stays ticked in those in all layers of which it was."""
        if choose(grouping, GROUPINGS, "grouping of layers") == state.grouping:
            return state
        old, new = self.groups[state.grouping], enumerate(self.groups[grouping])
        inside = {n: {i for g, name in state.ticks if name == n for i in old[g][1]} for n in self.methods}
        ticks = {(g, n) for g, (_, at, _) in new for n in inside if at and inside[n].issuperset(at)}
        return State(grouping, frozenset(ticks), state.sizes)

    def chosen(self, state, ticks=None, sizes=None):
        """With the ticks {method: numbers of groups} and the sizes {method: size}."""
        first = int(state.grouping != SINGLE)
        numbers = range(first, first + len(self.groups[state.grouping]))
        if ticks is not None and not isinstance(ticks, dict):
            raise PeftlabError(f"ticks are written like {{'lora': [1, 2]}}, not {ticks!r}")
        for name, at in (ticks or {}).items():
            choose(name, self.methods, "method here")
            if not isinstance(at, list | tuple | range | set) or any(g not in numbers for g in at):
                raise PeftlabError(
                    f"{name} has ticks at numbers from {first} to {numbers[-1]}, such as [{first}], not {at!r}"
                )
        if ticks is not None:
            state = state._replace(ticks=frozenset((g - first, n) for n, at in ticks.items() for g in at))
        for name, size in (sizes or {}).items():
            key, knob = self.knobs[choose(name, self.knobs, "method with a size")]
            state = state.sized(**{name: knob.checked(key, size)})
        less = self.fitted(state)
        fits = less and ", ".join(f"{n} {less.sizes[n]:g}" for n in self.knobs if any(n == m for _, m in less.ticks))
        return self.held(state, "this recipe", f"it fits with {fits}" if fits else "take fewer ticks")


def said(layers):
    """ "layers 1–3", in few words."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    words = ", ".join(f"{run[0]}–{run[-1]}" if run[1:] else str(run[0]) for run in runs)
    return f"layer{'s' * (len(layers) > 1)} {words}" if words else "no layer"
