"""The table of all methods as Markdown, made from the registry: for the README and the labs."""
from .methods import catalogue

BEGIN, END = "<!-- methods -->", "<!-- /methods -->"
COLUMNS = {
    "method": lambda m: ", ".join(f"`{n}`" for n in (m["name"], *m["aliases"])),
    "equation": lambda m: m["equation"],
    "review": lambda m: m["review"],
    "Delta Tuning": lambda m: m["delta_tuning"],
    "sparse view": lambda m: m["sparse_view"],
    "paper": lambda m: paper(m["paper"]),
    "sites": lambda m: m["where"],
    "merges": lambda m: "yes" if m["merges"] else "no",
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


def refresh(text):
    """`text` with what stands between the two markers replaced by the table of today."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the text has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    import pathlib
    import sys
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")
