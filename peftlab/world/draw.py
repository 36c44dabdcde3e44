"""What a text or an example is drawn from: random numbers, a domain, and the words that may be used."""

import functools
import hashlib


class Draw:
    """rng (a random.Random), lang, domain, and in `pick` the words of the split: all, or for training only a share."""

    def __init__(self, rng, lang="en", unseen=0.0, domain=None):
        self.rng, self.lang, self.unseen, self.domain, self.known = rng, lang, unseen, domain, {}

    def pick(self, words):
        """One of the words (lexemes, or objects with a `word`) which this split may use."""
        return self.rng.choice(self.seen(words))

    def seen(self, words):
        """The words which this split may use: all, but in training only a share 1 - unseen of them, at least one."""
        if not self.unseen:
            return words
        key = tuple(map(name_of, words))
        if key not in self.known:
            self.known[key] = seen(words, self.unseen)
        return self.known[key]


def seen(words, unseen):
    """The words left in training, in their order. Every word has its fixed rank, so lists that share words agree, and
    a smaller `unseen` only adds words."""
    keep = max(1, round((1 - unseen) * len(words)))
    best = set(sorted(map(name_of, words), key=rank)[:keep])
    return [w for w in words if name_of(w) in best]


def name_of(word):
    """The lexeme of a word."""
    return str(getattr(word, "word", word))


@functools.cache
def rank(word):
    """A fixed order of all words, the same everywhere."""
    return hashlib.sha256(f"seen/{word}".encode()).digest()
