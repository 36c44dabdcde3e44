"""Reads the second language: every word to [lexeme-endings], then regular expressions as in `parse`."""

import functools
import re

from parse import (
    ASIDES,
    ASPECTS,
    BUT,
    NO_ARTICLE,
    PROPER,
    YES,
    Joined,
    Opened,
    W,
    alt,
    g,
    need,
    only,
    person,
    several,
    strongest,
    table,
)  # fmt: skip

from peftlab.world import lexicon as lex
from peftlab.world import things, xx
from peftlab.world.scenes import Ask, Headline, Link, Prop, Thing

STEMS = {stem: lexeme for lexeme, stem in xx.dictionary().items()}
KEPT = sorted((w.lower() for w in (*lex.NAMES, *things.VENUES)), key=len, reverse=True)
LETTERS = re.compile(r"\w+")


def analysed(word):
    """ "talomka" -> "[hammer-ka]": five letters of stem or a name, then endings of two letters."""
    readings = [(STEMS[word[:5]], word[5:])] if word[:5] in STEMS else []
    readings += [(name, word[len(name):]) for name in KEPT if word.startswith(name)]  # fmt: skip
    found = [
        "-".join([lexeme.lower(), *cut]) for lexeme, rest in readings
        if (cut := re.findall("..", rest)) is not None and "".join(cut) == rest and {*cut} <= {*xx.ENDINGS.values()}
    ]  # fmt: skip
    return f"[{only(found, word)}]"


def glossed(text):
    return re.sub(r" *(\[[^]]*\]|[,:]) *", r"\1", LETTERS.sub(lambda m: analysed(m[0]), text.lower()))


def w(pattern):
    """{place-lo} -> the word of that kind with its ending; {offer:thing} as in English; (…)? around what may lack."""
    pattern = re.sub(r"{((\w+):?(\w*)((?:-\w+)*))}", r"\\[{\2:\3}\4\\]", pattern)
    return g(re.sub(r"{(\w+):}", r"{\1}", pattern))


SPEAKER = rf"(?P<speaker>\[(?:{alt(lex.KIN)})\]\[(?:{alt(lex.OWNERS)})\]|\[(?:{alt((*lex.NAMES, *lex.CROWD))})\])"
QUANTIFIED = r"(?:\[(?P<who_det>every|some|no|any)\])?"
REASON = r"\[(?:(?P<because>because)|so)\]\[(?P<pronoun>he|she)\](?(because){quality-re}|{mood-re})"
XX_FORMS = [
    ("prop", "(?:{place-lo})?{who}" + QUANTIFIED + r"{thing-ka}(?:{look})?(?:{det:quantifier})?"
             r"\[{verb_}-(?:te|(?P<never>nu))\]"),
    ("act", "{who}" + QUANTIFIED + r"\[{phrase_}-(?:te|(?P<never>nu))\](?:\[(?P<surely>surely)\])?"),
    ("reason", "{who}{whom:who-ka}{feeling-te}" + REASON),
    ("passive", "{whom:who-ka}{who}{feeling-te}" + REASON),
    ("talk ", "{who}" + QUANTIFIED + "{topic-ka}{talking-te}"),
    *((f"talk {aside}", "{who}" + QUANTIFIED + rf"{{other:topic}}\[{aside}\]{{topic-ka}}{{talking-te}}")
      for aside in ASIDES if aside),
    ("told", "{venue}{kind}(?:{price})?(?:{place-lo})?(?:{offer:thing-ka})?(?:{stars-su})?"),
    ("told", "{place-lo}{venue}{kind}(?:{price})?(?:{offer:thing-ka})?(?:{stars-su})?"),
    ("told", "{venue}{stars-su}{kind}(?:{price})?(?:{place-lo})?(?:{offer:thing-ka})?"),
    ("claim", r"\[{aspect_}(?P<many>-mi)?\]"
              r"(?:(?:{booster})?\[{claim:quality}-(?P<agrees>r[ei])\](?:{denial})?|{event-te})"
              rf"(?:{SPEAKER}{{said:saying-te}})?"),
    ("found", rf"{SPEAKER}\[{{aspect_}}(?P<many>-mi)?-ka\]{{claim:quality}}{{said:finding-te}}"),
]  # fmt: skip


def xx_pattern(text):
    bare_group = lambda m: f"(?P<{m[1]}>{W[m[2] or m[1]]})"
    text = re.sub(r"\\\[{(\w+?)_?(?::(\w+))?}", lambda m: r"\[" + bare_group(m), text)
    return re.compile(w(text))


XX_FORMS = [(name.split(" "), xx_pattern(pattern)) for name, pattern in XX_FORMS]


def agreed(m, text):
    """An adjective, and the aspect, say whether there are many; my sister is said the other way round."""
    if m.get("aspect"):
        need(ASPECTS[m["aspect"]] == bool(m["many"]), text)
        need(not m.get("agrees") or (m["agrees"] == "ri") == bool(m["many"]), text)
        need(not (m.get("booster") and m.get("denial")), text)
    need(not m.get("who_det") or m["who"] not in NO_ARTICLE, text)
    if m.get("phrase"):
        need(not (m["never"] and m["surely"]), text)
        m = m | dict(adverb=m["surely"] or ("never" if m["never"] else ""))
    if m.get("speaker"):
        m = m | dict(speaker=" ".join(reversed(m["speaker"].strip("[]").split("]["))))
    return m


XX_LEVELS = [
    [(rf"^\[{d}-lo\]()(.+)$", lambda _, a, d=d: Opened(d, a)) for d in lex.DOMAINS],
    *([(rf"^(.+),\[{k}\](.+)$", lambda a, b, k=k: Link(a, k, b)) for k in keys] for keys in BUT[::-1]),
    [(rf"^(.+),(.+)\[{c}\]$", lambda a, b, c=c: Joined(a, b, c, True)) for c in lex.CONTRASTS]
    + [(rf"^(.+)\[{c}\],(.+)$", lambda a, b, c=c: Joined(b, a, c, False)) for c in lex.CONTRASTS],
    [(r"^(.+?)\[and\](.+)$", lambda a, b: Joined(a, b, "and"))],
    [(rf"^\[{k}\]()(.+)$", lambda _, a, k=k: Link(a, k)) for k in things.LINKS],
]


@functools.lru_cache(maxsize=100_000)
def xx_phrase(text):
    if not text:
        return None
    if m := re.fullmatch(r"(?:(.+)\[ask\]|(.*\[who\].+))\?(?:\[(\w+)\])?", text.replace("? [", "?[")):
        return Ask(xx_phrase(m[1] or m[2]), PROPER.get(m[3], m[3] or ""))
    return strongest(text, xx_phrase, XX_LEVELS, XX_FORMS, agreed)


def secondary(text):
    """The meaning of a text in the second language, as `english` gives it."""
    return several(text, xx_phrase, xx_title, glossed(text), rf"\[{YES}\]")


def xx_title(text):
    if "[name]:" in text:
        return table([[cell.strip("[]") for cell in pair.split(":")] for pair in text.split(",")])
    m = re.fullmatch(w(r"{who}{thing}") + xx_pattern(r"\[{verb_}(?P<never>-nu)?\]").pattern, text)
    need(m, text)
    return Headline(Prop(person(m["who"]), m["verb"], Thing(m["thing"], ""), "", bool(m["never"])))
