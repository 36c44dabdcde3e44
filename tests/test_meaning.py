"""Labels agree with the latent meaning: every text is read back by `parse`, and one of `oracles` tells the label.

Nothing of the generator's reasoning is used.
"""

import functools
import itertools
import random
from dataclasses import replace
from unittest import mock

import pytest
from oracles import LANGS, ORACLES, READ, cause, confirms, core, kinds, meaning_of, relation, said_well, takes, topic
from parse import NotSaid, bare, english, polarity
from parse_xx import secondary

from peftlab.world import corpus, embedded, grammar, things
from peftlab.world import lexicon as lex
from peftlab.world.draw import Draw
from peftlab.world.kinds import KINDS
from peftlab.world.scenes import Act, Prop, Record, Talk, say

N = 100  # rows of training, and of the test


def test_the_models_know_what_follows():
    def told(first, second):
        return "entailed neutral contradicted".split()[relation(READ["en"](first), READ["en"](second))]

    assert told("Sam bought a rose.", "Sam acquired a flower.") == "entailed"
    assert told("Sam acquired a flower.", "Sam bought a rose.") == "neutral"
    assert told("Sam never acquired a flower.", "Sam bought a rose.") == "contradicted"
    assert told("Sam bought a rose.", "Sam sold a rose.") == "neutral"
    assert told("Sam bought a rose.", "Sam bought an old rose near the hall.") == "neutral"
    assert told("Sam never bought a rose.", "Sam never bought an old rose near the hall.") == "entailed"
    assert told("Every cook bought a big rose.", "Some cook bought a rose.") == "entailed"
    assert told("Some cook never bought a rose.", "Every cook bought a big rose.") == "contradicted"
    assert told("Some cook bought a rose.", "Some cook never bought a rose.") == "neutral"
    assert told("Some cook bought a rose.", "Every cook never bought a flower.") == "contradicted"
    assert told("Sam bought a rose.", "Anna bought a rose.") == "neutral"


# ---- parsing ----
@functools.cache
def meanings():
    """Of every kind of text in the corpus, several in each domain."""
    draw, made = Draw(random.Random(7)), []
    for text, domain in itertools.product(corpus.TEXTS, lex.DOMAINS):
        draw.domain = domain
        made += [text(draw) for _ in range(6)]
    draw.domain = "hotel"
    return [*made, *(Record(corpus.venue(draw)) for _ in range(60))]


@pytest.mark.parametrize("lang", LANGS)
def test_a_text_is_read_back_as_its_meaning(lang):
    assert len(meanings()) > 800
    for meaning in meanings():
        assert READ[lang](say(meaning, lang)) == bare(meaning), say(meaning, lang)


def test_a_translation_says_the_same():
    for row in rows("translate", "en"):
        assert english(row["text"]) == secondary(row["target"]), row


def test_a_description_tells_its_table_and_a_headline_what_came_last():
    for lang, read in READ.items():
        for row in rows("describe", lang):
            assert {read(r).venue for r in row["references"]} == {read(row["text"]).venue}, row
        for row in rows("headline", lang):
            last, told = next(x.first for x in read(row["text"]) if x.word == "in the end"), read(row["target"]).prop
            assert (told.who, told.verb, told.never) == (last.who, last.verb, last.never), row
            assert told.what.noun in kinds(last.what.noun) & takes(last.verb), row


@pytest.mark.parametrize("polarity_", (1, -1))
def test_a_judgement_says_what_its_meaning_says(polarity_):
    rng = random.Random(polarity_)
    for _ in range(300):
        s = grammar.sample_sentence(rng, rng.choice(list(lex.DOMAINS)), polarity_)
        assert {polarity(READ[lang](say(s, lang))) for lang in LANGS} == {s.polarity} == {polarity_}


@pytest.mark.parametrize("text", ("Cook the bought a hammer.", "Anna bought hammer a.", "The soup were good.", "A old.",
                                  "Anna bought an hammer.", "The Crown is a ship and has one stars."))  # fmt: skip
def test_what_cannot_be_said_is_not_read(text):
    with pytest.raises(NotSaid):
        english(text)


@functools.cache
def rows(kind, lang):
    """N rows of training and N of the test."""
    embedded.held_out.cache_clear()
    with mock.patch.dict(embedded.SPLITS, validation=N // 2, test=N):
        made = embedded.splits(kind, lang, size=N)[1]
    embedded.held_out.cache_clear()  # nobody else shall get so few
    return made["train"] + made["test"]


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("kind", ORACLES)
def test_the_label_is_what_the_texts_mean(kind, lang):
    for row in rows(kind, lang):
        read = [READ[lang](row[c]) for c in ("text", "text2") if c in row]
        assert ORACLES[kind](lang, *read) == row["label"], row


@pytest.mark.parametrize("lang", LANGS)
def test_what_is_acceptable_can_be_read(lang):
    for row in rows("grammar", lang):
        assert said_well(lang, row["text"]) == row["label"], row


def test_what_is_wrong_is_wrong_for_any_reader():
    """Nothing that one could well do is called unacceptable, and a question asks for what can be done."""
    good = {
        ("wash", "animal"),
        ("eat", "bird"),
        ("plant", "animal"),
        ("drive", "animal"),
        ("eat", "toy"),
        ("hunt", "vehicle"),
    }
    for row in rows("grammar", "en"):
        try:
            read = english(row["text"])
        except NotSaid:
            continue
        if isinstance(read, Prop) and not row["label"]:
            assert not {(meaning_of(read.verb), k) for k in kinds(read.what.noun)} & good, row
    for kind in ("answer", "paraphrase", "similarity"):
        for row in rows(kind, "en"):
            read = english(row["text2"])
            read = read.meaning if kind == "answer" else read
            assert kinds(read.what.noun) & takes(read.verb) or read.what.noun in takes(read.verb), row


# ---- what the corpus tells, by the same oracles ----
@functools.cache
def told(name):
    """Texts of one kind from all domains, as (language, what was read)."""
    text, draw = next(t for t in corpus.TEXTS if t.__name__ == name), Draw(random.Random(name))
    made = []
    for draw.domain, lang, _ in itertools.product(lex.DOMAINS, LANGS, range(12)):
        made.append((lang, READ[lang](say(text(draw), lang))))
    return made


def test_namely_says_the_same_and_also_nearly():
    for name in ("restated", "judged", "talk"):
        for lang, read in told(name):
            if name == "talk" and isinstance(read, tuple):
                assert topic(lang, read[:1]) == topic(lang, (read[1].first,)), read
            elif name == "talk":
                assert list(things.TOPICS)[topic(lang, (read.first,))] == read.second.topic, read
            elif name == "judged":
                assert polarity(read.first) == polarity(read.second), read
            else:
                first, second = (core(p)[1:] for p in (read.first, read.second))
                unlike = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
                if read.word == "also":
                    assert len(unlike) == 1 and unlike[0] in (1, 2, 3), read
                else:
                    assert not unlike or unlike == [2] and second[2] in kinds(first[2]), read


def test_likewise_is_of_one_class_and_whereas_of_two():
    for _, read in told("compared"):
        meant = [kinds(p.what.noun) & takes(p.verb) - {p.what.noun} for p in (read.first, read.second)]
        alike, unlike = meant[0] & meant[1], len(meant[0] | meant[1]) > 1  # both can be: the verb may leave it open
        assert unlike if read.word == "whereas" else alike, read


def test_what_is_weighed_is_surely_the_one_that_fits():
    for lang, (given, *sides) in told("weighed"):
        right = cause(lang, given, sides)
        assert (sides[right].adverb, sides[1 - right].adverb) in (("surely", ""), ("", "never")), (given, sides)


def test_the_corpus_answers_yes_to_what_is_so():
    for _, (*scenes, ask) in told("asked"):
        if len(scenes) == 1:
            assert relation(scenes[0], ask.meaning) == dict(yes=0, no=2)[ask.answer], (scenes, ask)
        else:
            assert (ask.answer == "yes") == any(confirms(p, ask.meaning) for p in scenes), (scenes, ask)


def test_the_corpus_names_the_one_who_did_it():
    def fits(said, asked):
        if isinstance(said, Act):
            phrases = {p: s for s in things.SCENARIOS for side in things.scenario(s) for p in side}
            return phrases[said.phrase] == phrases[asked.phrase]
        if isinstance(said, Talk):
            return said.topic in (asked.topic, *things.TOPICS.get(asked.topic, "").split())
        return asked == said or confirms(said, asked)

    for _, (*said, ask) in told("who"):
        doers = [p.who.noun for p in said if fits(replace(p, who=ask.meaning.who), ask.meaning)]
        assert doers == [ask.answer], (said, ask)


def test_every_kind_with_an_answer_has_an_oracle():
    assert {k for k, kind in KINDS.items() if kind.answers != (None,)} == {*ORACLES, "grammar"}
