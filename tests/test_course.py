"""What a course does with labs: hand out, collect, merge, and export for reading."""

import json
import re

import nbformat
import pytest
from small import home  # noqa: F401

import peftlab as pl
from peftlab import cli, course, labs, site
from peftlab.methods.reparameterized import LoRA


class MyLoRA(LoRA):
    def forward(self, x, y):
        return y + x @ self.A.T @ self.B.T


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """An executed notebook with a wrong and then a right try of one exercise, a figure, and an equation."""
    monkeypatch.delenv("PEFTLAB_HEADLESS", raising=False)
    tries = [pl.check(MyLoRA, like=LoRA), pl.check(type("MyLoRA", (LoRA,), {}), like=LoRA)]
    shown = [nbformat.v4.new_output("execute_result", v._repr_mimebundle_()) for v in tries]
    figure = nbformat.v4.new_output("display_data", {site.FIGURE: json.loads(pl.plots.taxonomy().to_json())})
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\n**Claim.** It is $W + BA$.\n\nMore."),
        nbformat.v4.new_code_cell("x = 1", metadata=dict(tags=["parameters"])),
        nbformat.v4.new_code_cell("pl.check(MyLoRA)", outputs=shown),
        nbformat.v4.new_code_cell("pl.solution('MyLoRA')", metadata=dict(tags=["solution"])),
        nbformat.v4.new_code_cell("pl.plots.taxonomy()", outputs=[figure]),
    ]
    path = tmp_path / "07_x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_the_students_version_has_no_solution_and_stays_runnable(tmp_path):
    assert cli.main(["labs", "student", str(tmp_path / "out"), "00_tour"]) == 0
    (copy,) = (tmp_path / "out").glob("*.ipynb")
    mine, theirs = (nbformat.read(p, as_version=4).cells for p in (labs.find(["00"])[0], copy))
    dropped = [c for c in mine if c not in theirs]
    assert dropped and all("solution" in c.metadata.tags for c in dropped)
    assert "pl.solution" not in copy.read_text() and any("nbgrader" in c.metadata for c in theirs)
    nbformat.validate(nbformat.read(copy, as_version=4))


def test_the_labs_themselves_are_not_written_over(capsys):
    before = [p.read_bytes() for p in labs.find()]
    assert cli.main(["labs", "student", str(labs.folder())]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert [p.read_bytes() for p in labs.find()] == before


def test_a_report_has_the_last_verdicts_the_runs_and_the_versions(notebook, home, capsys, tmp_path):
    done = pl.run(pl.spec("head", backbone="nano-encoder", steps=2, size=32))
    assert cli.main(["labs", "report", str(notebook), "--name", "ada", "--out", str(tmp_path / "ada.json")]) == 0
    said = json.loads((tmp_path / "ada.json").read_text())
    assert said["name"] == "ada" and said["versions"]["peftlab"] == pl.__version__
    assert said["labs"] == [dict(lab="07_x", checks=dict(MyLoRA=dict(ok=True, text=said_of(notebook))))]
    (run,) = said["runs"]
    assert run["spec"] == done.spec and run["score"] == done.score and "rows" not in run


def said_of(notebook):
    return course.verdicts(notebook)["MyLoRA"]["text"]


def test_a_file_that_is_no_notebook_is_told(tmp_path, capsys):
    (tmp_path / "x.ipynb").write_text("no")
    assert cli.main(["labs", "report", str(tmp_path / "x.ipynb")]) == 2
    assert "is not a notebook" in capsys.readouterr().err


def learner(folder, name, scores, ok, **how):
    """A report with one run of LoRA per seed."""
    spec = pl.spec("lora", **how)
    runs = [
        dict(spec=spec | dict(seed=s), hash=f"{how}{s}", task=spec["task"], metric="accuracy", score=v)
        for s, v in scores.items()
    ]
    checks = dict(MyLoRA=dict(ok=ok, text=""))
    (folder / f"{name}.json").write_text(json.dumps(dict(name=name, labs=[dict(lab="00", checks=checks)], runs=runs)))


def test_a_class_is_merged_into_one_plot_with_error_bars(tmp_path, capsys):
    learner(tmp_path, "ada", {0: 0.90, 1: 0.94}, True)
    learner(tmp_path, "bob", {1: 0.94, 2: 0.98}, None)
    learner(tmp_path, "eve", {9: 0.1}, False, task="topic")
    whole = course.merge(tmp_path)
    assert whole["learners"] == 3 and whole["checks"] == {"00 MyLoRA": [1, 3]}
    assert len(whole["runs"]) == 4, "seed 1 was run twice and counts once"
    figure = course.picture(whole["runs"])
    assert figure.data[0].y == (pytest.approx(0.94),) and figure.data[0].error_y.array[0] > 0
    assert len(figure.data[1].y) == 3 and "reviews" in figure.layout.title.text
    assert cli.main(["labs", "merge", str(tmp_path)]) == 0
    assert "3 learners, 4 different runs" in capsys.readouterr().out
    assert "Plotly.newPlot" in (tmp_path / "class.html").read_text()


@pytest.mark.parametrize("text", (None, "{}", "[1]", "no"))
def test_what_is_no_report_is_told(tmp_path, text, capsys):
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert cli.main(["labs", "merge", str(tmp_path)]) == 2
    assert "labs report" in capsys.readouterr().err


def test_a_class_without_runs_has_no_plot(tmp_path, capsys):
    learner(tmp_path, "ada", {}, True)
    assert cli.main(["labs", "merge", str(tmp_path)]) == 2
    assert "no runs" in capsys.readouterr().err


def test_a_page_has_figures_equations_and_no_address_to_fetch_from(notebook, tmp_path):
    card = site.page(site.exporter(), notebook, tmp_path)
    assert card["title"] == "A title" and card["claim"] == "Claim. It is W + BA." and card["figure"]["data"]
    text = (tmp_path / card["name"]).read_text()
    assert "Plotly.newPlot" in text and "<math" in text and "x = 1" not in text and "$W" not in text
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)"', text).count("plotly.min.js") == 1
    assert not re.findall(r'(?:src|href)="https?://(?!arxiv)', text)
    assert "Plotly.newPlot" in site.index([card]) and card["name"] in site.index([card])


def test_equations_become_mathml_and_code_does_not():
    said = site.mathml("<p>$a_1$ costs</p><pre>$x$</pre><code>$y$</code> $$b &lt; c$$")
    assert said.count("<math") == 2 and "<pre>$x$</pre>" in said and "<code>$y$</code>" in said
    assert 'display="block"' in said and "&#x0003C;" in said


def test_a_missing_converter_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "latex2mathml", None)
    with pytest.raises(pl.PeftlabError, match="pip install nbconvert latex2mathml"):
        site.exporter()


@pytest.mark.slow
def test_the_site_of_the_labs(tmp_path, home):
    done = site.write(tmp_path / "site", ["00_tour"], profile="ci", timeout=400)
    assert done[0]["ok"], done
    names = {p.name for p in (tmp_path / "site").iterdir()}
    assert names == {"index.html", "00_tour.html", "plotly.min.js"}
    text = (tmp_path / "site" / "00_tour.html").read_text()
    assert text.count("Plotly.newPlot") >= 4 and "Panel(" not in text
