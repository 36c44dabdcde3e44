"""The environment files, Binder, the wheel, the CI script and the README: each agrees with the rest."""

import os
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from starting import PROJECT, ROOT, go, posix  # noqa: F401


def specifiers(lines):
    return {r.name: r.specifier for r in map(Requirement, lines)}


def pins(path):
    """name -> what conda is asked for, as a specifier of PyPI's kind: `=2.13` means ==2.13.*"""
    found = {}
    for line in yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]:
        name, spec = re.fullmatch(r"([\w-]+)(.*)", line).groups()
        found[{"pytorch-cpu": "torch"}.get(name, name)] = re.sub(r"^=(?!=)(.*)$", r"==\1.*", spec)
    return found


@pytest.mark.parametrize("file", ["environment.yml", "binder/environment.yml"])
def test_conda_environments_agree_with_pyproject(file):
    found = pins(ROOT / file)
    needed = specifiers(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["lab"])
    assert set(needed) <= set(found), "all that pip would install, because there pip runs with --no-deps"
    for name, allowed in needed.items():
        for clause in SpecifierSet(found[name]):
            number = clause.version.removesuffix(".*")
            if clause.operator == "==":
                assert allowed.contains(number + ".99") and allowed.contains(number + ".0"), f"{name}{found[name]}"
            elif clause.operator == ">=":
                assert allowed.contains(number), f"{name}{found[name]} begins below {allowed}"
        tops = [c.version for c in allowed if c.operator == "<"]
        beyond = [top for top in tops if SpecifierSet(found[name]).contains(top)]
        assert not beyond, f"{name}{found[name]} goes beyond {allowed}"
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.12")


def test_the_core_is_loose_enough_for_a_hosted_notebook():
    """What the Colab image of August 2026 has, as it is: nothing of it would be replaced."""
    there = dict(accelerate="1.14.0", anywidget="0.9.21", datasets="4.0.0", ipywidgets="7.7.1", numpy="2.1.3",
                 plotly="5.24.1", safetensors="0.8.0", torch="2.11.0+cu128", transformers="5.15.0")
    needed = specifiers(PROJECT["dependencies"])
    assert all(needed[name].contains(version) for name, version in there.items())
    assert not {"jupyterlab", "notebook", "ipykernel", "ipython"} & set(needed)
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(v) for v in ("3.11.7", "3.12.3", "3.13.1"))


@posix
@pytest.mark.parametrize("file", ["binder/postBuild", "binder/start", ".ci/run"])
def test_scripts_are_executable_and_well_formed(file):
    assert os.access(ROOT / file, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / file)], check=True)


def test_binder_installs_the_package_without_its_dependencies():
    assert "pip install --no-cache-dir --no-deps ." in (ROOT / "binder/postBuild").read_text()
    assert (ROOT / "binder/start").read_text().rstrip().endswith('exec "$@"')


def test_repo2docker_takes_the_files_of_binder():
    done = subprocess.run([sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    assert "conda environment for python=3.12" in said
    assert 'env update -p ${NB_PYTHON_PREFIX} --file "binder/environment.yml"' in said
    assert "RUN ./binder/postBuild" in said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, ROOT],
                   check=True, stdin=subprocess.DEVNULL)
    return next(out.glob("peftlab-*.whl"))


def test_the_wheel_carries_the_data_and_nothing_else_of_the_checkout(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    data = [p for part in ("backbones", "results") for p in (ROOT / "data" / part).rglob("*") if p.is_file()]
    shipped = {f"peftlab/{p.relative_to(ROOT).as_posix()}" for p in data if "__pycache__" not in p.parts}
    assert shipped and shipped <= names
    assert all(n.startswith("peftlab/") for n in names)
    static = {p.relative_to(ROOT).as_posix() for p in (ROOT / "peftlab").rglob("*.js")}
    assert static <= names


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = ("import peftlab; from peftlab.paths import data; m = peftlab.backbone('micro-encoder'); "
            "print(peftlab.__file__, data(), m.config.model_type)")
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                         check=True, text=True, stdout=subprocess.PIPE).stdout.split()
    assert out == [str(tmp_path / "peftlab/__init__.py"), str(tmp_path / "peftlab/data"), "roberta"]


# --- the CI script --------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("browser, apt_works", [(True, True), (False, True), (False, False)])
def test_ci_runs_the_command_of_the_readme(tmp_path, browser, apt_works):
    def fake(name, body):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n')
        (tmp_path / name).chmod(0o755)
    fake("python3", "exit 0")
    fake("apt-get", f"exit {0 if apt_works else 100}")
    fake("id", "echo 0")
    for name in ("bash", "env", "dirname", "mktemp"):
        os.symlink(subprocess.run(["which", name], stdout=subprocess.PIPE, text=True).stdout.strip(), tmp_path / name)
    if browser:
        fake("chromium", "exit 0")
    done = subprocess.run([str(ROOT / ".ci/run")], env={"PATH": str(tmp_path)}, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == 0 and calls[-1] == "python3 go.py test"
    assert any(c.startswith("apt-get install") for c in calls) == (not browser and apt_works)
    assert ("skipped" in done.stderr) == (not browser and not apt_works)
    assert "python3 go.py test" in (ROOT / "README.md").read_text(encoding="utf-8")


# --- README and style -----------------------------------------------------------------------------------------------


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_fresh():
    from peftlab.readme import refresh
    assert refresh(readme()) == readme(), "run: python -m peftlab.readme README.md"


def test_a_text_without_markers_is_not_touched():
    from peftlab.readme import refresh
    with pytest.raises(ValueError, match="methods"):
        refresh("no table here")


def test_the_readme_speaks_only_of_what_exists(go):
    text = readme()
    assert set(re.findall(r"labs/(\w+)\.ipynb", text)) == {p.stem for p in (ROOT / "labs").glob("*.ipynb")}
    for command in re.findall(r"python3 go\.py (\w+)", text):
        assert callable(getattr(go, command))
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / path).exists(), path
    tree = text.partition("```text\n")[2].partition("```")[0]
    paths = [line.split()[0] for line in tree.splitlines() if line.strip()]
    assert len(paths) > 10 and not [p for p in paths if not (ROOT / p).exists()]


@pytest.mark.slow
def test_the_example_of_the_readme_runs():
    code = readme().partition("```python\n")[2].partition("```")[0]
    assert len(code.strip().splitlines()) <= 12
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdin=subprocess.DEVNULL)


def test_lint():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format=concise", "."], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
