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


MANY = {
    "backbone": lambda r: r["backbone"],
    "how": lambda r: r["how"],
    "runs": lambda r: f"{r['runs']} of {r['steps']} steps",
    "seconds": lambda r: f"{r['seconds']:.0f}",
    "times as fast": lambda r: f"{r['times']:.2f}",
    "losses differ by": lambda r: f"{r['apart']:.0e}",
}
LABS = {
    "lab, or import": lambda r: r["name"],
    "seconds": lambda r: f"{r['seconds']:.2f}",
    "peak memory": lambda r: f"{r['peak_rss_mb']:.0f} MB" if r.get("peak_rss_mb") else "–",
}


def newest(suites, keys):
    """What `go.py bench` has found last, a row for each backbone, method or what else the keys name."""
    rows = {}
    for suite in suites:
        path = data() / "results" / f"bench-{suite}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            rows.setdefault(tuple(row[key] for key in keys), {}).update(row)
    return [*rows.values()]


def table(columns, rows, said):
    """A table in Markdown, and on what its rows were measured."""
    cells = [[*columns], ["---"] * len(columns), *([f(r) for f in columns.values()] for r in rows)]
    on = dict.fromkeys(said.format(**r, **r["versions"]) + r["machine"].get("gpu", r["machine"]["cpu"]) for r in rows)
    return "\n".join([*("| " + " | ".join(row) + " |" for row in cells), "", *(f"Measured {one}." for one in on)])


def measured():
    """Beside the peers."""
    rows = [r for r in newest(("parity", "memory", "speed"), ("shape", "method")) if "ours_ms" in r]
    return table(MEASURED, rows, "{when:.10}, {batch}×{tokens} tokens, {precision}, torch {torch}, PEFT {peft}: ")


def many():
    """Many runs."""
    return table(MANY, newest(["many"], ("backbone", "how")), "{when:.10}, torch {torch}: ")


def timed():
    """The labs and the imports."""
    return table(LABS, newest(["labs"], ["name"]), "{when:.10}, torch {torch}: ")


BLOCKS = dict(methods=markdown, bench=measured, many=many, labs=timed)


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
