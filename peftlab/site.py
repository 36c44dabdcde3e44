"""Executed labs as a small static site: figures move without a kernel, equations are MathML, nothing is fetched."""

import html
import json
import pathlib
import re
import tempfile

from .course import target
from .errors import PeftlabError
from .labs import run_labs

FIGURE, SCRIPT = "application/vnd.plotly.v1+json", "plotly.min.js"
HIDDEN = {"setup", "parameters", "injected-parameters", "headless"}  # cells that tell a reader nothing
ABOUT = "Executed copies for reading: figures move, and nothing is trained here. In a notebook every panel trains live."
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { font: 13px/1.45 ui-monospace, monospace; overflow-x: auto; background: #f6f7f8; padding: .6rem .8rem; }
.jp-OutputArea pre, .output pre { background: none; border-left: 3px solid #d5d9dd; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem .2rem; border-bottom: 1px solid #ddd; }
a.anchor-link, .prompt, .jp-InputPrompt, .jp-OutputPrompt { display: none; }
summary { cursor: pointer; } a { color: #1565c0; }
.labs { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1.2rem; padding: 0; }
.labs li { list-style: none; border: 1px solid #ddd; border-radius: 6px; padding: .8rem; overflow: hidden; }
.labs .figure { height: 200px; pointer-events: none; }
"""


def write(out, names=(), profile="cpu", jobs=2, timeout=600):
    """Run labs and write index.html, a page for each, and plotly's script to the folder `out`; returns `run_labs`'s
    rows. A lab that fails has no page. PeftlabError where nbconvert or latex2mathml is missing.
    """
    from plotly.offline import get_plotlyjs

    convert, out = exporter(), target(out)
    with tempfile.TemporaryDirectory() as scratch:
        done = run_labs(names, profile, scratch, jobs, timeout)
        good = [pathlib.Path(scratch) / f"{d['name']}.ipynb" for d in done if d["ok"]]
        cards = [page(convert, path, out) for path in good]
    (out / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
    (out / "index.html").write_text(document("peftlab: the labs", index(cards)), encoding="utf-8")
    return done


def exporter():
    """nbconvert's, with equations as MathML."""
    try:
        import latex2mathml  # noqa: F401
        from nbconvert import HTMLExporter
        from nbconvert.filters import markdown2html
    except ImportError as problem:
        raise PeftlabError(
            f"the site needs {problem.name}, which is not installed; pip install nbconvert latex2mathml"
        ) from problem
    made = HTMLExporter(template_name="basic")
    made.register_filter("markdown2html", lambda source: mathml(markdown2html(source)))
    return made


def mathml(text):
    """HTML with $…$ and $$…$$ as MathML, which every browser draws without a script; code is left alone."""
    from latex2mathml.converter import convert

    def math(m):
        if m[1] is None:
            return m[0]
        return convert(html.unescape(m[1].strip("$")), display="block" if m[1].startswith("$$") else "inline")

    return re.sub(r"<(?:pre|code)\b.*?</(?:pre|code)>|(\$\$.+?\$\$|\$[^$\n]+?\$)", math, text, flags=re.S)


def page(convert, path, out):
    """Write one lab's page; returns what the index says of it: name, title, first words, first figure."""
    import nbformat

    book, figures = nbformat.read(path, as_version=4), []
    book.cells = [c for c in book.cells if not HIDDEN & set(c.metadata.get("tags", []))]
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            if figure := output.get("data", {}).get(FIGURE):
                output.data = {"text/html": drawn(figure, f"figure-{len(figures)}")}
                figures.append(figure)
    body, _ = convert.from_notebook_node(book)
    first = book.cells[0].source
    title = re.search(r"^# (.+)", first, re.M)[1]
    name = f"{path.stem}.html"
    back = '<p><a href="index.html">all labs</a></p>'
    (out / name).write_text(document(title, back + body + back), encoding="utf-8")
    claim = re.sub(r"[*`$]", "", first.split("\n\n")[1])
    return dict(name=name, title=title, claim=claim, figure=figures[0] if figures else None)


def drawn(figure, place, **config):
    """A figure that plotly's script draws where it stands."""
    given = ", ".join(json.dumps(part).replace("</", "<\\/") for part in (figure["data"], figure["layout"]))
    options = json.dumps(dict(responsive=True, displaylogo=False) | config)
    return f'<div class="figure" id="{place}"></div><script>Plotly.newPlot("{place}", {given}, {options})</script>'


def index(cards):
    """A list of labs, each with its first figure as a small still picture."""
    items = []
    for i, card in enumerate(cards):
        still = dict(title=None, showlegend=False, margin=dict(l=8, r=8, t=8, b=8), height=200, width=None)
        still |= dict(updatemenus=[], sliders=[], annotations=[])
        figure = card["figure"]
        small = figure and drawn(dict(figure, layout=figure["layout"] | still), f"still-{i}", staticPlot=True)
        link = f'<a href="{card["name"]}"><b>{html.escape(card["title"])}</b></a>'
        items.append(f"<li>{small or ''}{link}<br>{html.escape(card['claim'])}</li>")
    return f'<h1>peftlab: the labs</h1><p>{ABOUT}</p><ul class="labs">{"".join(items)}</ul>'


def document(title, body):
    """A whole page: head, style, plotly's script, body."""
    from pygments.formatters import HtmlFormatter

    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style>"
        f'<script src="{SCRIPT}"></script><body>{body}</body></html>\n'
    )
