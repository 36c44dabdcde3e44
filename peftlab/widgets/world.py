"""The micro-world to look at: rows of any task under its knobs, and what a pretrained model fills into a blank."""

import html
import re

import ipywidgets as W

from .. import blanks, labs
from ..backbones import backbone as load
from ..errors import PeftlabError, choose
from ..training import BUSY
from ..world import embedded, scenes, xx
from ..world import lexicon as lex
from ..world.grammar import Clause, Meaning, Sentence
from ..world.kinds import KINDS
from ..world.reading import Leaf, interlinear, style, table
from ..world.scenes import Act, Link, Prop, Thing
from .controls import STYLE, move, slider
from .report import error

ROWS, ALL = 5, "all"
LANGUAGES = {"English": "en", "second language": "xx"}
SPLITS = {"training": "train", "test": "test"}
BAD = Clause("restaurant", lex.aspects("restaurant")[0], lex.adjectives(lex.NEGATIVE)[0], lex.NEGATIVE, "plain",
             dict(article="the", verb="was"))  # fmt: skip
ANNA, BEN, THEY = Thing("Anna", ""), Thing("Ben", ""), (Thing("she", ""), Thing("he", ""))
BLANKS = {  # what an example shows: (a meaning, the lexeme in it that is left out)
    "polarity": (Meaning("restaurant", lex.NEGATIVE, (Sentence(BAD),), "we", "asked for the money back", joined=True),
                 BAD.claim.word),
    "synonym": (Link(Prop(BEN, "repaired", Thing("violin")), "namely", Prop(THEY[1], "mended", Thing("instrument"))),
                "mended"),
    "class": (Link(Prop(ANNA, "bought", Thing("rose")), "namely", Prop(THEY[0], "acquired", Thing("flower"))),
              "flower"),
    "cause": (Link(Act(ANNA, "walked in the rain"), "so", Act(THEY[0], "needed a towel")), "needed a towel"),
}  # fmt: skip


def example(name, lang="en"):
    """A sentence of BLANKS with its blank, in a language; an ending stays behind the blank."""
    meaning, lexeme = BLANKS[name]
    word = xx.word(lexeme) if lang == "xx" else lexeme.split()[-1]
    before, after = scenes.say(meaning, lang).rsplit(word, 1)
    return f"{before}___{after}"


class Explorer(W.VBox):
    """`rows` are the five rows shown, `filled` is what the model fills in; `set(kind="entail", noise=0.2)` moves it."""

    def __init__(self, kind="reviews", domain=ALL, lang="en", backbone="micro-encoder", **knobs):
        self.quiet, self.page, self.rows, self.filled = True, 0, [], None
        with BUSY:  # loading draws random numbers, and a run that is under way has its own
            self.model = load(backbone, head="lm")
        choices = dict(
            kind=("task", list(KINDS)), domain=("domain", [ALL, *lex.DOMAINS]),
            lang=("language", list(LANGUAGES.items())), split=("rows of", list(SPLITS.items())),
        )  # fmt: skip
        wide = W.Layout(width="auto")
        self.choice = {
            name: W.Dropdown(options=options, description=label, style=STYLE, layout=wide, _dom_classes=(f"pl-{name}",))
            for name, (label, options) in choices.items()
        }
        self.knobs = {n: self._knob(knob) for n, knob in embedded.KNOBS.items() if n != "target_label"}
        self.text = {n: W.HTML(_dom_classes=(f"pl-{n}",)) for n in ("about", "rows", "active", "filled", "call")}
        self.another = self._button("another", "another", "other rows of the same task", self.turn)
        self.sentence = W.Text(  # every letter is sent: what the kernel has not seen yet, its next message wipes out
            layout=W.Layout(width="auto"), _dom_classes=("pl-sentence",), placeholder="a sentence with ___",
        )  # fmt: skip
        for widget in (*self.choice.values(), *self.knobs.values()):
            widget.observe(self.moved, "value")
        self.sentence.observe(self.fill, "value")
        super().__init__(self._layout(), layout=W.Layout(width="100%", max_width="1100px"), _dom_classes=("pl-world",))
        self.set(kind=kind, domain=domain, lang=lang, **knobs)

    def _knob(self, knob):
        if knob.low is None:
            return W.Text(
                knob.default or "", description=knob.name, continuous_update=False, style=STYLE,
                layout=W.Layout(width="auto"), _dom_classes=(f"pl-{knob.name}",),
            )  # fmt: skip
        made = slider(knob.name, [v / 10 for v in range(11) if knob.low <= v / 10 <= knob.high], knob.low, knob.name)
        made.continuous_update = False  # rows are made when the slider rests
        return made

    def _button(self, text, name, tooltip, act):
        made = W.Button(
            description=text, tooltip=tooltip, layout=W.Layout(width="auto"), _dom_classes=(f"pl-{name}",)
        )
        made.on_click(lambda _: act())
        return made

    def _layout(self):
        half = W.Layout(flex="1 1 320px", max_width="480px")
        left = W.VBox([*self.choice.values()], layout=half)
        right = W.VBox([*self.knobs.values()], layout=half)
        shown = [
            self._button(name, f"example-{name}", f"a blank for {name}", lambda name=name: self.offer(name))
            for name in BLANKS
        ]
        line = W.Layout(flex_flow="row wrap", align_items="center")
        return [
            W.HTML(style()),
            W.HBox([left, right], layout=W.Layout(flex_flow="row wrap")),
            W.HBox([self.another, self.text["about"]], layout=line),
            self.text["active"],
            self.text["rows"],
            self.text["call"],
            W.HTML("<b>What does the model fill in?</b>"),
            self.sentence,
            W.HBox([W.HTML("examples:"), *shown], layout=line),
            self.text["filled"],
        ]

    # what is shown --------------------------------------------------------------------------------

    def set(self, **values):
        """Move controls: `explorer.set(kind="entail", domain="garden", lang="xx", noise=0.2)`. What does not exist is
        refused in one sentence before anything moves."""
        for name, value in values.items():
            choose(name, [*self.choice, *self.knobs], "setting of the explorer")
            if name in self.knobs:
                embedded.KNOBS[name].check(value)
            else:
                choose(value, offered(self.choice[name]), self.choice[name].description)
        if "kind" in values:
            values = dict(unseen=KINDS[values["kind"]].unseen) | values
        self.quiet = True
        for name, value in values.items():
            if name in self.knobs and embedded.KNOBS[name].low is not None:
                move(self.knobs[name], value)
            else:
                (self.knobs | self.choice)[name].value = value
        self.quiet = False
        self.page = 0 if values.keys() & self.choice.keys() else self.page
        self.show()
        if "lang" in values:
            self.offer()

    def moved(self, change):
        """A control was moved by hand."""
        if not self.quiet:
            self.set(**{n: w.value for n, w in (self.knobs | self.choice).items() if w is change["owner"]})

    def turn(self):
        """The next five rows."""
        self.page += 1
        self.show()

    def call(self):
        """(name, lang, knobs) of the task as the controls stand; knobs at their default are left out."""
        kind, domain, lang = (self.choice[n].value for n in ("kind", "domain", "lang"))
        default = {n: k.default for n, k in embedded.KNOBS.items()} | dict(unseen=KINDS[kind].unseen)
        knobs = {n: w.value for n, w in self.knobs.items() if w.value != default[n]}
        if not knobs.get("poison"):
            knobs.pop("trigger", None)  # nothing is planted
        return kind if domain == ALL else f"{kind}/{domain}", lang, knobs

    def show(self):
        """The rows, as the controls stand; what cannot be is told in one sentence."""
        name, lang, knobs = self.call()
        kind = KINDS[self.choice["kind"].value]
        self.text["about"].value = f"&nbsp; {html.escape(kind.about)}"
        self.text["active"].value = "".join(
            f'<div class="pl-hint"><b>{n} {v}</b>: {html.escape(embedded.KNOBS[n].about)}</div>'
            for n, v in knobs.items()
        )
        try:
            rows, clean = (self._drawn(name, lang, knobs | off) for off in ({}, dict(noise=0.0, poison=0.0)))
        except PeftlabError as e:
            self.rows, self.text["rows"].value, self.text["call"].value = [], error(e), ""
            return
        first = ROWS * (self.page % max(len(rows) // ROWS, 1))
        self.rows = rows[first : first + ROWS]
        planted = self.knobs["trigger"].value if "poison" in knobs else ""
        self.text["rows"].value = listed(kind, self.rows, clean[first : first + ROWS], planted)
        said = "".join(f", {n}={v!r}" for n, v in (dict(lang=lang) | knobs).items())
        split = self.choice["split"].value
        line = html.escape(f"pl.task({name!r}{said}).data[{split!r}].to_pandas()[{first}:{first + ROWS}]")
        about = "the same rows without the explorer"
        self.text["call"].value = f"<details><summary>{about}</summary><pre>{line}</pre></details>"

    def _drawn(self, name, lang, knobs):
        return embedded.splits(name, lang, **knobs)[1][self.choice["split"].value]

    def offer(self, name="polarity"):
        """Put an example into the box, and fill it."""
        self.sentence.value = example(name, self.choice["lang"].value)

    def fill(self, _=None):
        """What the model fills into the blanks of the sentence in the box."""
        try:
            self.filled = blanks.fill(self.model, self.sentence.value)
            self.text["filled"].value = self.filled.body
        except PeftlabError as e:
            self.filled, self.text["filled"].value = None, error(e)

    def _repr_mimebundle_(self, **kwargs):
        """Headless nobody can click, so the page gets the table and the bars themselves."""
        if not labs.headless():
            return super()._repr_mimebundle_(**kwargs)
        body = "".join(self.text[n].value for n in ("about", "active", "rows", "filled"))
        still = Leaf(body, "\n".join([*map(str, self.rows), repr(self.filled)]))
        return {"text/plain": repr(still), "text/html": still._repr_html_()}


def offered(dropdown):
    """The values that a Dropdown can have."""
    return [option[1] if isinstance(option, tuple) else option for option in dropdown.options]


def listed(kind, rows, clean, trigger=""):
    """Rows as a table. An answer that noise or poison has changed shows the right one struck out; a trigger is marked.

    clean: the same rows without noise and poison.
    """
    parts = [part for part in ("text", "text2") if any(part in row for row in rows)]
    there = any("label" in row or "target" in row for row in rows)
    head = ["text", "second text"][: len(parts)] + ["answer"] * there
    cells = [[marked(row[part], trigger) for part in parts] for row in rows]
    if there:
        cells = [[*c, answered(kind, row, was)] for c, row, was in zip(cells, rows, clean, strict=True)]
    return table(head, cells)


def marked(text, word):
    said = interlinear(text)
    return re.sub(rf"\b{re.escape(word)}\b", r"<mark>\g<0></mark>", said) if word else said


def answered(kind, row, was):
    """The name of a class, a number or a text; before it, struck out, what it was without noise and poison."""
    now, before = (answer(kind, r) for r in (row, was))
    return now if now == before else f"<del>{before}</del> {now}"


def answer(kind, row):
    if "target" in row:
        return interlinear(row["target"])
    return html.escape(str(kind.labels[row["label"]] if kind.labels else row["label"]))


def explore(kind="reviews", domain=ALL, lang="en", backbone="micro-encoder", **knobs):
    """Look at the micro-world: rows of a task kind in a domain and a language, under its knobs, and below them what a
    pretrained encoder fills into a blank. `explore("entail", "garden", lang="xx", noise=0.2)`.
    """
    return Explorer(kind, domain, lang, backbone, **knobs)
