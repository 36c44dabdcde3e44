"""What the tests of go.py and of the packaging share: the project, a Python that notes what it is asked, answers."""

import importlib.util
import json
import os
import pathlib
import time
import tomllib
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")


@pytest.fixture
def go(tmp_path, monkeypatch):
    """go.py as a module, its environment in a temporary folder."""
    spec = importlib.util.spec_from_file_location("go", ROOT / "go.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ENV", tmp_path / "env")
    monkeypatch.delenv("PEFTLAB_TORCH", raising=False)
    return module


def stand_in(go, fail="no-such-word", says="", without="import torch"):
    """A Python for go.ENV that notes its arguments; it fails, saying `says`, when they contain `fail`."""
    log, path = go.ENV.parent / "calls", go.python()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$*" >> "{log}"\ncase "$*" in *"{fail}"*) echo "{says}"; exit 1;; '
                    f'*"{without}"*) exit 1;; esac\n')
    path.chmod(0o755)
    return lambda: [line for line in log.read_text().splitlines() if "pip install" in line]


def answer(url, patience=30):
    """The JSON at `url`, once the server listens."""
    end = time.monotonic() + patience
    while True:
        try:
            return json.load(urllib.request.urlopen(url, timeout=10))
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
