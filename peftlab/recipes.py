"""A recipe is a JSON-able list of rows (method, where, layers, settings): a method, a hybrid, a widget's state."""

from . import grouping
from .errors import PeftlabError, choose
from .methods import METHODS, Hybrid, get


def recipe(what, where=None, layers=None, **settings):
    """A complete, checked list of rows; equal meanings give equal recipes, so that equal runs share a hash.

    what: a method's name, a row (dict), or a list of them. where: sites, "q v". layers: None for all, a list, "0-2 5",
    or a group, "spindle 2" (`peftlab.grouping`). A hybrid's name stands for its rows.
    Raises PeftlabError for an unknown method, site or setting, and for a value out of range.
    """
    if isinstance(what, (list, tuple)):
        if where or layers is not None or settings:
            raise PeftlabError("where, layers and settings belong inside the rows when a recipe is a list")
        if not what:
            raise PeftlabError("the recipe is empty; give it at least one row, such as 'lora'")
        return [row for w in what for row in recipe(w)]
    if isinstance(what, dict):
        for key in what:
            choose(key, ("method", "where", "layers", "settings"), "key in a recipe row")
        if "method" not in what:
            raise PeftlabError("a recipe row needs a method, such as {'method': 'lora'}")
        return recipe(what["method"], what.get("where"), what.get("layers"), **what.get("settings") or {})
    m = get(what)
    for name in settings:
        choose(name, m.knobs, f"setting of {m.name}")
    values = {n: k.checked(n, settings.get(n, k.default)) for n, k in m.knobs.items()}
    return m.rows(where, layers, values)


def name_of(rows):
    """The method, or the hybrid of any size, whose rows these are; several that are no hybrid's are joined by +."""
    hybrids = (m.name for m in METHODS.values() if isinstance(m, Hybrid) and alike(m.parts(), rows))
    return next(hybrids, " + ".join(dict.fromkeys(row["method"] for row in rows)))


def title_of(rows):
    """The titles of what `name_of` names."""
    return " + ".join(get(name).title for name in name_of(rows).split(" + "))


def alike(parts, rows):
    """Whether rows are those of a hybrid but for their numbers and, where it leaves that open, their layers."""
    words = lambda row: {n: v for n, v in row["settings"].items() if isinstance(v, str)}
    shape = lambda rows: [(row["method"], row["where"], words(row)) for row in rows]
    return shape(parts) == shape(rows) and all(
        part["layers"] in (None, row["layers"]) for part, row in zip(parts, rows, strict=True)
    )


def chosen(m, where):
    """The sites, each allowed for method `m`, in a fixed order."""
    names = (m.where if where is None else " ".join(where) if isinstance(where, (list, tuple)) else where).split()
    for w in names:
        choose(w, m.sites, f"site for {m.name}")
    if not names and m.where:
        raise PeftlabError(f"{m.name} needs at least one site, for example {m.where!r}")
    return " ".join(s for s in m.sites if s in names)


def span(layers):
    """None, a sorted list of layer numbers ("0-2 5" means [0, 1, 2, 5]), or the name of a group, "spindle 2"."""
    if layers is None:
        return None
    if isinstance(layers, str) and layers[:1].isalpha():
        return grouping.checked(layers)
    if isinstance(layers, str):
        try:
            ends = [[int(n) for n in part.split("-")] for part in layers.replace(",", " ").split()]
            layers = [i for e in ends for i in range(e[0], e[-1] + 1)]
        except ValueError:
            raise PeftlabError(f"layers are written like '0-2 5', not {layers!r}") from None
    layers = [layers] if isinstance(layers, int) else list(layers)
    if not layers or any(isinstance(i, bool) or not isinstance(i, int) for i in layers):
        raise PeftlabError(
            f"layers must be whole numbers, at least one of them, not {layers!r}; leave them out for all layers"
        )
    return sorted(set(layers))
