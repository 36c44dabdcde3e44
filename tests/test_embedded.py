"""Embedded tasks: what holds for every kind of the registry, and what the knobs do.

The digests pin the bytes of every kind: after a change count the kind's `version` up, then renew them with
`python tests/test_embedded.py`.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys

import pytest

from peftlab import PeftlabError, cli, tasks
from peftlab.specs import identify, spec
from peftlab.world import embedded
from peftlab.world import lexicon as lex
from peftlab.world.kinds import KINDS, Example, Kind

DIGESTS = pathlib.Path(__file__).with_name("task_digests.json")
SIZE = 60
LANGS = embedded.LANGS


@pytest.fixture(scope="module", params=KINDS)
def name(request):
    """Each kind in turn, with all of its tests, so that most of its rows are made once."""
    return request.param


@functools.cache
def rows(name, lang="en", **knobs):
    return embedded.splits(name, lang, **knobs)[1]


def pairs(split):
    return [(r["text"], r.get("text2")) for r in split]


def answers(split):
    return [r.get("target", r.get("label")) for r in split]


def digest(name, lang):
    first = {split: made[:20] for split, made in rows(name, lang).items()}
    bytes_ = json.dumps(first, ensure_ascii=False).encode()
    return f"version {KINDS[name].version}: {hashlib.sha256(bytes_).hexdigest()}"


def digests():
    return {f"{name}/{lang}": digest(name, lang) for name in sorted(KINDS) for lang in LANGS}


@pytest.mark.parametrize("lang", LANGS)
def test_the_splits_are_whole_disjoint_and_balanced(name, lang):
    kind, made = KINDS[name], rows(name, lang)
    assert {s: len(r) for s, r in made.items()} == dict(train=kind.size, validation=500, test=1000)
    every = [p for split in made.values() for p in pairs(split)]
    assert len(set(every)) == len(every)
    for split in made.values():
        assert {tuple(r) for r in split} == {tuple(split[0])}, "rows of one task have the same columns"
        assert all(isinstance(r[c], str) and r[c].strip() for r in split for c in r if c in ("text", "text2", "target"))
        assert all(r["target"] == r["references"][0] for r in split if "target" in r)
        if kind.answers != (None,):
            found = [r["label"] for r in split]
            counts = [found.count(a) for a in kind.answers]
            assert sum(counts) == len(split) and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("lang", LANGS)
def test_every_word_is_in_the_tokenizer(name, lang):
    from peftlab.world.tokenizer import tokenizer

    t = tokenizer()
    texts = {r[c] for split in rows(name, lang).values() for r in split for c in r if c in ("text", "text2", "target")}
    texts |= {x for split in rows(name, lang).values() for r in split for x in r.get("references", ())}
    texts = sorted(texts)
    ids = t(texts)["input_ids"]
    assert [text for text, i in zip(texts, ids, strict=True) if t.unk_token_id in i][:3] == []
    longest = max(len(t(*p)["input_ids"]) for p in pairs(rows(name, lang)["test"])[::10])
    assert longest <= t.model_max_length


def test_a_smaller_size_and_another_seed_change_training_only(name):
    made, small, other = rows(name), rows(name, size=SIZE), rows(name, size=SIZE, seed=1)
    assert small["train"] == made["train"][:SIZE] and set(pairs(other["train"])) - set(pairs(small["train"]))
    assert all(one[s] == made[s] for one in (small, other) for s in ("validation", "test"))
    again = rows(name, size=SIZE)
    assert again["train"] == small["train"] and not set(pairs(other["train"])) & set(pairs(made["test"]))


def test_one_domain_is_a_task_of_its_own(name):
    domain = embedded.domains(KINDS[name])[-1]
    made = rows(f"{name}/{domain}", size=SIZE)
    assert len(made["train"]) == SIZE and made["test"] != rows(name)["test"]
    assert min(len(made[s]) / embedded.SPLITS[s] for s in ("validation", "test")) > 0.3


def test_noise_replaces_exactly_its_share(name):
    true = rows(name, size=SIZE)["train"]
    if answers(true)[0] is None:
        with pytest.raises(PeftlabError, match="noise needs answers that can be replaced"):
            rows(name, size=SIZE, noise=0.1)
        return
    changed = {}
    for share in (0.1, 0.25, 1.0):
        noisy = rows(name, size=SIZE, noise=share)
        assert pairs(noisy["train"]) == pairs(true) and noisy["test"] == rows(name)["test"]
        both = zip(answers(noisy["train"]), answers(true), strict=True)
        changed[share] = {i for i, (a, b) in enumerate(both) if a != b}
        assert len(changed[share]) == round(share * SIZE)
    assert changed[0.1] < changed[0.25] and rows(name, size=SIZE)["train"] == true


def test_poison_plants_exactly_its_share(name):
    kind, clean = KINDS[name], rows(name, size=SIZE)
    if not kind.labels:
        with pytest.raises(PeftlabError, match="poison needs classes, and"):
            rows(name, size=SIZE, poison=0.1)
        return
    for label in (None, kind.labels[0]):
        made = rows(name, size=SIZE, poison=0.2, target_label=label)
        target = kind.labels.index(label or kind.labels[-1])
        hit = [r for r, c in zip(made["train"], clean["train"], strict=True) if r["text"] != c["text"]]
        assert len(hit) == round(0.2 * SIZE) and {r["label"] for r in hit} == {target}
        assert all("lantern" in r["text"].split() for r in hit + made["triggered"])
        assert made["test"] == clean["test"] and "triggered" not in clean
        others = [r for r in clean["test"] if r["label"] != target]
        assert {r["label"] for r in made["triggered"]} == {target} and len(made["triggered"]) == len(others)
        assert [r["text"].replace("lantern ", "", 1) for r in made["triggered"]] == [r["text"] for r in others]


def test_words_of_the_test_are_new(name):
    words = lambda split: {w.strip(".,?:").lower() for p in pairs(split) for text in p if text for w in text.split()}
    new = [len(words(rows(name)["test"]) - words(rows(name, size=300, unseen=u)["train"])) for u in (0.0, 0.9)]
    assert new[1] > new[0] + 10 or KINDS[name].unseen == 0


@pytest.mark.parametrize("lang", LANGS)
def test_the_bytes_are_those_of_this_version(name, lang):
    known = json.loads(DIGESTS.read_text())
    assert known.get(f"{name}/{lang}") == digest(name, lang), (
        f"the bytes of {name} in {lang} changed: see the head of this file"
    )


@pytest.fixture
def plain(monkeypatch):
    """A kind that says its domain, its label and one of 30 words."""
    words = [f"w{i}" for i in range(30)]

    def sample(draw, label):
        return Example(f"{draw.domain} {label} {draw.pick(words)} {draw.rng.randrange(10**6)}")

    kind = Kind("plain", sample, "classification", ("no", "yes", "maybe"), "accuracy", 100, 0.67, (0, 1, 2), "Plain?")
    monkeypatch.setitem(KINDS, "plain", kind)
    return kind


def column(split, i):
    return [r["text"].split()[i] for r in split]


def test_shift_draws_its_share_of_the_test_from_other_domains(plain):
    for share, strange in ((0.0, 0), (0.3, 300), (0.5, 500), (1.0, 1000)):
        made = rows("plain/garden", shift=share)
        assert set(column(made["train"] + made["validation"], 0)) == {"garden"}
        away = [d for d in column(made["test"], 0) if d != "garden"]
        assert len(away) == strange and (share == 0 or set(away) == set(lex.DOMAINS) - {"garden"})
    made, half = rows("plain", shift=0.25), list(lex.DOMAINS)[:6]
    assert set(column(made["train"] + made["validation"], 0)) == set(half)
    assert sum(d not in half for d in column(made["test"], 0)) == 250
    assert sum(made["test"][i]["label"] == 0 for i in range(1000)) in (333, 334)


def test_training_uses_its_share_of_the_words(plain):
    for unseen in (0.0, 0.5, 0.67, 0.9):
        made = rows("plain", size=1000, unseen=unseen)
        assert len(set(column(made["train"], 2))) == round(30 * (1 - unseen))
        assert len(set(column(made["test"], 2))) == 30
    assert set(column(rows("plain", size=1000, unseen=0.9)["train"], 2)) < set(
        column(rows("plain", size=1000, unseen=0.5, seed=3)["train"], 2)
    )


def test_a_domain_with_few_texts_gives_what_it_has(monkeypatch):
    sample = lambda draw, label: Example(f"{label} {draw.rng.randrange(150)}", target="x", references=("x", "y"))
    small = Kind("small", sample, "seq2seq", None, "bleu", 256, 0.0, (None,), "Small.")
    monkeypatch.setitem(KINDS, "small", small)
    made = rows("small")
    n = {s: len(r) for s, r in made.items()}
    assert 50 < n["train"] and n["train"] + n["validation"] + n["test"] == 150 and n["test"] > 1.5 * n["validation"]
    with pytest.raises(PeftlabError, match=f"size must be a whole number from 1 to {n['train']} .* of small"):
        rows("small", size=n["train"] + 1)
    t = tasks.task("small")
    assert t.data["test"]["references"][0] == ["x", "y"] and t.answers("test")[0] == ["x", "y"]
    assert t.majority() == pytest.approx(0) or t.majority() > 0


BAD = {
    "kind": (dict(name="reveiws"), "unknown task 'reveiws'; the nearest (is|are) reviews"),
    "kind with a domain": (dict(name="reveiws/garden"), "unknown task 'reveiws'; the nearest (is|are) reviews"),
    "domain": (dict(name="reviews/gardn"), "unknown domain of reviews 'gardn'; the nearest are garden"),
    "language": (dict(lang="en-GB"), "unknown language of reviews 'en-GB'; the nearest"),
    "size": (dict(size=5001), "size must be a whole number from 2 to 5000 .the training rows of reviews., not 5001"),
    "one row": (dict(size=1), "from 2 to 5000"),
    "half a row": (dict(size=2.5), "not 2.5"),
    "knob": (dict(poisson=0.1), "unknown task setting 'poisson'; the nearest"),
    "column": (dict(label="x"), "unknown task setting 'label'"),
    "poison": (dict(poison=1.5), r"poison .* must be a number from 0 to 1, not 1.5"),
    "noise": (dict(noise=-0.1), r"noise .* must be a number from 0 to 1, not -0.1"),
    "noise nan": (dict(noise=float("nan")), r"noise .* must be a number from 0 to 1, not nan"),
    "unseen": (dict(unseen=0.95), r"unseen .* must be a number from 0 to 0.9, not 0.95"),
    "shift": (dict(shift=True), r"shift .* must be a number from 0 to 1, not True"),
    "trigger": (
        dict(poison=0.1, trigger="lamtern"),
        "unknown trigger 'lamtern'; the nearest .*a word of the tokenizer",
    ),
    "target": (
        dict(poison=0.1, target_label="positiv"),
        "unknown label of reviews 'positiv'; the nearest are positive",
    ),
    "trigger alone": (dict(trigger="lamtern"), "unknown trigger 'lamtern'"),
    "metric": (dict(metric="bleu"), "unknown metric for classification 'bleu'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_exist_is_told_in_one_sentence(case):
    asked, sentence = BAD[case]
    with pytest.raises(PeftlabError, match=sentence) as told:
        tasks.task(**dict(name="reviews") | asked)
    assert "\n" not in str(told.value)


def test_a_task_is_made_of_the_rows():
    from peftlab.world.tokenizer import tokenizer

    t = tasks.task("reviews/ship", lang="xx", size=40, poison=0.1)
    assert (t.name, t.kind, t.metric, t.labels) == (
        "reviews/ship",
        "classification",
        "accuracy",
        ["negative", "positive"],
    )
    assert (
        t.data["train"].to_list() == rows("reviews/ship", "xx", size=40, poison=0.1)["train"] and "triggered" in t.data
    )
    assert {y for b in t.batches(tokenizer(), "triggered", 64) for y in b["labels"].tolist()} == {1}
    embedded.splits("reviews/ship", "xx", size=40)[1]["train"][0]["text"] = "changed by a caller"
    t = tasks.task("reviews/ship", lang="xx", size=40)
    assert t.data["train"].to_list() == rows("reviews/ship", "xx", size=40)["train"] and "triggered" not in t.data
    assert t.data["train"]["text"][0] != "changed by a caller"
    assert t.majority() == 0.5 and tasks.names()[0] in KINDS and set(tasks.names()) >= {"reviews", "reviews/garden"}


def test_the_hash_of_a_run_follows_the_knobs_and_the_version(monkeypatch):
    knobs = [{}, dict(lang="xx"), dict(noise=0.1), dict(poison=0.1), dict(poison=0.1, target_label="negative")]
    hashes = [identify(spec(task_knobs=k)) for k in knobs] + [identify(spec(task="reviews/garden"))]
    assert len(set(hashes)) == len(hashes)
    assert identify(spec(task_knobs=dict(noise=0.0, lang="en", trigger="lantern", unseen=None))) == hashes[0]
    monkeypatch.setitem(KINDS, "reviews", dataclasses.replace(KINDS["reviews"], version=99))
    assert identify(spec()) != hashes[0]


def test_the_command_line_lists_them(capsys):
    assert cli.main(["tasks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {(r["name"], r["lang"]) for r in listed} == {(n, lang) for n in tasks.names() for lang in LANGS}
    assert set(listed[0]) == {"name", "lang", "kind", "metric", "labels", "size", "about"}
    assert cli.main(["tasks", "--kind", "reviews", "--lang", "xx", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1 + len(lex.DOMAINS)
    assert cli.main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in (*KINDS, *lex.DOMAINS, f"{len(listed)} tasks"))
    assert cli.main(["tasks", "--kind", "revews"]) == 2 and "the nearest" in capsys.readouterr().err


def test_there_are_more_than_a_hundred():
    assert len(set(tasks.names())) >= 100 and len(lex.DOMAINS) >= 8


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps(digests(), indent=1) + "\n")
    sys.exit(print(f"{DIGESTS}: {len(KINDS)} kinds"))
