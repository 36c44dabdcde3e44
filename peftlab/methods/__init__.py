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
    where: str
    lr: float
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
)
