"""What the tests of the theory share: each table, computed once."""

import numpy as np
import pytest

from peftlab import best_mask, projection, theory

SMALL = dict(p=(0.1, 0.5, 0.9, 0.99), n=(15, 40), d=(4,), seeds=range(5))


def rows_of(loss="squares", n=15, d=4, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return theory.drawn(n, d, loss, scale, 0.5, rng, np.cumsum(rng.normal(size=(2, d)), 0))


@pytest.fixture(scope="module")
def soft():
    return theory.stability(**SMALL)


@pytest.fixture(scope="module")
def one_mask():
    return theory.stability(**theory.ONE_MASK | dict(n=(40,), d=(10,), p=(0.1, 0.5, 0.9), seeds=range(4)))


@pytest.fixture(scope="module")
def quadratic():
    return best_mask.quadratic(spread=(0.0, 1.0, 2.0), draws=50, seeds=range(3))


@pytest.fixture(scope="module")
def net():
    return best_mask.net(shift=(0.001, 1.0), seeds=range(3), n=8)


@pytest.fixture(scope="module")
def jumps():
    return projection.projections(share=(0.05, 1.0), every=60, rounds=3, d=60, n=30, seeds=range(2))
