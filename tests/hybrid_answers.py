"""What the tests of the exercises of labs 04 and 05 share."""

import pytest

from peftlab.checks import EXERCISES


def either(solution):
    """The test takes the oracle, and then the solution."""
    return pytest.mark.parametrize("f", [EXERCISES[solution.__name__].oracle, solution], ids=["oracle", "solution"])


def mask_of(s, p):
    size = s.abs()
    return (size >= size.flatten().sort(descending=True).values[int(p * s.numel()) - 1]).float()


sigmoid = lambda x, w, b: 1 / (1 + (-(x @ w + b)).exp())
