"""What the tests of panels and builders share: a small backbone and a task of their own, and nobody who looks."""

import pytest
import small

home = small.home


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    return dict(
        backbone=small.backbone(folder / "bb"), task=small.write(folder / "reviews.jsonl", small.sentences(240))
    )


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
