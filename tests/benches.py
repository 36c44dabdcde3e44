"""What the tests of the sweep and of the gate share: a tiny bench, and runs that take no time."""

import pytest
import small
from small import home  # noqa: F401

from peftlab.world import embedded, sweep, verify

TINY = dict(steps=2, size=8)


@pytest.fixture
def tiny(tmp_path, monkeypatch, home):
    """A bench of one tiny backbone, two arms with two rates, and one task; quiet, with its own files."""
    name = small.backbone(tmp_path / "tiny-encoder")
    monkeypatch.setattr(sweep, "BENCH", {name: sweep.Part(("full", "lora"), ("reviews",))})
    arms = {m: sweep.Arm(dict(recipe=m), (1e-3, 1e-2)) for m in ("full", "lora")}
    monkeypatch.setattr(sweep, "ARMS", arms)
    monkeypatch.setattr(sweep, "file", lambda: tmp_path / "sweep.jsonl")
    return name


def fake(monkeypatch, score=lambda one: 0.5):
    """Runs that take no time; returns the list of those that were made."""
    made = []

    def outcomes(trials, jobs=1):
        for one in trials:
            made.append(one)
            given = {k: one.spec[k] for k in ("backbone", "task", "seed", "lr", "steps")}
            given |= dict(key=one.key, method=one.arm, sha256=one.sha256, versions={})
            given |= dict(version=embedded.version(one.spec["task"]))
            given |= dict(validation=score(one), score=score(one), metric="accuracy", chance=0.5, percent=1.0)
            yield given | dict(seconds=1.0, wall=2.0, diverged=False)

    monkeypatch.setattr(sweep, "outcomes", outcomes)
    monkeypatch.setattr(verify, "outcomes", outcomes)
    return made
