"""What a run leaves: a Result, and the table of many. Nothing here needs torch."""

import dataclasses

from . import ledger


@dataclasses.dataclass
class Result:
    """One finished (or stopped) run. score is the metric on `split`; baselines holds the scores of the majority answer,
    of head only and of full fine-tuning on the same spec (None where never run); rows are those of `fit`."""

    spec: dict
    hash: str
    task: str
    metric: str
    rows: list = dataclasses.field(default_factory=list)
    split: str = "test"
    score: float | None = None
    validation: float | None = None
    baselines: dict = dataclasses.field(default_factory=dict)
    counts: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    peak: dict = dataclasses.field(default_factory=dict)
    device: str = "cpu"
    versions: dict = dataclasses.field(default_factory=dict)
    stopped: bool = False
    cached: bool = False

    @classmethod
    def of(cls, record):
        """The Result of a ledger record."""
        return cls(**{f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record} | dict(cached=True))

    def json(self):
        """A JSON-able dict of all fields."""
        return dataclasses.asdict(self)


def frame(results=None):
    """A pandas table, one row per Result or ledger record (default: the whole ledger); settings become columns."""
    import pandas as pd

    table = []
    for r in ledger.records() if results is None else results:
        r = r.json() if isinstance(r, Result) else r
        rows, spec = r["spec"]["recipe"], r["spec"]
        flat = dict(method=" + ".join(row["method"] for row in rows), where=" + ".join(row["where"] for row in rows))
        flat |= rows[0]["settings"] if len(rows) == 1 else {}
        flat |= {k: v for k, v in spec.items() if k not in ("recipe", "task_knobs", "head")} | dict(
            head_policy=spec["head"]
        )
        flat |= {k: r[k] for k in ("metric", "split", "score", "validation", "seconds", "device", "stopped", "hash")}
        flat |= {f"baseline_{k}": v for k, v in r["baselines"].items()} | r["counts"] | r["peak"]
        table.append(flat)
    return pd.DataFrame(table)
