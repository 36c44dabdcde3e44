"""What follows from what: natural logic over scenes, and scenes to begin with.

A Prop can be said more widely (a rose is a flower), more narrowly, in other words, or denied; which of these follows
from it depends on `never` and on the quantifiers ("never bought a flower" implies "never bought a rose").
"""

import dataclasses

from . import lexicon as lex
from . import things
from .scenes import Prop, Thing, pronoun

RELATIONS = ENTAILED, NEUTRAL, CONTRADICTED = 0, 1, 2


def person(draw, quantified=False):
    """Somebody of the domain, or a name; quantified: "every cook", "some guard"."""
    if quantified:
        return Thing(draw.rng.choice(things.PEOPLE[draw.domain]), draw.rng.choice(("every", "some")))
    if draw.rng.random() < 0.6:
        return Thing(draw.rng.choice(lex.NAMES), "")
    return Thing(draw.rng.choice(things.PEOPLE[draw.domain]), "the")


def scene(draw, kind=None, det="the", look=0.0, place=0.0, never=0.0, quantified=0.0, opposed=False, clear=False):
    """A Prop that makes sense: somebody of the domain does to a thing what is done to things of its class.

    kind: the class of the thing (default: one of the domain's). look, place, never, quantified: how often each occurs.
    opposed: only a verb which has an opposite. clear: no thing whose name also means something else.
    """
    rng = draw.rng
    kind = kind or rng.choice(things.classes(draw.domain))
    names = [v for v in things.verbs(kind) if things.VERBS[v].opposite or not opposed]
    if rng.random() < 0.7:              # mostly what tells the class, seldom what is done to anything
        names = [v for v in names if len(things.VERBS[v].classes) < len(things.CLASSES)] or names
    verb = draw.pick(things.VERBS[rng.choice(names)].words)
    what = Thing(draw.pick(things.things(kind, not clear)), det)
    if rng.random() < look:
        what = dataclasses.replace(what, look=draw.pick(any_look(rng)))
    where = rng.choice(things.PLACES[draw.domain]) if rng.random() < place else ""
    return Prop(person(draw, rng.random() < quantified), verb, what, where, rng.random() < never)


def any_look(rng):
    return things.looks(rng.choice(list(things.LOOKS)))


def verb_of(word):
    """The Verb that a word is one of."""
    return next(v for v in things.VERBS.values() if word in v.words)


def kind_of(draw, prop):
    """The class of the Prop's thing: of two senses one that the verb allows."""
    return draw.rng.choice([k for k in kinds_of(prop.what.noun) if k in verb_of(prop.verb).classes])


def again(who):
    """A person named for the second time: he or she where the name tells."""
    word = pronoun(who.noun)
    return Thing(word, "") if word else who


def by_pronoun(prop):
    """The Prop with its person named for the second time."""
    return dataclasses.replace(prop, who=again(prop.who))


def kinds_of(noun):
    """The classes that a noun may be of."""
    return things.CLASS_OF.get(noun, ())


def changed(prop, **what):
    """The Prop with its thing changed."""
    return dataclasses.replace(prop, what=dataclasses.replace(prop.what, **what))


def reworded(draw, prop):
    """The same in other words: another verb of the same meaning, another word for how the thing looks."""
    prop = dataclasses.replace(prop, verb=draw.pick(things.synonyms(prop.verb)))
    if prop.what.look:
        prop = changed(prop, look=draw.pick(things.synonyms(prop.what.look)))
    return prop


def wider(draw, prop):
    """Said of more: the class for the thing, or without its look or its place, or "some" for "every"."""
    ways = [lambda: changed(prop, noun=kinds_of(prop.what.noun)[0], look="")] if kinds_of(prop.what.noun) else []
    ways += [lambda: changed(prop, look="")] * bool(prop.what.look)
    ways += [lambda: dataclasses.replace(prop, place="")] * bool(prop.place)
    return draw.rng.choice(ways)()


def narrower(draw, prop):
    """Said of less: one thing of a class, or a look, or a place, where there was none."""
    kind = prop.what.noun
    ways = [lambda: changed(prop, noun=draw.pick(things.things(kind, False)))] * 2 if kind in things.CLASSES else []
    ways += [lambda: changed(prop, look=draw.pick(any_look(draw.rng)))] * (not prop.what.look)
    ways += [lambda: dataclasses.replace(prop, place=draw.rng.choice(things.PLACES[draw.domain]))] * (not prop.place)
    return draw.rng.choice(ways)()


def elsewhere(draw, prop):
    """Another thing of the same class, or another class: nothing follows either way."""
    noun = prop.what.noun
    if noun in things.CLASSES:
        return changed(prop, noun=draw.rng.choice([c for c in verb_of(prop.verb).classes if c != noun]))
    kind = next(k for k in kinds_of(noun) if k in verb_of(prop.verb).classes)
    return changed(prop, noun=draw.pick([w for w in things.things(kind, False) if w != noun]))


def denied(prop):
    """The same with and without never. Of "every" the denial is told of "some", and the other way round."""
    turn = dict(every="some", some="every").get(prop.who.det, prop.who.det)
    return dataclasses.replace(prop, never=not prop.never, who=dataclasses.replace(prop.who, det=turn))


def related(draw, relation, general=False):
    """(premise, hypothesis) of a relation: ENTAILED, NEUTRAL or CONTRADICTED; general: of classes without never too.

    A premise with never entails what is narrower, without it what is wider; the reverse direction is neutral; the
    denial of what is entailed is contradicted.
    """
    premise = scene(draw, det="a", look=0.3, place=0.3, never=0.3, quantified=0.4, clear=True)
    if (premise.never or general) and draw.rng.random() < 0.5:           # a class to be narrowed
        premise = changed(premise, noun=kinds_of(premise.what.noun)[0], look="")
    follows, open_ = (narrower, wider) if premise.never else (wider, narrower)
    if relation == NEUTRAL:
        step = elsewhere if draw.rng.random() < 0.4 else open_
    else:
        step = follows if draw.rng.random() < 0.7 else lambda draw, prop: prop
    try:
        other = step(draw, premise)
    except IndexError:                  # there is nothing wider to say of this premise
        return related(draw, relation)
    other = reworded(draw, other) if draw.rng.random() < 0.6 else other
    if other.who.det == "every" and relation == ENTAILED and draw.rng.random() < 0.5:
        other = dataclasses.replace(other, who=dataclasses.replace(other.who, det="some"))
    if relation == CONTRADICTED:
        other = denied(other)
    return (premise, other) if other != premise else related(draw, relation)


def opposite_verb(draw, prop):
    """Another thing done: the opposite where there is one, else what is done to the same class."""
    done = [w for name in things.verbs(kind_of(draw, prop)) for w in things.VERBS[name].words]
    others = [w for w in things.opposites(prop.verb) if w in done]
    others = others or [w for w in done if w not in verb_of(prop.verb).words]
    return dataclasses.replace(prop, verb=draw.pick(others))


def opposite_look(draw, prop):
    """The opposite of how the thing looks (where it is not told: another verb)."""
    if not prop.what.look:
        return opposite_verb(draw, prop)
    return changed(prop, look=draw.pick(things.opposites(prop.what.look)))


def missed(draw, prop):
    """Nearly the same as the Prop, but not the same: the look, the verb or the thing is another."""
    return draw.rng.choice((opposite_look, opposite_verb, elsewhere))(draw, prop)


def used(draw, noun, kind):
    """A scene in which a noun of two senses is of this class, and the verb shows it."""
    other = next(k for k in things.SENSES[noun] if k != kind)
    while other in verb_of((p := scene(draw, kind=kind, place=0.2)).verb).classes:
        pass
    return changed(p, noun=noun)


def questioned(draw, true, verbatim=0.0):
    """Two scenes, and a Prop that is true of one of them or false of both, in other words or by the class.

    verbatim: how often it has the same words.
    """
    first, second = (scene(draw, place=0.2, clear=True) for _ in range(2))
    if first.who == second.who or kinds_of(first.what.noun) == kinds_of(second.what.noun):
        return questioned(draw, true, verbatim)
    about, other = draw.rng.sample((first, second), 2)
    asked, same = dataclasses.replace(about, place=""), draw.rng.random() < verbatim
    asked = asked if same else reworded(draw, asked)
    if not true:  # the other's thing only where it is something one does that to
        suits = set(kinds_of(other.what.noun)) <= set(verb_of(about.verb).classes)
        wrong = draw.rng.choice(("who", "verb", "what", "what") if suits else ("who", "verb"))
        said = getattr(opposite_verb(draw, about) if wrong == "verb" else other, wrong)
        asked = dataclasses.replace(asked, **{wrong: said})
    if draw.rng.random() < 0.6 and not same:
        asked = changed(asked, noun=kind_of(draw, asked))
    return (first, second), asked


def unlike(draw):
    """Two scenarios that cannot be mistaken for each other."""
    pair = draw.rng.sample(list(things.SCENARIOS), 2)
    return unlike(draw) if any({*pair} <= {*alike.split()} for alike in things.ALIKE) else pair


def alternatives(draw):
    """(word, what was given, what goes with it, what does not): phrases of two scenarios."""
    (causes, effects), others = map(things.scenario, unlike(draw))
    if draw.rng.random() < 0.3:
        return "because", draw.pick(effects), draw.pick(causes), draw.pick(others[0])
    return "so", draw.pick(causes), draw.pick(effects), draw.pick(others[1])

