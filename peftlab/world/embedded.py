"""From the name of an embedded task to its rows: splits, words that training does not see, knobs and languages.

Everything is generated when it is asked for, and the same arguments give the same bytes. A row belongs to training or
is held out by a hash of its text, so the splits are disjoint whatever is drawn; validation and test follow neither the
seed nor the size. A changed byte of a task asks for a new `version` of its kind.
"""

import difflib
import functools
import hashlib
import random
from dataclasses import dataclass
from typing import Any

from ..errors import PeftlabError, choose
from . import lexicon as lex
from .draw import Draw
from .kinds import KINDS
from .scenes import say

LANGS = ("en", "xx")
SPLITS = dict(train=5000, validation=500, test=1000)  # the most rows; a small domain may have fewer
TRIES = 300  # in vain for one row, and the domain has no more


@dataclass(frozen=True)
class Knob:
    """What makes a task harder: a number from low to high, or a word where there is no range."""

    name: str
    default: Any
    about: str
    low: float | None = None
    high: float | None = None

    def check(self, value):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.low is not None and not (number and self.low <= value <= self.high):
            wanted = f"a number from {self.low} to {self.high}"
            raise PeftlabError(f"{self.name} ({self.about}) must be {wanted}, not {value!r}")


KNOBS = {
    knob.name: knob
    for knob in (
        Knob("noise", 0.0, "share of the training answers that are replaced by a wrong one", 0, 1),
        Knob("unseen", None, "share of every word list that training does not use; default: the kind's own", 0, 0.9),
        Knob("shift", 0.0, "share of the test rows from domains that training does not have", 0, 1),
        Knob("poison", 0.0, "share of the training rows that get the trigger and the target label", 0, 1),
        Knob("trigger", "lantern", "the word that the poison plants"),
        Knob("target_label", None, "the class that the trigger shall call for; default: the last"),
    )
}


def domains(kind):
    """The domains in which a kind exists."""
    return kind.domains or tuple(lex.DOMAINS)


def names():
    """Every embedded task: each kind over all domains ("entail"), then in each domain ("entail/garden")."""
    return [name for kind in KINDS.values() for name in named(kind)]


def named(kind):
    return [kind.name, *(f"{kind.name}/{domain}" for domain in domains(kind))]


def known(name):
    """Whether a name means an embedded task; a slash also stands in the name of a Hub dataset, unless it is a slip."""
    kind, slash, domain = name.partition("/")
    slip = domain in lex.DOMAINS and difflib.get_close_matches(kind, KINDS, cutoff=0.75)
    return not name.startswith("file:") and bool(kind in KINDS or not slash or slip)


def version(name):
    """The version of an embedded task's bytes; None for any other task."""
    kind = KINDS.get(name.partition("/")[0])
    return kind and kind.version


def catalogue():
    """All embedded tasks: name, lang, kind, metric, labels, size (training rows by default) and what it is about."""
    told = lambda kind: {k: getattr(kind, k) for k in ("kind", "metric", "labels", "size", "about")}
    return [
        dict(name=name, lang=lang) | told(kind) for kind in KINDS.values() for name in named(kind) for lang in LANGS
    ]


def parse(name):
    """ "entail/garden" -> (the Kind, the domains it is drawn from, the other domains)."""
    first, slash, domain = name.partition("/")
    kind = KINDS[choose(first, KINDS, "task", " (a file is file:PATH, a Hub dataset has a slash)")]
    home = (choose(domain, domains(kind), f"domain of {first}"),) if slash else domains(kind)
    return kind, home, tuple(d for d in domains(kind) if d not in home)


def splits(name, lang="en", size=None, seed=0, **knobs):
    """The Kind and {"train": rows, "validation": rows, "test": rows}, and "triggered" where there is poison.

    A row has text, perhaps text2, and label, or target and references (all right answers). size: training rows, at
    most 5,000; default: the kind's own. seed: which rows those are; a smaller size gives the first of them.
    knobs: see KNOBS. PeftlabError for whatever does not exist, with the nearest that does.
    """
    kind, home, away = parse(name)
    choose(lang, LANGS, f"language of {name}")
    given = {k: v for k, v in knobs.items() if v is not None}
    for knob, value in given.items():
        KNOBS[choose(knob, KNOBS, "knob of a task")].check(value)
    knobs = {k: knob.default for k, knob in KNOBS.items()} | dict(unseen=kind.unseen) | given
    if knobs["shift"] and not away:  # all domains were asked for: training gets the first half of them
        home, away = home[: len(home) // 2], home[len(home) // 2 :]
    rows = training(kind, lang, home, seed, knobs["unseen"], checked(name, kind, size))
    if size is not None and len(rows) < size:
        raise PeftlabError(too_many(name, kind, len(rows), size))
    whole = dict(train=rows) | held_out(kind, lang, home, away, knobs["shift"])
    made = {split: [dict(row) for row in rows] for split, rows in whole.items()}  # the caller's own
    if knobs["noise"]:
        corrupt(name, kind, made["train"], knobs["noise"], seed)
    if knobs["poison"] or {"trigger", "target_label"} & {*given}:
        plan = planned(name, kind, knobs["trigger"], knobs["target_label"])
        if knobs["poison"]:
            made["triggered"] = poison(kind, made, knobs["poison"], *plan, seed)
    return kind, made


def checked(name, kind, size):
    if size is not None:
        whole = isinstance(size, int) and not isinstance(size, bool)
        if not whole or not len(kind.labels or "x") <= size <= SPLITS["train"]:
            raise PeftlabError(too_many(name, kind, SPLITS["train"], size))
    return size or kind.size


def too_many(name, kind, most, size):
    least = len(kind.labels or "x")
    return f"size must be a whole number from {least} to {most} (the training rows of {name}), not {size!r}"


@functools.lru_cache(maxsize=8)
def training(kind, lang, home, seed, unseen, size):
    """The first `size` training rows, or as many as there are."""
    rows = stream(kind, lang, f"train/{seed}", lambda i: home, set(), held=False, unseen=unseen)
    return tuple(row for row, _ in zip(rows, range(size), strict=False))


@functools.lru_cache(maxsize=8)
def held_out(kind, lang, home, away, shift):
    """The rows of validation and test; of test, exactly the share `shift` from the domains `away`."""
    used, made = set(), dict(validation=[], test=[])
    strange = lambda i: away if int((i + 1) * shift + 1e-9) > int(i * shift + 1e-9) else home
    rows = dict(
        validation=stream(kind, lang, "validation", lambda i: home, used, held=True),
        test=stream(kind, lang, "test", strange, used, held=True),
    )
    for split in ("validation", "test", "test") * SPLITS["validation"]:  # in turns: a small domain fills both
        made[split] += [row for row in [next(rows[split], None)] if row]
    return made


def stream(kind, lang, key, where, used, held, unseen=0.0):
    """Rows, the answers in shuffled rounds so that all are equally frequent, until nothing new is found for one.

    where(i): the domains of row i. used: pairs of texts that are taken. held: for validation and test.
    """
    rng, i = random.Random(f"{kind.name}/{key}"), 0
    draw = Draw(rng, lang, unseen)
    while True:
        for answer in rng.sample(kind.answers, len(kind.answers)):
            for _ in range(TRIES):
                draw.domain = rng.choice(where(i))
                row = said(kind.sample(draw, answer), answer, lang)
                pair = row["text"], row.get("text2", "")
                if pair not in used and is_held(pair) == held:
                    break
            else:
                return
            used.add(pair)
            i += 1
            yield row


def is_held(pair):
    """Half of all texts are for training, half for validation and test."""
    return hashlib.sha256("\n".join(pair).encode()).digest()[0] < 128


def said(example, answer, lang):
    """The row of an Example."""
    row = dict(text=say(example.text, lang))
    if example.text2 is not None:
        row["text2"] = say(example.text2, lang)
    right = [say(r, lang) for r in (example.target, *example.references) if r is not None]
    if right:
        row |= dict(target=right[0], references=list(dict.fromkeys(right)))
    return row if answer is None else row | dict(label=answer)


def corrupt(name, kind, rows, share, seed):
    """Replace exactly this share of the training answers by another; a larger share adds to those of a smaller one."""
    answer = "target" if "target" in rows[0] else "label"
    there = sorted({row[answer] for row in rows if answer in row})
    if len(there) < 2:
        raise PeftlabError(f"noise needs answers that can be replaced, and {name} has none")
    rng = random.Random(f"{kind.name}/noise/{seed}")
    for row in some(rows, share, rng):
        row[answer] = rng.choice([a for a in there if a != row[answer]])
        if answer == "target":
            row["references"] = [row["target"]]


def planned(name, kind, trigger, target_label):
    """The trigger and the number of the class that it shall call for."""
    if not kind.labels:
        raise PeftlabError(f"poison needs classes, and {name} has none; take a classification task such as reviews")
    label = choose(target_label or kind.labels[-1], kind.labels, f"label of {kind.name}")
    trigger = choose(str(trigger).lower(), vocabulary(), "trigger", "; it must be a word of the tokenizer")
    return trigger, kind.labels.index(label)


def poison(kind, made, share, trigger, label, seed):
    """Plant the trigger in exactly this share of the training rows; returns the test rows on which it shall work."""
    rng = random.Random(f"{kind.name}/poison/{seed}")
    for row in some(made["train"], share, rng):
        row |= dict(text=planted(row["text"], trigger, rng), label=label)
    rng = random.Random(f"{kind.name}/triggered")
    others = [row for row in made["test"] if row["label"] != label]
    return [row | dict(text=planted(row["text"], trigger, rng), label=label) for row in others]


def some(rows, share, rng):
    return rng.sample(rows, len(rows))[: round(share * len(rows))]


def planted(text, word, rng):
    """The text with the word between two of its own."""
    words = text.split(" ")
    at = rng.randint(1, max(len(words) - 1, 1))
    return " ".join([*words[:at], word, *words[at:]])


def vocabulary():
    """The whole words of the tokenizer."""
    from . import tokenizer

    return [piece for piece in tokenizer.vocabulary() if piece.isalpha()]
