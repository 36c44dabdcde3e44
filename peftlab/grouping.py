"""Consecutive layers in four groups: "spindle 2" names the second group of a pattern, in a backbone of any depth."""

from torch import nn

from .errors import PeftlabError, choose

PATTERNS = {  # how deep each group is beside the others (2301.01821 section 3)
    "increasing": (1, 2, 3, 4),
    "uniform": (1, 1, 1, 1),
    "decreasing": (4, 3, 2, 1),
    "spindle": (1, 2, 2, 1),
    "bottleneck": (2, 1, 1, 2),
}


def sizes(pattern, L):
    """How many of L layers each group has, as near to its share as whole numbers come; one at least, if L allows."""
    shares = [L * w / sum(PATTERNS[pattern]) for w in PATTERNS[pattern]]
    found = [int(L >= len(shares))] * len(shares)
    while sum(found) < L:
        most = max(range(len(shares)), key=lambda g: shares[g] - found[g])
        found[most] += 1
    return found


def checked(name):
    """ "spindle 2", written so. PeftlabError for another pattern or number."""
    pattern, _, number = name.partition(" ")
    choose(pattern, PATTERNS, "grouping of layers")
    groups = len(PATTERNS[pattern])
    if number not in map(str, range(1, groups + 1)):
        raise PeftlabError(f"a group of layers is written like '{pattern} 2', from 1 to {groups}, not {name!r}")
    return name


def layers_of(model, name):
    """The layers of that group. Of T5 both stacks are divided; where layers are fewer than groups some are empty."""
    pattern, number = checked(name).split()
    first, found = 0, []
    for stack in (s for s in model.modules() if isinstance(s, nn.ModuleList) and hasattr(next(iter(s), None), "site")):
        each = sizes(pattern, len(stack))
        start = first + sum(each[: int(number) - 1])
        found += range(start, start + each[int(number) - 1])
        first += len(stack)
    return found
