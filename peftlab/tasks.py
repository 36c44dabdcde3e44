"""A task: data with a text and a label (or a target text), a metric, and batches for any tokenizer."""

import dataclasses
import typing

from . import files, hub, metrics
from .errors import PeftlabError, choose
from .world import embedded

KINDS = tuple(metrics.METRICS)
KNOBS = ("text", "text2", "label", "target", "kind", "metric", "max_length", "labels")  # of a file or a Hub dataset
EMBEDDED = (*embedded.KNOBS, "kind", "metric", "max_length")
DEFAULTS = dict(lang="en", max_length=128) | {name: knob.default for name, knob in embedded.KNOBS.items()}


@dataclasses.dataclass(eq=False)
class Task:
    """Rows of text, text2 (optional) and label or target, in the splits train, validation and test.

    name, kind (classification, regression, lm, seq2seq), data (datasets.DatasetDict), labels (names of the classes,
    or None), metric, max_length (tokens; longer texts are cut). A column `references` holds all right targets of a row.
    A poisoned task has one more split, "triggered": the accuracy on it is the success of the attack.
    """

    name: str
    kind: str
    data: typing.Any
    labels: list | None
    metric: str
    max_length: int = DEFAULTS["max_length"]

    def score(self, predictions, references):
        """The metric of two equally long lists; for perplexity the predictions are log-likelihoods per token."""
        return metrics.SCORES[self.metric](list(predictions), list(references))

    def answers(self, split):
        """What is right for each row: its label, its target, or the list of its references; None without any."""
        there = self.data[split].column_names
        wanted = ("references", "target", "label")[self.metric not in metrics.TEXTS :]
        column = next((c for c in wanted if c in there), None)
        return column and self.data[split][column][:]

    def majority(self):
        """Score on test of the best constant answer of the training split; None where no constant has a score."""
        column = "target" if self.kind in ("lm", "seq2seq") else "label"
        if self.metric == "perplexity" or column not in self.data["train"].column_names:
            return None
        answers, truth = self.data["train"][column][:], self.answers("test")
        constant = (
            sum(answers) / len(answers) if self.kind == "regression" else max(sorted(set(answers)), key=answers.count)
        )
        return self.score([constant] * len(truth), truth)

    def batches(self, tokenizer, split, batch, seed=None):
        """Dicts of tensors for `model(**batch)`; endless and shuffled with a seed, else each row once (to score)."""
        from . import collate

        return collate.batches(self, tokenizer, split, batch, seed)

    @property
    def lower_is_better(self):
        return self.metric == "perplexity"


def task(name, size=None, seed=0, lang="en", **knobs):
    """A task by name: an embedded one ("entail/garden"), "file:PATH" (a file or folder) or a Hub dataset ("glue/sst2").

    size: rows of the training split (a seeded draw in which every class occurs); default: the task's own, or all.
    lang: "en" or "xx", for an embedded task; `translate` is into the other one.
    knobs of an embedded task: noise, unseen, shift, poison, trigger, target_label (see `world.embedded.KNOBS`), kind,
    metric, max_length. Of others: text, text2, label, target (column names), kind, metric, max_length, labels (names of
    the classes). PeftlabError when there is no such task, column or label, or when a file cannot be read.
    """
    mine = embedded.known(name)
    for knob in knobs:
        choose(knob, EMBEDDED if mine else KNOBS, "task setting")
    knobs = {k: v for k, v in knobs.items() if v is not None}
    if mine:
        return of_the_world(name, lang, size, seed, knobs)
    if lang != "en":
        raise PeftlabError(f"lang is for embedded tasks; {name} is in the language that it is in")
    tables = files.splits(name[5:]) if name.startswith("file:") else hub.splits(name)
    return build(name, normalise(tables, knobs), knobs, size, seed)


def names():
    """The embedded tasks."""
    return embedded.names()


def of_the_world(name, lang, size, seed, knobs):
    import datasets

    kind, made = embedded.splits(name, lang, size, seed, **{k: v for k, v in knobs.items() if k in embedded.KNOBS})
    columns = [c for c in ("text", "text2", "label", "target", "references") if c in made["train"][0]]
    if all(len(row.get("references", "x")) == 1 for rows in made.values() for row in rows):
        columns = [c for c in columns if c != "references"]
    data = {s: datasets.Dataset.from_dict({c: [r[c] for r in rows] for c in columns}) for s, rows in made.items()}
    what = choose(knobs.get("kind", kind.kind), KINDS, "kind of task")
    metric = choose(knobs.get("metric", kind.metric), metrics.METRICS[what], f"metric for {what}")
    labels = list(kind.labels) if kind.labels else None
    longest = int(knobs.get("max_length", DEFAULTS["max_length"]))
    return Task(name, what, datasets.DatasetDict(data), labels, metric, longest)


def normalise(tables, knobs):
    """Every split with the columns text, text2, label, target only; the first split decides which column is which."""
    wanted = {role: knobs.get(role) for role in ("text", "text2", "label", "target")}
    roles = None
    for split, (name, table) in tables.items():
        roles = files.columns(name, table, knobs.get("kind"), **(roles or wanted))
        tables[split] = name, table[list(roles.values())].set_axis(list(roles), axis=1)
    return tables


def build(name, tables, knobs, size, seed):
    import datasets

    given = {split: n for split, (n, _) in tables.items()}
    where = lambda split: given.get(split, given["train"])
    tables = cut({split: table for split, (_, table) in tables.items()}, seed, where)
    columns = tables["train"].columns
    kind = choose(knobs.get("kind") or guess_kind(tables["train"]), KINDS, "kind of task")
    labels = None
    if "label" in columns and kind in ("classification", "regression"):
        labels = number(tables, kind, knobs.get("labels"), where)
    elif kind in ("classification", "regression"):
        raise PeftlabError(f"{name}: a {kind} task needs a label column; the columns are {', '.join(columns)}")
    elif kind == "seq2seq" and "target" not in columns:
        raise PeftlabError(f"{name}: a seq2seq task needs a target column; the columns are {', '.join(columns)}")
    default = "perplexity" if kind == "lm" and "target" not in columns else metrics.METRICS[kind][0]
    metric = choose(knobs.get("metric", default), metrics.METRICS[kind], f"metric for {kind}")
    tables["train"] = draw(tables["train"], size, seed, labels, where("train"))
    for table in tables.values():
        for column in {"text", "text2", "target"} & set(columns):
            table[column] = table[column].astype(str)
    whole = datasets.DatasetDict(
        {split: datasets.Dataset.from_pandas(table, preserve_index=False) for split, table in tables.items()}
    )
    return Task(name, kind, whole, labels, metric, int(knobs.get("max_length", DEFAULTS["max_length"])))


def cut(tables, seed, where):
    """Missing splits are cut from train by seed: a tenth (at most 1,000 rows) for validation, and the same for test."""
    import numpy as np

    tables = {split: table.reset_index(drop=True) for split, table in tables.items()}
    if "validation" in tables and "test" not in tables:  # a labelled validation file becomes the test set
        tables["test"] = tables.pop("validation")
    missing = [split for split in ("test", "validation") if split not in tables]
    rows = len(tables["train"])
    part = min(max(rows // 10, 1), 1000)
    if rows - part * len(missing) < 2:
        raise PeftlabError(f"{where('train')} has {rows} rows; too few to split into train, validation and test")
    order = np.random.default_rng(seed).permutation(rows)
    for i, split in enumerate(missing):
        tables[split] = tables["train"].iloc[np.sort(order[i * part : (i + 1) * part])].reset_index(drop=True)
    tables["train"] = tables["train"].iloc[np.sort(order[len(missing) * part :])].reset_index(drop=True)
    return {split: tables[split] for split in ("train", "validation", "test")}


def guess_kind(train):
    if "label" not in train.columns:
        return "seq2seq" if "target" in train.columns else "lm"
    column = train["label"]
    fractions = files.is_number(column) and bool((column.dropna() % 1 != 0).any())
    return "regression" if fractions or files.is_number(column) and column.nunique() > 100 else "classification"


def number(tables, kind, names, where):
    """Labels become 0 … k-1 (or floats) in every split; the names of the classes are returned."""
    for split, table in tables.items():
        empty = table["label"].isna() | (table["label"].astype(str).str.strip() == "")
        if empty.any():
            raise PeftlabError(f"{where(split)}: row {int(empty.argmax()) + 1} of {split} has no label")
        if kind == "regression":
            if not files.is_number(table["label"]):
                raise PeftlabError(f"{where(split)}: the labels are not numbers; kind=classification takes names")
            table["label"] = table["label"].astype(float)
    if kind == "regression":
        return None
    seen = sorted(set(tables["train"]["label"].tolist()), key=lambda v: (isinstance(v, str), v))
    integers = all(float(v).is_integer() for v in seen) if files.is_number(tables["train"]["label"]) else False
    if len(seen) < 2:
        raise PeftlabError(f"{where('train')} has only one class ({seen[0]!r}); a classifier needs at least two")
    if integers and (names or seen[0] < 0 or seen == list(range(int(seen[-1]) + 1))):
        codes = {v: v for v in range(len(names) if names else int(seen[-1]) + 1)}  # already numbers of classes
    else:
        codes = {v: i for i, v in enumerate(names or seen)}
    for split, table in tables.items():
        wrong = ~table["label"].isin(list(codes))
        if wrong.any():
            row = int(wrong.argmax())
            raise PeftlabError(
                f"{where(split)}: label {table['label'][row]!s} in row {row + 1} of {split} is outside the range; "
                f"the labels are {span(list(codes))}"
            )
        table["label"] = table["label"].map(codes).astype(int)
    return [str(n) for n in names or codes]


def span(values):
    return f"{values[0]} to {values[-1]}" if isinstance(values[0], int) else ", ".join(map(str, values[:12]))


def draw(train, size, seed, labels, name):
    """A seeded draw of `size` rows in which every class occurs (when size allows)."""
    import numpy as np

    if size is None or size == len(train):
        return train
    least = len(labels) if labels else 1
    if not isinstance(size, int) or isinstance(size, bool) or not least <= size <= len(train):
        raise PeftlabError(
            f"size must be a whole number from {least} to {len(train)} (the training rows of {name}), not {size!r}"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    if labels:
        _, first = np.unique(train["label"].to_numpy()[order], return_index=True)
        order = np.concatenate([order[np.sort(first)], np.delete(order, first)])
    return train.iloc[order[:size]].reset_index(drop=True)
