"""What labs share: profiles, set-up, and running them without a browser. `show` and `check` are in `teach`."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from . import paths
from .errors import PeftlabError, choose
from .teach import answers, check, headless, show

__all__ = ["begin", "check", "find", "headless", "on_colab", "run_labs", "show", "synchronous"]


class Profile(NamedTuple):
    """share: part of the steps that a run takes; seeds: seeds per measurement; device: where runs take place."""

    share: float
    seeds: int
    device: str = "cpu"


PROFILES = {"interactive": Profile(1, 3), "ci": Profile(0.1, 2), "cpu": Profile(1, 5), "gpu": Profile(1, 5, "cuda")}


def on_colab():
    return "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules


def synchronous():
    """On Colab a thread cannot reach the page while no cell runs, so runs happen inside the cell there too."""
    return headless() or on_colab()


class Lab:
    """The profile at work in a lab: `lab.steps(200)` is 200, or fewer in ci; `lab.seeds` is a range."""

    def __init__(self, profile):
        self.profile, self.share, n, self.device = profile, *PROFILES[choose(profile, PROFILES, "profile")]
        self.seeds, self.headless = range(n), profile != "interactive"

    def steps(self, n):
        return max(10, int(n * self.share))

    def press(self, panel):
        """Where nobody is here to click: press Run on a panel, for a few steps, and see that a result comes of it."""
        if self.headless:
            panel.controls.steps.value = self.steps(200)
            panel.runner.run_button.click()
            if not panel.results:
                raise PeftlabError(f"the panel has no result: {panel.text['msg'].value}")

    def __repr__(self):
        return f"profile {self.profile}: {self.share:.0%} of the steps, {len(self.seeds)} seeds, on {self.device}"


def begin(profile="interactive"):
    """Set up a lab once: figures that need no network, one thread for training beside the page, and the profile."""
    import plotly.io as pio
    import torch

    from .kernels import CACHES

    for cache, kernels in CACHES.items():
        os.environ.setdefault(cache, kernels)
    lab = Lab(profile)
    if profile != "interactive":
        os.environ["PEFTLAB_HEADLESS"] = "1"
    pio.renderers.default = os.environ.get("PEFTLAB_RENDERER", "colab" if on_colab() else "plotly_mimetype")
    torch.set_num_threads(int(os.environ.get("PEFTLAB_THREADS", "1")))
    return lab


def folder():
    """Where the labs lie: `labs/` beside the package, inside it, or here."""
    places = [paths.PACKAGE.parent / "labs", paths.PACKAGE / "labs", pathlib.Path("labs")]
    return next((p for p in places if any(p.glob("*.ipynb"))), places[0])


def find(names=()):
    """Notebooks for names such as "00_tour", "00" or a path; all of them without names."""
    every = {p.stem: p for p in sorted(folder().glob("*.ipynb"))}
    return [_find(n, every) for n in names] if names else list(every.values())


def _find(name, every):
    if str(name).endswith(".ipynb") and pathlib.Path(name).exists():
        return pathlib.Path(name)
    stem = pathlib.Path(name).stem
    starts = [s for s in every if s.startswith(stem)]
    return every[starts[0] if len(starts) == 1 else choose(stem, every, "lab")]


def run_labs(names=(), profile="ci", out=None, jobs=2, timeout=600):
    """Run labs without a browser, each in a process of its own; returns [{name, ok, seconds, peak_rss_mb, error,
    cells, lines, words}], the last three being what there is to read.

    Executed copies go to the folder `out`; that of a failed lab shows where it failed. Nothing in `labs/` is changed.
    """
    choose(profile, PROFILES, "profile")
    labs, out = find(names), pathlib.Path(out or tempfile.mkdtemp(prefix="peftlab-labs-"))
    if not labs:
        raise PeftlabError(f"there are no labs in {folder()}; run this from a checkout, or name a notebook")
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(lambda lab: run_lab(lab, profile, out, timeout), labs))


def run_lab(lab, profile, out, timeout):
    """One lab in a process of its own, because only a process has a time limit and a peak memory."""
    report, start = out / f".{lab.stem}.json", time.monotonic()
    report.unlink(missing_ok=True)
    env = dict(os.environ, PEFTLAB_HEADLESS="1", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    job = subprocess.Popen(
        [sys.executable, "-m", "peftlab.labs", str(lab), str(out / lab.name), profile, str(report)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _, errors = job.communicate(timeout=timeout)
        row = (
            json.loads(report.read_text())
            if report.exists()
            else dict(ok=False, peak_rss_mb=None, error=errors[-2000:])
        )
    except subprocess.TimeoutExpired:
        end(job)
        row = dict(ok=False, peak_rss_mb=None, error=f"took longer than {timeout} s")
    report.unlink(missing_ok=True)
    return dict(
        name=lab.stem,
        ok=row["ok"],
        seconds=round(time.monotonic() - start, 1),
        peak_rss_mb=row["peak_rss_mb"],
        error=row["error"],
        **size(lab),
    )


def size(lab):
    """How much there is to read: code cells, their lines, and words of text."""
    import nbformat

    try:
        cells = nbformat.read(lab, as_version=4).cells
    except (OSError, ValueError):  # no notebook: `error` has told it
        return dict(cells=0, lines=0, words=0)
    code = [c.source for c in cells if c.cell_type == "code"]
    words = sum(len(c.source.split()) for c in cells if c.cell_type == "markdown")
    return dict(cells=len(code), lines=sum(len(s.splitlines()) for s in code), words=words)


def end(job):
    """First politely, so that papermill can take its kernel down with it."""
    job.terminate()
    try:
        job.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        job.kill()
        job.communicate()


def execute(lab, copy, profile):
    """Run one notebook with papermill; the result goes to `copy`. Raises when a cell fails or has no such parameter."""
    import papermill

    given = dict(profile=profile)
    if missing := set(given) - set(papermill.inspect_notebook(str(lab))):
        raise PeftlabError(
            f"{lab.name} has no parameter {', '.join(sorted(missing))}; one cell needs the tag `parameters`"
        )
    with tempfile.TemporaryDirectory() as scratch:
        solved = solve(lab, pathlib.Path(scratch) / lab.name)
        papermill.execute_notebook(
            str(solved),
            str(copy),
            parameters=given,
            kernel_name="python3",
            cwd=str(lab.parent),
            progress_bar=False,
            store_widget_state=False,
        )


def solve(lab, copy):
    """A copy of the lab: each cell tagged `exercise` gets the reference solution of the class that it begins."""
    import nbformat

    book, known = nbformat.read(lab, as_version=4), answers()
    for cell in book.cells:
        if "exercise" in cell.metadata.get("tags", []):
            cell.source = known[exercise(cell)][0]
    nbformat.write(book, copy)
    return copy


def exercise(cell):
    """The name of what a learner writes in an exercise cell: its first class or function."""
    return re.search(r"^(?:class|def) (\w+)", cell.source, re.M)[1]


def peak():
    """Largest resident set of a finished child process in MB: the kernel's. None where the system cannot tell."""
    try:
        import resource
    except ImportError:
        return None
    return round(
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024), 1
    )


def main(lab, copy, profile, report):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds papermill, which then ends its kernel
    error = None
    try:
        execute(pathlib.Path(lab), pathlib.Path(copy), profile)
    except Exception as e:
        error = f"{type(e).__name__}: {e}"[-3000:]
    pathlib.Path(report).write_text(json.dumps(dict(ok=error is None, peak_rss_mb=peak(), error=error)))


if __name__ == "__main__":
    main(*sys.argv[1:])
