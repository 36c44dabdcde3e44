"""The README's tables as Markdown: all methods, from the registry, and what the bench has measured last."""
import json

from .methods import catalogue
from .paths import data

COLUMNS = {
    "method": lambda m: ", ".join(f"`{n}`" for n in (m["name"], *m["aliases"])),
    "equation": lambda m: m["equation"],
    "review": lambda m: m["review"],
    "Delta Tuning": lambda m: m["delta_tuning"],
    "sparse view": lambda m: m["sparse_view"],
    "paper": lambda m: paper(m["paper"]),
    "sites": lambda m: m["where"],
    "merges": lambda m: "yes" if m["merges"] else "no",
    "compiles": lambda m: "yes" if m["compiles"] else "no",
}


def paper(source):
    """'2106.09685 eq. 3' with its arXiv number as a link; anything else as it is."""
    number, _, rest = source.partition(" ")
    link = number.replace(".", "").isdigit() and "." in number
    return f"[{number}](https://arxiv.org/abs/{number}) {rest}".strip() if link else source


def markdown(methods=None):
    """One row per method; `methods` is a list of dicts as `peftlab.catalogue()` gives them, by default all."""
    cell = lambda text: str(text).replace("|", "\\|") or "–"
    rows = [[cell(f(m)) for f in COLUMNS.values()] for m in (catalogue() if methods is None else methods)]
    return "\n".join("| " + " | ".join(r) + " |" for r in [list(COLUMNS), ["---"] * len(COLUMNS), *rows])


MEASURED = {
    "backbone": lambda r: r["shape"],
    "method": lambda r: f"`{r['method']}`",
    "peer": lambda r: r["peer"],
    "ms a step": lambda r: f"{r['ours_ms']:.0f}",
    "to the peer": lambda r: f"{r['to_theirs']:.2f} ± {r['noise']:.2f}",
    "to full": lambda r: f"{r['to_full']:.2f}",
    "to the floor": lambda r: f"{r['to_floor']:.2f}",
    "saved, to the peer": lambda r: f"{r['saved_ratio']:.3f}" if "saved_ratio" in r else "–",
    "the same function": lambda r: dict(same="yes").get(r.get("verdict"), r.get("verdict", "–")),
}


def measured():
    """The last row of each backbone and method that `go.py bench` has timed, and on what it was."""
    rows = {}
    for suite in ("parity", "memory", "speed"):
        path = data() / "results" / f"bench-{suite}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            rows.setdefault((row["shape"], row["method"]), {}).update(row)
    timed = [r for r in rows.values() if "ours_ms" in r]
    table = [list(MEASURED), ["---"] * len(MEASURED), *([f(r) for f in MEASURED.values()] for r in timed)]
    said = "{when:.10}, {batch}×{tokens} tokens, {precision}, torch {torch}, PEFT {peft}: ".format
    on = dict.fromkeys(said(**r, **r["versions"]) + r["machine"].get("gpu", r["machine"]["cpu"]) for r in timed)
    return "\n".join([*("| " + " | ".join(cells) + " |" for cells in table), "", *(f"Measured {one}." for one in on)])


BLOCKS = dict(methods=markdown, bench=measured)


def refresh(text):
    """`text` with what stands between the markers of each block replaced by its table of today."""
    for name, table in BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the text has no {begin} … {end}")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


if __name__ == "__main__":
    import pathlib
    import sys
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")
