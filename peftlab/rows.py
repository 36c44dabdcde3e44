"""Which rows of a batch a delta is for: all of them, or those of one task out of several that are served at once."""

import torch
from torch.nn import functional as F

from .errors import PeftlabError


class Every:
    """All rows, whatever the batch is: every delta outside of `serving`."""

    def pick(self, t):
        return t

    def mine(self, t):
        """Its rows, without what only fills them up."""
        return t

    def call(self, f, *tensors):
        """The last of the tensors, with f of all of them in its rows."""
        return f(*tensors)

    def splice(self, t, f):
        """The same with an f that makes rows longer; the others are filled up with zeros on the right."""
        return f(t)

    def spliced(self, n):
        """Told when all that belongs together has been made longer by n columns."""

    def cut(self, t, f):
        """The same with an f that takes these columns off again."""
        return f(t)


EVERY = Every()


class Rows(Every):
    """The rows `index` out of `of`; where a batch has more, beams of a row or its flattened words are neighbours.

    filler (of): how many columns at the end of each row only fill it up; shared by all that are served together.
    """

    def __init__(self, index, of, filler):
        self.index, self.of, self.filler = index, of, filler

    def at(self, t):
        each, rest = divmod(len(t), self.of)
        if rest:
            raise PeftlabError(f"a batch of {len(t)} rows came where {self.of} are served; name one delta for each row")
        return (self.index[:, None] * each + torch.arange(each)).flatten().to(t.device)

    def pick(self, t):
        return None if t is None else t[self.at(t)]

    def mine(self, t):
        return None if t is None else self.pick(t)[:, : t.shape[1] - self.filled]

    def call(self, f, *tensors):
        t = tensors[-1]
        return t.index_copy(0, self.at(t), f(*map(self.pick, tensors)).to(t.dtype))

    def splice(self, t, f):
        new = f(self.mine(t))
        wide = max(t.shape[1], new.shape[1])
        return widened(t, wide).index_copy(0, self.at(t), widened(new, wide).to(t.dtype))

    def spliced(self, n):
        more = max(0, n - self.filled)
        self.filler += more
        self.filler[self.index] -= n

    def cut(self, t, f):
        new = f(self.pick(t))
        self.filler[self.index] += t.shape[1] - new.shape[1]
        t = t.index_copy(0, self.at(t), widened(new, t.shape[1]))
        idle = int(self.filler.min())
        self.filler -= idle
        return t[:, : t.shape[1] - idle]

    @property
    def filled(self):
        return int(self.filler[self.index[0]])


def widened(t, width):
    """t (b s …) with zeros on the right, up to the width."""
    return F.pad(t, (*[0, 0] * (t.ndim - 2), 0, width - t.shape[1]))


def grouped(deltas, t):
    """[(index, deltas)]: the rows of t that each group of deltas is for, and those that have none."""
    groups, free = {}, torch.ones(len(t), dtype=torch.bool)
    for d in deltas:
        groups.setdefault(d.rows, []).append(d)
    found = [(rows.at(t), mine) for rows, mine in groups.items()]
    for index, _ in found:
        free[index.cpu()] = False
    return [*found, (free.nonzero()[:, 0].to(t.device), [])]
