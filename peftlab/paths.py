"""Where things lie: the shipped data (read only) and the user's home for results and caches."""

import os
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent


def data():
    """The shipped `data/`: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / "data"
    return inside if inside.exists() else PACKAGE.parent / "data"


def home():
    """`PEFTLAB_HOME`, or `peftlab` in the user's cache folder; made when missing."""
    cache = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}.get(sys.platform, "~/.cache")
    base = os.environ.get("PEFTLAB_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", cache), "peftlab")
    folder = pathlib.Path(base).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
