"""The kinds of task of the micro-world; every module of this package registers its own when it is imported."""

import importlib
import pkgutil

from .registry import KINDS, Example, Kind, kind

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["KINDS", "Example", "Kind", "kind"]
