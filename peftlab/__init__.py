"""peftlab: learn, try and measure parameter-efficient fine-tuning.

The names below are the public ones; each is imported when it is first used, so that plots and tables need no torch.
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
    "backbones": "backbone embedded prepare sites site_names n_layers head_parameters set_head",
    "delta": "Delta OutputDelta BlockDelta WeightDelta KeyValueDelta TokenDelta",
    "attachment": "attach counts trainable taps",
    "recipes": "recipe",
    "checkpoint": "merge save load",
    "exchange": "save_peft load_peft",
    "mixing": "mix lorahub",
    "remember": "remembered",
    "composing": "switch average serving keep_head",
    "shrinking": "shrink flatten",
    "nearest": "nearest_words",
    "listening": "heard mixture gates",
    "structures": "structure",
    "routing": "routes",
    "overlaps": "overlap",
    "laplace": "Laplace calibration_error",
    "methods": "METHODS Knob Choice Method method get catalogue",
    "tasks": "task Task",
    "specs": "spec",
    "runs": "run trained baselines mask",
    "many": "run_many",
    "results": "Result frame",
    "training": "fit",
    "memory": "footprint measured compared held",
    "masks": "changes",
    "studies": "study",
    "hybrid_studies": "gates_of",
    "searching": "search",
    "fronts": "Search",
    "budgets": "league standings costs",
    "sizes": "by_size",
    "scoring": "evaluate",
    "sparse_league": "comparison",
    "sparse_studies": "rounds",
    "sparse_view": "sparse_models traps",
    "claims": "verdicts",
    "published": "published_status",
    "errors": "PeftlabError",
    "teach": "show check solution",
    "widgets": "panel explore builder",
    "blanks": "blank",
    "world.reading": "grammar",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
_MODULES = ("labs", "plots", "masks", "scores", "sparsity", "theory", "best_mask", "projection")
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"peftlab has no {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return __all__
