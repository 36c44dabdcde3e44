"""Suite labs: how long each lab takes where nobody is there to click, its peak memory, and how long imports take."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from unittest.mock import patch

from .. import labs
from .tables import Column

MODULES = ("peftlab", "peftlab.plots")
COLUMNS = (
    Column("name", "lab or import"),
    Column("seconds", "seconds", ".2f"),
    Column("peak_rss_mb", "peak RSS MB", ".0f"),
    Column("error", "error"),
)


def rows(options):
    """One row for each lab, with a ledger that knows nothing before the first, then one for each import."""
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, PEFTLAB_HOME=home):
        for row in labs.run_labs(options.labs, profile="ci", jobs=1):
            yield row | dict(error=last_line(row["error"]))
    for name in MODULES:
        yield dict(name=f"import {name}", seconds=imported(name, 5 if options.size == "full" else 1))


def last_line(text):
    return text.strip().splitlines()[-1] if text and text.strip() else None


def imported(module, times):
    """Seconds that a fresh Python takes to start and import a module: the median of so many."""
    env, found = dict(os.environ), []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=env, stdin=subprocess.DEVNULL)
        found.append(time.perf_counter() - start)
    return statistics.median(found)
