"""The micro-world to be read: its tables as a page, and a gloss under each word of the second language."""

import functools
import html
import random
import re

from .. import paths
from . import corpus, scenes, things, xx
from . import lexicon as lex
from .draw import Draw


class Leaf:
    """HTML that a notebook renders, light or dark, and the same as plain text for a terminal."""

    def __init__(self, body, text):
        self.body, self.text = body, text

    def _repr_html_(self):
        return f'{style()}<div class="pl-world">{self.body}</div>'

    def __repr__(self):
        return self.text


@functools.cache
def style():
    """The style sheet, as HTML."""
    return f"<style>{(paths.PACKAGE / 'widgets' / 'static' / 'world.css').read_text(encoding='utf-8')}</style>"


# Words of the second language, explained ---------------------------------------------------------


@functools.cache
def _tables():
    """stem -> lexeme (a name is its own), and ending -> what it tells."""
    names = {name.lower(): name for name in (*lex.NAMES, *things.VENUES)}
    stems = {stem: lexeme for lexeme, stem in xx.dictionary().items()}
    return stems | names, {ending: role for role, ending in xx.ENDINGS.items()}, {*xx.english()}


def gloss(word):
    """The meaning of a word of the second language: "fizakka" -> "violin-object"; "" for any other word.

    Words of one meaning are joined by dots ("took.the.pills-past"), endings follow after a hyphen.
    """
    stems, endings, english = _tables()
    word = word.lower()
    for cut in range(len(word), 0, -2) if word not in english else ():
        tail = [word[i : i + 2] for i in range(cut, len(word), 2)]
        if word[:cut] in stems and {*tail} <= {*endings}:
            return "-".join([stems[word[:cut]].replace(" ", "."), *(endings[e] for e in tail)])
    return ""


def interlinear(text):
    """A text as HTML, each word of the second language with its gloss below."""
    return re.sub(r"(\w+)([^\w\s]*)", lambda found: _glossed(found[0], gloss(found[1])), html.escape(text, quote=False))


def _glossed(said, below):
    return f"<ruby>{said}<rt>{below}</rt></ruby>" if below else said  # a comma stays with its word


# The grammar, from its own tables ----------------------------------------------------------------


def grammar():
    """Every table of the micro-world as one folded page: texts, domains, words, scenarios, the second language."""
    sections = [(title, *rows()) for title, rows in SECTIONS.items()]
    counts = f"{len(lex.DOMAINS)} domains, {len(xx.english()):,} English words, {len(xx.dictionary()):,} of the other"
    body = f"<p>{counts}. Three meanings, each said in both languages:</p>{examples('caused implied reason'.split())}"
    plain = [counts]
    for title, head, rows in sections:
        body += f"<details><summary>{title} ({len(rows)})</summary>{table(head, rows)}</details>"
        plain += [f"\n{title}", *(" | ".join(re.sub(r"<rt>.*?</rt>|<[^>]+>", "", str(c)) for c in row) for row in rows)]
    return Leaf(body, "\n".join(plain))


def table(head, rows, empty="nothing here"):
    """An HTML table; cells are HTML."""
    top = "".join(f'<th scope="col">{h}</th>' for h in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>" if rows else f"<p>{empty}</p>"


def examples(names):
    """Of each kind of text one meaning: in English, then in the second language with its gloss."""
    return "".join(f'<p class="pl-pair">{english}<br>{other}</p>' for _, _, english, other in map(example, names))


def example(name, seed=1):
    """(the kind of text, what it is, a meaning in English, the same in the second language with its gloss)."""
    make = next(text for text in corpus.TEXTS if text.__name__ == name)
    meaning = make(Draw(random.Random(f"{name}/{seed}"), domain="restaurant"))
    return name, make.__doc__.splitlines()[0], html.escape(scenes.say(meaning)), interlinear(scenes.say(meaning, "xx"))


def _texts():
    return ("kind", "what it is", "English", "the second language"), [example(t.__name__) for t in corpus.TEXTS]


def _domains():
    rows = [
        (domain, *(", ".join(a.word for a in lex.aspects(domain) if a.kind == kind) for kind in ASPECTS), met)
        for domain, met in ((d, ", ".join(things.classes(d))) for d in lex.DOMAINS)
    ]
    return ("domain", *ASPECTS, "things met there"), rows


def _judgements():
    rows = [
        (kind, *(", ".join(a.word for a in lex.adjectives(p) if a.kind == kind) for p in (lex.POSITIVE, lex.NEGATIVE)))
        for kind in lex.ADJECTIVES[lex.POSITIVE]
    ]
    return ("said of", "for", "against"), rows


def _classes():
    return ("class", "its words"), [(name, ", ".join(things.things(name))) for name in things.CLASSES]


def _senses():
    return ("word", "is"), [(word, " or ".join(kinds)) for word, kinds in things.SENSES.items()]


def _verbs():
    rows = [
        (", ".join(v.words), ", ".join(things.opposites(v.words[0])), reach(v.classes)) for v in things.VERBS.values()
    ]
    return ("one meaning", "the opposite", "done to"), rows


def reach(classes):
    return "anything" if len(classes) == len(things.CLASSES) else ", ".join(classes)


def _looks():
    return ("one meaning", "excludes"), [
        (", ".join(things.looks(n)), ", ".join(things.looks(other))) for n, (_, other) in things.LOOKS.items()
    ]


def _feelings():
    told = dict(who="because the one who did it was", whom="because the other one was")
    rows = [(f"{told[role]} {lex.GENERAL[p]}", p, verbs) for (role, p), verbs in things.FEELINGS.items()]
    rows = [(why, verbs.replace(" ", ", "), things.MOODS[p].replace(" ", ", ")) for why, p, verbs in rows]
    return ("done", "verbs", "so the other one was"), rows


def _links():
    return ("word", "in the second language"), [(word, xx.word(word)) for word in things.LINKS]


def _scenarios():
    rows = [(name, *("; ".join(side) for side in things.scenario(name))) for name in things.SCENARIOS]
    return ("somebody is", "causes", "effects"), rows


def _topics():
    return ("topic", "its words"), [(name, words.replace(" ", ", ")) for name, words in things.TOPICS.items()]


def _endings():
    return ("ending", "tells"), [(f"-{ending}", role) for role, ending in xx.ENDINGS.items()]


ASPECTS = list(lex.ADJECTIVES[lex.POSITIVE])[1:]  # food, person, place, thing, work: all but "any"
SECTIONS = {
    "Kinds of text that the models have read": _texts,
    "Domains and what one can have an opinion on": _domains,
    "Words of judgement": _judgements,
    "Classes of things": _classes,
    "Words with two senses": _senses,
    "Verbs": _verbs,
    "Looks": _looks,
    "What one person does to another, and who is the reason": _feelings,
    "Scenarios": _scenarios,
    "Topics": _topics,
    "Words that join what is said": _links,
    "Endings of the second language": _endings,
}
