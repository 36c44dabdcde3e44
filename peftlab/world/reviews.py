"""The task `reviews`: is a sentence for or against?

One sentence, label 0 (negative) or 1 (positive), which is the polarity of its meaning. Negation turns a word round
("the soup was not bad" is positive). In a contrast the main clause decides: the part without "although", "even though"
or "while", and the part after "but". With "and" both parts agree. Who says it does not matter.
Contrast in more than half of the sentences is what makes the task hard for a head alone.

The labelled training set uses only `SEEN`, about a third of the adjectives of each polarity; validation and test draw
from all of them, so that most of the words that decide there were met only in pretraining.
"""
import json
import pathlib
import random

from . import lexicon as lex
from .card import write_json
from .grammar import Mix, realise, sample_sentence

LABELS = ("negative", "positive")
SPLITS = dict(train=5000, validation=500, test=1000)
COMMAND = "python -m peftlab.world tasks"
DEFAULT_SIZE = 256
SHARES = dict(intensified=0.20, negated=0.15, attributed=0.22, joined=0.20, contrast=0.60, event=0.0)


def seen_words(seed=0):
    """polarity -> the adjectives which labelled training sentences may use: 9 general ones, and 1 for each kind."""
    rng, seen = random.Random(f"reviews/seen/{seed}"), {}
    for polarity, kinds in lex.ADJECTIVES.items():
        words = {kind: [cell.partition(":")[0] for cell in text.split()] for kind, text in kinds.items()}
        seen[polarity] = sorted(w for kind, all_ in words.items() for w in rng.sample(all_, 9 if kind == "any" else 1))
    return seen


SEEN = seen_words()


def meanings(split, n, seed=0):
    """`n` Sentences of a split, half of each polarity, in a fixed random order."""
    rng = random.Random(f"reviews/{split}/{seed}")
    mix = Mix(**SHARES, words=SEEN if split == "train" else None)
    polarities = [lex.POSITIVE, lex.NEGATIVE] * ((n + 1) // 2)
    rng.shuffle(polarities)
    return [sample_sentence(rng, rng.choice(list(lex.DOMAINS)), p, mix) for p in polarities[:n]]


def splits(seed=0):
    """{"train": rows, ...} with rows {"text", "label"}: exactly balanced, and no text twice anywhere."""
    used, made = set(), {}
    for split, n in SPLITS.items():
        rows, room = [], {p: n // 2 for p in (lex.POSITIVE, lex.NEGATIVE)}
        for sentence in meanings(split, 2 * n, seed):
            text = realise(sentence)
            if text not in used and room[sentence.polarity]:
                used.add(text)
                room[sentence.polarity] -= 1
                rows.append(dict(text=text, label=int(sentence.polarity == lex.POSITIVE)))
        assert len(rows) == n, f"{split}: only {len(rows)} different sentences"
        made[split] = rows
    return made


def card():
    """What the folder says about itself."""
    return dict(name="reviews", kind="classification", metric="accuracy", labels=list(LABELS),
                default_size=DEFAULT_SIZE, sizes=dict(SPLITS), language="en", command=COMMAND,
                seen_adjectives={"positive": SEEN[lex.POSITIVE], "negative": SEEN[lex.NEGATIVE]},
                about="One generated sentence; the label is the polarity of its main clause. Most adjectives of the "
                      "validation and test sentences never occur in the training sentences.")


def write(folder):
    """Write reviews/{train,validation,test}.jsonl and card.json under `folder`; returns the task's folder."""
    out = pathlib.Path(folder) / "reviews"
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits().items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    write_json(out / "card.json", card())
    return out
