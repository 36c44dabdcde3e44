"""Plain tables for a terminal, and rows on disk with the versions and the machine that they come from."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import NamedTuple

import torch

from ..errors import PeftlabError

PACKAGES = ("peftlab", "torch", "transformers", "peft", "accelerate")


class Column(NamedTuple):
    key: str
    heading: str
    form: str = ""

    def cell(self, row):
        value = row.get(self.key)
        return "–" if value is None else format(value, self.form)

    @property
    def left(self):
        return not self.form


def table(rows, columns):
    """Lines of a table: words on the left of their column, numbers on the right."""
    cells = [[c.heading for c in columns], *([c.cell(row) for c in columns] for row in rows)]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    put = lambda text, c, w: text.ljust(w) if c.left else text.rjust(w)
    return ["  ".join(map(put, line, columns, wide)).rstrip() for line in cells]


def versions():
    """Package -> version of what was measured; those that are not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(python=platform.python_version(), **found)


def machine(device="cpu"):
    """What the rows were measured on."""
    there = dict(system=platform.system(), cpu=cpu(), cores=os.cpu_count(), threads=torch.get_num_threads())
    return there | (dict(gpu=torch.cuda.get_device_name()) if device == "cuda" else {})


def cpu():
    """The model of the CPU in words."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def append(path, row):
    """Add a row to a file, a plain line of JSON: these are no runs, and no ledger reads them."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def file_in(folder, suite):
    """`bench-<suite>.jsonl` in a folder, which is made. PeftlabError when it cannot be written."""
    path = pathlib.Path(folder) / f"bench-{suite}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as problem:
        raise PeftlabError(f"{path} cannot be written ({problem.strerror}); choose another folder with --out") from None
    return path


def facts(suite, options):
    """What every row of a suite says of itself: when, how, with which versions and on which machine."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    how = ("size", "device", "precision", "compile", "batch", "tokens", "repeats", "builds")
    how = {k: getattr(options, k) for k in how}
    return dict(suite=suite, when=when) | how | dict(versions=versions(), machine=machine(options.device))
