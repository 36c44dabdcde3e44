"""The registry: one decorator carries a method's place in the three taxonomies, its paper, sites and knobs.

Catalogue, sliders, law tests and league table are all made from it; there is no second list.
"""

import functools
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from ..errors import PeftlabError, choose

METHODS = {}


@dataclass(frozen=True)
class Knob:
    """One setting of a method: its default, the range a slider offers, and the least value that makes sense at all."""

    default: float
    low: float
    high: float
    label: str
    log: bool = False

    @property
    def kind(self):
        return type(self.default)

    def checked(self, name, value):
        """`value` as this knob's type. PeftlabError for a non-number, a needless fraction, or one below `low`."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (self.kind is int and value != int(value)):
            raise PeftlabError(
                f"{name} ({self.label}) must be {'a whole number' if self.kind is int else 'a number'}, not {value!r}"
            )
        if value < self.low:
            raise PeftlabError(f"{name} ({self.label}) must be at least {self.low}, not {value}")
        return self.kind(value)


@dataclass(frozen=True)
class Choice:
    """One setting of a method that is a word out of a few."""

    default: str
    options: tuple
    label: str
    kind = str

    def checked(self, name, value):
        return choose(value, self.options, f"{name} ({self.label})")


@dataclass(frozen=True)
class Tasks:
    """One setting of a method that names tasks, "reviews topic": it builds on deltas that were trained on them."""

    default: str
    label: str
    example = "reviews topic"
    kind = str

    def checked(self, name, value):
        from ..world import embedded

        if not isinstance(value, str):
            raise PeftlabError(f"{name} ({self.label}) are names of tasks, such as 'reviews topic', not {value!r}")
        for n in value.split():
            if embedded.known(n):
                choose(n, embedded.names(), f"task among the {name}")
        return " ".join(value.split())


@dataclass(frozen=True)
class Words:
    """One setting of a method that is a few words of the backbone's vocabulary, or none."""

    default: str
    label: str
    example: str
    kind = str

    def checked(self, name, value):
        if not isinstance(value, str):
            raise PeftlabError(f"{name} ({self.label}) are written like {self.example!r}, not {value!r}")
        return " ".join(value.split())


class Peft(NamedTuple):
    """How Hugging Face PEFT's files tell of a method: facts in the config, settings and tensors (our names -> theirs).

    patterns: the key for a setting that differs between layers. frozen: tensors that are the same everywhere and
    follow from the config. more: what else the config should say.
    """

    facts: dict
    settings: dict
    tensors: dict
    patterns: dict = {}
    frozen: dict = {}
    more: dict = {}


@dataclass(frozen=True)
class Method:
    """A registered method. review, delta_tuning, sparse_view: its place in the three taxonomies ("–": none)."""

    name: str
    cls: type
    title: str
    review: str
    delta_tuning: str
    sparse_view: str
    paper: str
    lr: float
    where: str
    aliases: tuple = ()
    knobs: dict = field(default_factory=dict)
    peft: Peft | None = None

    @property
    def equation(self):
        return self.cls.__doc__.strip().splitlines()[0]

    @property
    def sites(self):
        return list(self.cls.sites)

    @property
    def defaults(self):
        return {n: k.default for n, k in self.knobs.items()}

    @functools.cached_property
    def merges(self):
        return self.cls.merges(self.defaults)

    @property
    def by_row(self):
        """Whether it can be for some rows of a batch only."""
        return self.cls.by_row

    @property
    def compiles(self):
        """Whether torch.compile makes one graph of the model with it, without a break, and for all steps the same."""
        return self.cls.uncompiled is None

    def rows(self, where, layers, settings):
        """What a recipe that asks for this method with these checked settings has."""
        from ..recipes import chosen, span

        return [dict(method=self.name, where=chosen(self, where), layers=span(layers), settings=settings)]

    def json(self):
        keys = (
            "name",
            "aliases",
            "title",
            "equation",
            "review",
            "delta_tuning",
            "sparse_view",
            "paper",
            "where",
            "sites",
            "merges",
            "compiles",
            "lr",
        )
        knobs = {n: asdict(k) for n, k in self.knobs.items()}
        return {k: list(v) if isinstance(v := getattr(self, k), tuple) else v for k in keys} | dict(knobs=knobs)


def method(name, **facts):
    """Class decorator: a name and the facts of `Method` (title, review, paper, where, lr, knobs, …)."""

    def keep(cls):
        METHODS[name] = Method(name=name, cls=cls, **facts)
        return cls

    return keep


@dataclass(frozen=True)
class Hybrid(Method):
    """A method that is a recipe of others: `cls` is a function that makes their rows of its settings."""

    where: str = ""

    @property
    def sites(self):
        return list(dict.fromkeys(site for row in self.parts() for site in row["where"].split()))

    @functools.cached_property
    def merges(self):
        return all(get(row["method"]).merges for row in self.parts())

    @property
    def by_row(self):
        return all(get(row["method"]).by_row for row in self.parts())

    @property
    def compiles(self):
        return all(get(row["method"]).compiles for row in self.parts())

    def parts(self):
        """Its rows, with the settings as they are by default."""
        return self.rows(None, None, self.defaults)

    def json(self):
        return super().json() | dict(where=" ".join(self.sites))

    def rows(self, where, layers, settings):
        from ..recipes import recipe

        rows = recipe(self.cls(**settings))
        if where is not None or (layers is not None and any(row["layers"] is not None for row in rows)):
            raise PeftlabError(
                f"{self.name} is a recipe, and its rows say {'where' if where is not None else 'in which layers'} they "
                f"are; leave it out, or write rows of your own, as pl.recipe({self.name!r}) shows them"
            )
        return rows if layers is None else [row for one in rows for row in recipe(one | dict(layers=layers))]


def hybrid(name, **facts):
    """Function decorator: as `method`, for a function of its settings that gives the rows of a recipe."""

    def keep(rows):
        METHODS[name] = Hybrid(name=name, cls=rows, **facts)
        return rows

    return keep


def get(name):
    """The Method of that name or alias. Raises PeftlabError with the nearest names."""
    names = {alias: m for m in METHODS.values() for alias in (m.name, *m.aliases)}
    return names[choose(name, names, "method")]


def catalogue():
    """All methods as JSON-able dicts, in the order of the review's categories."""
    return [m.json() for m in METHODS.values()]


def fit_width(value, limit, what, m):
    """Refuse a rank or bottleneck wider than the layer it squeezes."""
    if value > limit:
        raise PeftlabError(
            f"{what} {value} is above the width {limit} of the layer at {getattr(m, 'site', '?')}; take at most {limit}"
        )
    return value


# importing registers; the order is the catalogue's
from . import (  # noqa: E402, F401, I001
    baselines,
    adapters,
    fusion,
    conditional,
    prompts,
    templates,
    transfer,
    additive,
    side,
    partial,
    masked,
    dense_first,
    reparameterized,
    structured,
    subspace,
    ranks,
    pruning,
    quantized,
    multitask,
    galore,
    pruned,
    parts,
    hybrids,
    gates,
    unified,
)
