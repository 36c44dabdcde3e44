"""A user's own files: tsv, csv, jsonl and parquet, read strictly; what is wrong is named with its file and line."""

import csv
import io
import json
import pathlib
import sys

from .errors import PeftlabError

EXTENSIONS = (".tsv", ".csv", ".jsonl", ".parquet")
SPLITS = dict(train=("train",), validation=("validation", "valid", "val", "dev"), test=("test",))
TEXT = "text sentence sentence1 premise question question1 review content document input source prompt".split()
TEXT2 = "text2 sentence2 hypothesis question2 passage context".split()
LABEL = "label labels class category sentiment rating stars score y".split()
TARGET = "target summary output response completion translation answer".split()


def read(path):
    """One file as a pandas DataFrame.

    Tab-separated files are read with quoting off (a quote is a character there); csv follows the usual quoting rules.
    PeftlabError: unknown extension, empty, ragged, not UTF-8, not JSON; with the line where it went wrong.
    """
    import pandas as pd

    path = pathlib.Path(path)
    if path.suffix not in EXTENSIONS:
        raise PeftlabError(f"{path.name}: unknown extension {path.suffix!r}; use {', '.join(EXTENSIONS)}")
    if not path.exists():
        raise PeftlabError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise PeftlabError(f"{path.name} is empty; it needs a header and rows with a text and a label")
    if path.suffix == ".parquet":
        import pyarrow as pa

        try:
            table = pd.read_parquet(path)
        except (pa.ArrowInvalid, OSError) as problem:
            raise PeftlabError(
                f"{path.name} is not a readable parquet file ({str(problem).splitlines()[0]})"
            ) from problem
    else:
        table = (jsonl if path.suffix == ".jsonl" else separated)(path, decode(path))
    if len(table) == 0:
        raise PeftlabError(f"{path.name} has no rows below its header")
    return table


def decode(path):
    """The file's text; it must be UTF-8 (a byte order mark is dropped)."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        at = problem.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line, byte = raw[:at].count(b"\n") + 1, raw[at]
        raise PeftlabError(
            f"{path.name} is not UTF-8: byte 0x{byte:02x} in line {line}; save the file as UTF-8"
        ) from problem


def separated(path, text):
    import pandas as pd

    how = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix == ".tsv" else dict(delimiter=",", strict=True)
    reader, width = csv.reader(io.StringIO(text, newline=""), **how), None
    try:
        for row in reader:  # pandas fills short rows silently, so the widths are checked first
            width = width or len(row)
            if row and len(row) != width:
                raise PeftlabError(
                    f"{path.name} is ragged: line {reader.line_num} has {len(row)} columns, the header has {width}"
                )
    except csv.Error as problem:
        raise PeftlabError(f"{path.name}, line {reader.line_num}: {problem}") from problem
    if not width:
        raise PeftlabError(f"{path.name} is empty; it needs a header and rows with a text and a label")
    # empty cells stay empty strings, and the words NA and null stay words
    return pd.read_csv(
        io.StringIO(text), sep=how["delimiter"], quoting=how.get("quoting", csv.QUOTE_MINIMAL), keep_default_na=False
    )


def jsonl(path, text):
    import pandas as pd

    rows, keys = [], None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise PeftlabError(f"{path.name}, line {number} is not JSON: {problem.msg}") from problem
        if not isinstance(row, dict):
            raise PeftlabError(
                f'{path.name}, line {number} is not a JSON object; write one {{"text": …, "label": …}} a line'
            )
        keys = keys or set(row)
        if set(row) != keys:
            differ = ", ".join(sorted(set(row) ^ keys))
            raise PeftlabError(f"{path.name} is ragged: line {number} and the first line differ in the keys {differ}")
        rows.append(row)
    return pd.DataFrame(rows)


def splits(where):
    """{"train": (file name, DataFrame), …} of a file (train only) or of a folder of train/validation/test files."""
    where = pathlib.Path(where).expanduser()
    if not where.exists():
        raise PeftlabError(f"{where}: no such file or folder")
    if where.is_file():
        return {"train": (where.name, read(where))}
    found = {}
    for split, stems in SPLITS.items():
        files = sorted(p for p in where.iterdir() if p.stem in stems and p.suffix in EXTENSIONS)
        if len(files) > 1:
            raise PeftlabError(f"{where} has several files for {split}: {', '.join(p.name for p in files)}; keep one")
        if files:
            found[split] = (files[0].name, read(files[0]))
    if "train" not in found:
        there = ", ".join(sorted(p.name for p in where.iterdir())[:8]) or "nothing"
        raise PeftlabError(f"{where} has no train file ({', '.join('train' + e for e in EXTENSIONS)}); it has {there}")
    return found


def columns(name, table, kind=None, **wanted):
    """Which column is the text, text2, label or target: as named by the caller, otherwise guessed (and printed).

    kind: when known, a label is looked for only where it has one; a language model's task may be text alone.
    """
    there = [str(c) for c in table.columns]
    for role, column in wanted.items():
        if column is not None and column not in there:
            raise PeftlabError(f"{name} has no column {column!r} for the {role}; the columns are {', '.join(there)}")
    chosen = {role: column for role, column in wanted.items() if column is not None}
    free = [c for c in there if c not in chosen.values()]
    lower = {c.lower(): c for c in reversed(free)}
    first = lambda names: next((lower[n] for n in names if n in lower), None)
    guess = {}
    if "text" not in chosen:
        guess["text"] = first(TEXT) or longest(table, free)
        if "text2" not in chosen:
            guess["text2"] = first(TEXT2)
    if "label" not in chosen and "target" not in chosen:
        generated = kind in ("lm", "seq2seq")
        guess["label"] = None if generated else first(LABEL)
        guess["target"] = None if guess["label"] or kind in ("classification", "regression") else first(TARGET)
        if kind != "lm" and not guess["label"] and not guess["target"]:
            rest = [c for c in free if c not in guess.values()]
            role = "target" if generated else "label"
            if len(rest) != 1:
                raise PeftlabError(
                    f"{name}: which column is the {role}? The columns are {', '.join(there)}; say {role}=… (--{role})"
                )
            guess[role] = rest[0]
    guess = {role: column for role, column in guess.items() if column}
    if "text" not in chosen | guess:
        raise PeftlabError(f"{name}: which column is the text? The columns are {', '.join(there)}; say text=… (--text)")
    if guess:
        told = ", ".join(f"{role} is column {column!r}" for role, column in guess.items())
        print(f"peftlab: {name}: guessed that {told}", file=sys.stderr)
    return chosen | guess


def longest(table, names):
    """The column of strings with the longest entries, if there is one."""
    lengths = {c: table[c].astype(str).str.len().mean() for c in names if not is_number(table[c])}
    return max(lengths, key=lengths.get) if lengths else None


def is_number(column):
    import pandas as pd

    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
