"""What a run leaves for others is trained by one process, and the others wait for it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from peftlab.keeping import Stopped, kept


def never():
    raise AssertionError("the other one makes it")


@pytest.fixture
def slow(tmp_path):
    """(path, what one process makes there, once it may go on): it has begun."""
    begun, go_on = threading.Event(), threading.Event()

    def make():
        begun.set()
        assert go_on.wait(30)
        return dict(w=torch.ones(2))

    with ThreadPoolExecutor(1) as pool:
        path = tmp_path / "deltas" / "a.safetensors"
        first = pool.submit(kept, path, make, "a source")
        assert begun.wait(30)
        yield path, first, go_on
        go_on.set()


def test_one_makes_it_and_the_other_waits(slow):
    path, first, go_on = slow
    looks = []

    def stop():
        looks.append(path.exists())
        go_on.set()

    assert torch.equal(kept(path, never, "a source", stop)["w"], torch.ones(2))
    assert looks and not looks[0] and torch.equal(first.result()["w"], torch.ones(2))
    assert torch.equal(kept(path, never, "a source")["w"], torch.ones(2)), "and found from then on"


def test_stop_ends_the_waiting_and_not_the_work(slow):
    path, first, go_on = slow
    with pytest.raises(Stopped, match="another process trains a"):
        kept(path, never, "a source", lambda: True)
    go_on.set()
    assert first.result() and path.exists()


def test_processes_of_one_distributed_run_do_not_wait_for_each_other(slow, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert kept(slow[0], lambda: dict(w=torch.zeros(1)), "a source")["w"] == 0


def test_who_breaks_off_leaves_the_turn_to_the_next(tmp_path):
    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "deltas" / "a", broken, "a source")
    assert kept(tmp_path / "deltas" / "a", lambda: dict(w=torch.ones(1)), "a source")["w"] == 1
    assert kept(tmp_path / "deltas" / "a", lambda: dict(w=torch.zeros(1)), "a source", fresh=True)["w"] == 0


def test_what_cannot_be_kept_is_made_and_told(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert kept(tmp_path / "file" / "deltas" / "a", lambda: dict(w=torch.ones(1)), "a source")["w"] == 1
    assert "a source could not be kept, it is trained again next time: " in capsys.readouterr().err
