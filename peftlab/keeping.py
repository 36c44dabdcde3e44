"""What a run leaves for others: trained once, kept under `home()`, and read by whoever needs the same."""

import contextlib
import os
import pathlib
import sys

from .errors import PeftlabError
from .paths import home

ASK = 0.2  # seconds between two looks at Stop by one who waits


class Stopped(PeftlabError):
    """Stop was pressed while something was trained that a run builds on."""


@contextlib.contextmanager
def told(consequence):
    """A full disk loses nothing that is in memory: say so in one sentence and go on."""
    try:
        yield
    except OSError as problem:
        print(f"peftlab: {consequence}: {problem.strerror or problem} ({home()})", file=sys.stderr)


def kept(path, make, what, stop=None, fresh=False):
    """The tensors at `path`; those of `make()` when they are not there yet (or `fresh`), which are then kept.

    Of the processes that need the same, one makes it and the others wait for it. Stopped when stop() comes true there.
    """
    from safetensors.torch import load_file, save_file

    with turn(path, stop):
        if path.exists() and not fresh:
            return load_file(path)
        state = make()
        put(path, lambda beside: save_file(state, beside), f"{what} could not be kept, it is trained again next time")
        return state


def put(path, write, consequence):
    """Let `write(where)` make the file at `path`, whole or not at all; when it cannot, `consequence` is told."""
    with told(consequence):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(f"{path}.{os.getpid()}")
        os.replace(f"{path}.{os.getpid()}", path)


@contextlib.contextmanager
def turn(path, stop=None):
    """One process at a time; but those of one distributed run train together, and would wait for each other for ever.

    Nobody waits for what cannot be kept: then there is no lock, and `told` says why when it is tried.
    """
    import filelock

    lock = filelock.FileLock(path.parents[1] / "locks" / f"{path.stem}.lock")
    with contextlib.ExitStack() as within:
        while int(os.environ.get("WORLD_SIZE", "1")) == 1 and not lock.is_locked:
            try:
                pathlib.Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
                within.enter_context(lock.acquire(timeout=ASK))
            except filelock.Timeout:
                if stop and stop():
                    raise Stopped(f"stopped while another process trains {path.stem}") from None
            except OSError:
                break
        yield
