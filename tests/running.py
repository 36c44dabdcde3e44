"""What the tests of runs share: a place with a small backbone and a task, and a run that is done."""

import pathlib
import sys

import pytest
from small import backbone, home, sentences, write  # noqa: F401

from peftlab.runs import run
from peftlab.specs import spec

R = sys.modules["peftlab.runs"]
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny backbone and a task that it can learn, on disk."""
    folder = tmp_path_factory.mktemp("place")
    return dict(backbone=backbone(folder / "tiny"), task=write(folder / "task.tsv", sentences(200)))


def tiny_spec(place, method="lora", **more):
    return spec(method, **place | dict(steps=20, batch=16, every=5, lr=1e-2) | more)


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    """One finished run and the home that it was kept in."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLAB_HOME", str(folder))
        return run(tiny_spec(place)), folder
