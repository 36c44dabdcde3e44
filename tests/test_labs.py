"""Every lab runs without a browser and is clean in git; right answers pass, wrong ones are told apart."""

import ast
import json
import os
import pathlib
import re
import threading

import nbformat
import pytest

import peftlab as pl
from peftlab import labs, ledger, paths, shipped, teach
from peftlab.errors import PeftlabError
from peftlab.methods import METHODS

LABS = sorted((pathlib.Path(__file__).resolve().parents[1] / "labs").glob("*.ipynb"))
each = pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
LoRA = METHODS["lora"].cls


def code(lab):
    return [c for c in nbformat.read(lab, as_version=4).cells if c.cell_type == "code"]


def plain(cell):
    """The Python of a cell, without the lines that only IPython knows."""
    return re.sub(r"%\w+ .*", "pass", cell.source)


def book(path, *sources, parameters='profile = "interactive"'):
    cells = [nbformat.v4.new_code_cell(parameters, metadata=dict(tags=["parameters"]))] if parameters else []
    cells += [nbformat.v4.new_code_cell(s) for s in sources]
    kernel = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), path)
    return path


@each
@pytest.mark.slow
def test_runs_in_ci(lab, tmp_path, labs_home, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HOME", str(labs_home))
    before = lab.read_bytes()
    out = pathlib.Path(os.environ.get("PEFTLAB_OUT", tmp_path))
    (done,) = labs.run_labs([lab], profile="ci", out=out, timeout=400)
    assert done["ok"], done["error"]
    assert done["name"] == lab.stem and (done["peak_rss_mb"] is None or 50 < done["peak_rss_mb"] < 1200)
    copy = nbformat.read(out / lab.name, as_version=4)
    assert "widgets" not in copy.metadata and lab.read_bytes() == before
    assert all(c.execution_count for c in copy.cells if c.cell_type == "code" and c.source)


@each
def test_is_clean_in_git(lab):
    text = nbformat.read(lab, as_version=4)
    assert text.metadata.kernelspec.name == "python3" and not {"widgets", "papermill"} & set(text.metadata)
    assert all(not c.outputs and c.execution_count is None for c in code(lab)), "strip the outputs"
    tagged = [c for c in code(lab) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and 'profile = "interactive"' in tagged[0].source
    ids = [c.get("id") for c in text.cells]
    assert all(ids) and len(set(ids)) == len(ids)
    assert "setup" in code(lab)[0].metadata["tags"] and "find_spec" in code(lab)[0].source


@each
def test_uses_public_names_only(lab):
    for cell in code(lab):
        tree = ast.parse(plain(cell))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pl":
                assert node.attr in pl.__all__, f"pl.{node.attr}"
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("peftlab"), "labs use `import peftlab as pl` alone"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} belongs in the package"


@each
def test_solutions_pass_and_stubs_are_open(lab, tmp_path):
    stubs = [c for c in code(lab) if "exercise" in c.metadata.get("tags", [])]
    solved = [c for c in code(labs.solve(lab, tmp_path / lab.name)) if "exercise" in c.metadata.get("tags", [])]
    assert len(stubs) == len(solved) > 0
    for stub, answer in zip(stubs, solved, strict=True):
        assert "NotImplementedError" in stub.source and "NotImplementedError" not in answer.source
        assert stub.source.splitlines()[0] == answer.source.splitlines()[0]
        assert f'pl.solution("{labs.exercise(stub)}")' in plain_text(lab), "the learner can open it"


def plain_text(lab):
    return "\n".join(c.source for c in nbformat.read(lab, as_version=4).cells)


@each
def test_exercises_can_be_graded_with_nbgrader(lab):
    cells = nbformat.read(lab, as_version=4).cells
    marks = [c.metadata["nbgrader"] for c in cells if "nbgrader" in c.metadata]
    assert all(m["schema_version"] == 3 and m["task"] is False for m in marks)
    assert len({m["grade_id"] for m in marks}) == len(marks)
    for i, cell in enumerate(cells):
        if "exercise" in cell.metadata.get("tags", []):
            own, check = cell.metadata["nbgrader"], cells[i + 1]
            assert own["solution"] and not own["grade"] and not own["locked"]
            assert check.source.startswith((f"pl.check({labs.exercise(cell)},", f"pl.check({labs.exercise(cell)})"))
            mark = check.metadata["nbgrader"]
            assert mark["grade"] and mark["locked"] and mark["points"] > 0 and not mark["solution"]


def mine(forward):
    return type("Mine", (LoRA,), dict(forward=forward))


WRONG = {
    "nothing is added": lambda self, x, y: y,
    "own output is lost": lambda self, x, y: self.s * (x @ self.A.T @ self.B.T),
    "0.5 times": lambda self, x, y: y + x @ self.A.T @ self.B.T,
    "-1 times": lambda self, x, y: y - self.s * (x @ self.A.T @ self.B.T),
    "another function": lambda self, x, y: y + self.s * (x @ self.A.T).relu() @ self.B.T,
    "stopped with": lambda self, x, y: y + x @ self.A @ self.B,
    "the shape": lambda self, x, y: (y + self.s * (x @ self.A.T @ self.B.T)).T,
    "should return a tensor": lambda self, x, y: None,
}


def test_a_right_answer_passes(monkeypatch):
    right = mine(lambda self, x, y: y + self.s * (x @ self.A.T @ self.B.T))
    for headless in ("0", "1"):
        monkeypatch.setenv("PEFTLAB_HEADLESS", headless)
        assert pl.check(right, like=LoRA).ok is True


@pytest.mark.parametrize("told", WRONG)
def test_a_wrong_answer_gets_its_own_hint(told, monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS", raising=False)
    verdict = pl.check(mine(WRONG[told]), like=LoRA)
    assert verdict.ok is False and told in verdict.text and "✘" in verdict._repr_html_()
    assert "A.T" not in verdict.text, "a hint, never the answer"
    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    with pytest.raises(PeftlabError, match=re.escape(told)):
        pl.check(mine(WRONG[told]), like=LoRA)


def test_an_open_exercise_is_neither_right_nor_wrong(monkeypatch):
    def forward(self, x, y):
        raise NotImplementedError("write <it>")

    monkeypatch.setenv("PEFTLAB_HEADLESS", "1")
    verdict = pl.check(mine(forward), like=LoRA)
    assert verdict.ok is None and "write &lt;it&gt;" in verdict._repr_html_()


class Short(LoRA):
    def __init__(self, m, r, alpha):
        super().__init__(m, r // 2, alpha)


def test_other_parameters_are_told(monkeypatch):
    monkeypatch.delenv("PEFTLAB_HEADLESS", raising=False)
    assert "names and shapes" in pl.check(Short, like=LoRA).text


@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_itself_or_is_no_layer(name, monkeypatch):
    monkeypatch.setenv("PEFTLAB_HEADLESS", "0")
    method = METHODS[name]
    here = isinstance(method.cls, type) and {"q", "v"} & set(method.sites)
    if here and not issubclass(method.cls, METHODS["full"].cls):
        assert pl.check(method.cls, like=method.cls, features=(16, 16)).ok is True


@pytest.mark.parametrize("name", METHODS)
def test_show_prints_the_source_under_its_equation(name):
    page = pl.show(METHODS[name].cls)
    assert "$$" in page._repr_markdown_() and f" {METHODS[name].cls.__name__}(" in repr(page)
    assert repr(page) == repr(pl.show(name))


def test_equations_become_tex():
    assert teach.tex("y' = y + (α/r)·B A x") == r"y'\, =\, y\, +\, (\alpha /r)\cdot B\, A\, x"
    assert teach.tex("k' = [P_k; k] in every attention") == r"k'\, =\, [P_{k};\, k]\, \text{in every attention}"
    assert "def choose" in repr(pl.show(labs.choose))


def test_profiles():
    assert labs.Lab("interactive").steps(200) == 200 and not labs.Lab("interactive").headless
    assert labs.Lab("ci").steps(200) == 20 and labs.Lab("ci").steps(40) == 10 and labs.Lab("ci").headless
    with pytest.raises(PeftlabError, match="profile 'cii'"):
        labs.Lab("cii")


def test_a_failing_lab_is_reported_with_its_error_and_its_copy(tmp_path):
    good, bad = book(tmp_path / "good.ipynb", "1 + 1"), book(tmp_path / "bad.ipynb", "1 / 0")
    rows = labs.run_labs([good, bad], out=tmp_path / "out", jobs=2)
    assert [(r["name"], r["ok"]) for r in rows] == [("good", True), ("bad", False)]
    assert rows[0]["error"] is None and "ZeroDivisionError" in rows[1]["error"] and rows[0]["seconds"] > 0
    assert "ZeroDivisionError" in json.dumps(nbformat.read(tmp_path / "out" / "bad.ipynb", as_version=4))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bad.ipynb", "good.ipynb"]


def test_the_profile_reaches_the_lab(tmp_path):
    lab = book(tmp_path / "p.ipynb", 'import os; assert (profile, os.environ["PEFTLAB_HEADLESS"]) == ("cpu", "1")')
    (done,) = labs.run_labs([lab], profile="cpu", out=tmp_path / "out")
    assert done["ok"], done["error"]


def test_a_lab_without_the_parameter_is_refused(tmp_path):
    (done,) = labs.run_labs([book(tmp_path / "n.ipynb", "1", parameters='profil = "x"')], out=tmp_path / "out")
    assert not done["ok"] and "no parameter profile" in done["error"]


def test_a_hanging_lab_ends_with_its_kernel(tmp_path):
    mark = tmp_path / "pid"
    lab = book(
        tmp_path / "h.ipynb",
        f"import os, pathlib, time; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(3600)",
    )
    (done,) = labs.run_labs([lab], out=tmp_path / "out", timeout=25)
    assert not done["ok"] and "longer than 25 s" in done["error"]
    if os.name == "posix" and mark.exists():
        pid, gone = int(mark.read_text()), threading.Event()
        for _ in range(150):  # the kernel is another process: it may end a moment later
            if not alive(pid):
                gone.set()
                break
            gone.wait(0.2)
        assert gone.is_set(), "the kernel survived"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = pathlib.Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_unknown_labs_and_profiles_are_refused(tmp_path):
    with pytest.raises(PeftlabError, match="unknown lab '99_nothing'"):
        labs.run_labs(["99_nothing"])
    with pytest.raises(PeftlabError, match="unknown profile"):
        labs.run_labs(["00_tour"], profile="fast")
    assert [p.stem for p in labs.find(["00"])] == ["00_tour"] == [p.stem for p in labs.find(["labs/00_tour.ipynb"])]


@pytest.mark.parametrize("lab", shipped.LABS)
def test_shipped_results_belong_to_the_shipped_data(lab):
    assert not shipped.stale(lab), "make them again: python -m peftlab.shipped"
    for record in ledger.records(paths.data() / "results" / f"{lab}.jsonl"):
        assert 0 <= record["score"] <= 1 and not record["stopped"]
        whole = record["rows"] and record["rows"][-1]["step"] == record["spec"]["steps"]
        assert whole or lab not in shipped.CURVES
