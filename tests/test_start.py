"""The start: go.py's phases and sentences, the environment files, the wheel, the CI script, the README."""
import ast
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")


@pytest.fixture
def go(tmp_path, monkeypatch):
    """go.py as a module, its environment in a temporary folder."""
    spec = importlib.util.spec_from_file_location("go", ROOT / "go.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ENV", tmp_path / "env")
    monkeypatch.delenv("PEFTLAB_TORCH", raising=False)
    return module


def stand_in(go, fail="no-such-word", says="", without="import torch"):
    """A Python for go.ENV that notes its arguments; it fails, saying `says`, when they contain `fail`."""
    log, path = go.ENV.parent / "calls", go.python()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$*" >> "{log}"\ncase "$*" in *"{fail}"*) echo "{says}"; exit 1;; '
                    f'*"{without}"*) exit 1;; esac\n')
    path.chmod(0o755)
    return lambda: [line for line in log.read_text().splitlines() if "pip install" in line]


# --- go.py ----------------------------------------------------------------------------------------------------------

def test_an_old_python_is_refused_in_one_sentence(go):
    for version in ((3, 8, 1), (3, 10, 0)):
        assert re.fullmatch(r"[^.]*3\.11[^.]*3\.\d+: run go\.py with .*\.", go.refusal(version))
    assert go.refusal((3, 11, 0)) is None and go.refusal((3, 13, 1)) is None


def test_an_old_python_can_read_the_file_far_enough_to_refuse(go):
    ast.parse((ROOT / "go.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_only_the_standard_library_is_imported():
    tree = ast.parse((ROOT / "go.py").read_text(encoding="utf-8"))
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)


@posix
def test_setup_installs_torch_alone_and_first_then_does_nothing(go, capsys):
    calls = stand_in(go)
    assert go.main("setup") == 0
    torch, package = calls()
    wanted = f"torch=={go.TORCH}+cpu" if sys.platform == "linux" else f"torch=={go.TORCH}"
    assert wanted in torch and "--no-deps" in torch
    assert (f"--index-url {go.WHEELS}cpu" in torch) == (sys.platform == "linux")
    assert package.endswith("-e .[lab]")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["1/2 ", "2/2 "], "one line for each phase"
    settings = json.loads((go.ENV / "share/jupyter/lab/settings/overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    assert go.main("setup") == 0 and len(calls()) == 2 and capsys.readouterr().out == ""
    go.setup("lab,test")                                         # more is wanted than there is
    assert calls()[-1].endswith("-e .[lab,test]")


@posix
def test_the_lab_needs_nothing_more_after_the_tests(go, capsys):
    calls = stand_in(go)
    go.setup("lab,test")
    before = len(calls())
    go.setup("lab")
    assert len(calls()) == before


@posix
def test_a_changed_pyproject_is_noticed(go, monkeypatch, tmp_path):
    calls = stand_in(go)
    go.setup()
    before = len(calls())
    (tmp_path / "pyproject.toml").write_text("changed")
    monkeypatch.setattr(go, "ROOT", tmp_path)
    go.setup()
    assert len(calls()) > before


@posix
@pytest.mark.parametrize("says, does", [
    ("Failed to establish a new connection: Name or service not known", "HTTPS_PROXY"),
    ("ERROR: Read timed out.", "HTTPS_PROXY"),
    ("OSError: [Errno 28] No space left on device", "disk is full"),
    ("ERROR: No matching distribution found for torch", "PEFTLAB_TORCH=keep"),
    ("Permission denied: lib", "who owns"),
    ("something new", "the lines above say why"),
])
def test_a_failed_download_says_what_to_do(go, capsys, says, does):
    calls = stand_in(go, fail="torch==", says=says)
    assert go.main("setup") == 1
    out, err = capsys.readouterr()
    assert says in out and does in err and "Traceback" not in out + err
    assert 1 <= len(re.findall(r"\.(\s|$)", err)) <= 2, "one or two sentences"
    assert not (go.ENV / ".peftlab").exists() and len(calls()) == 1, "nothing is installed after a failure"


@posix
def test_the_build_of_torch_can_be_chosen_and_is_remembered(go, monkeypatch, capsys):
    calls = stand_in(go)
    monkeypatch.setenv("PEFTLAB_TORCH", "cu130")
    go.setup()
    assert f"torch=={go.TORCH}+cu130" in calls()[0] and calls()[0].endswith("/whl/cu130")
    monkeypatch.delenv("PEFTLAB_TORCH")
    before = len(calls())
    go.setup()
    assert len(calls()) == before, "without the variable the build that is there stays"
    monkeypatch.setenv("PEFTLAB_TORCH", "gpu")
    assert go.main("setup") == 1 and "cu130" in capsys.readouterr().err


@posix
def test_keep_touches_no_torch(go, monkeypatch, capsys):
    monkeypatch.setenv("PEFTLAB_TORCH", "keep")
    calls = stand_in(go)
    assert go.main("setup") == 1 and "no torch can be imported" in capsys.readouterr().err
    calls = stand_in(go, without="no-such-word")
    assert go.main("setup") == 0 and not any("torch==" in c for c in calls())


@posix
def test_a_torch_that_is_already_there_stays(go):
    calls = stand_in(go, without="no-such-word")
    go.setup()
    assert not any("torch==" in c for c in calls())


@pytest.mark.parametrize("works", [True, False])
def test_without_the_venv_module_virtualenv_is_used(go, monkeypatch, works):
    seen = []
    def run(command, **kw):
        seen.append(command)
        return subprocess.CompletedProcess(command, 0 if works else 1)
    monkeypatch.setitem(sys.modules, "ensurepip", None)          # as Debian has it without python3-venv
    monkeypatch.setattr(go, "ok", lambda *command: False)
    monkeypatch.setattr(go.subprocess, "run", run)
    if works:
        go.create()
        assert "--target" in seen[0] and "virtualenv" in seen[0] and seen[1][2:] == ["virtualenv", "-q", str(go.ENV)]
    else:
        with pytest.raises(go.Stop, match="python3-venv"):
            go.create()
        assert len(seen) == 1


def test_options_pass_through_to_jupyterlab(go, monkeypatch):
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    seen = []
    monkeypatch.setattr(go, "setup", lambda extras: seen.append(extras))
    monkeypatch.setattr(go, "become", lambda command, env: seen.append(command))
    go.main("lab", "--no-browser", "--ip=0.0.0.0", "--port=9000")
    extras, command = seen
    assert extras == "lab" and command[:3] == [str(go.python()), "-m", "jupyterlab"]
    assert command[-3:] == ["--no-browser", "--ip=0.0.0.0", "--port=9000"]
    assert f"--ServerApp.root_dir={ROOT / 'labs'}" in command and not any("token" in c for c in command)
    root = getattr(os, "geteuid", lambda: 1)() == 0
    assert ("--allow-root" in command) == root


def test_another_jupyter_or_python_plays_no_part(go, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("JUPYTER_TOKEN", "mine")
    env = go.environ()
    assert "/elsewhere" not in env.values() and env["JUPYTER_TOKEN"] == "mine"
    assert all(env[k].startswith(str(go.ENV)) for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"))


@posix
def test_the_test_command_runs_everything_or_what_is_asked(go, monkeypatch):
    stand_in(go)
    log = go.ENV.parent / "calls"
    for options in ((), ("tests/test_start.py", "-x")):
        log.write_text("")
        assert go.main("test", *options) == 0
        last = log.read_text().splitlines()[-1]
        assert last.startswith("-m pytest -q") and last.endswith(" ".join(options))
        assert ("-n" in last.split()) == (not options)
    monkeypatch.setattr(go, "setup", lambda extras: None)
    stand_in(go, fail="-m pytest")
    assert go.main("test") == 1, "the exit status is pytest's"


def test_unknown_commands_get_the_help(go, capsys):
    assert go.main("labs") == 2 and "python3 go.py lab" in capsys.readouterr().out
    assert go.main("--help") == 0


@posix
@pytest.mark.slow
def test_jupyterlab_comes_up_on_labs_whatever_the_user_has_configured(tmp_path):
    """The real thing, from this environment: the printed address answers, and asks for its token."""
    (tmp_path / ".jupyter").mkdir()
    (tmp_path / ".jupyter/jupyter_server_config.py").write_text("raise SystemExit('somebody else has set this up')")
    code = ("import sys, pathlib; sys.path.insert(0, sys.argv[1]); import go; go.ENV = pathlib.Path(sys.prefix); "
            "go.setup = lambda extras: None; go.main('lab', '--no-browser', '--ip=127.0.0.1', '--port=0')")
    env = {**os.environ, "HOME": str(tmp_path)}
    env.pop("JUPYTER_TOKEN", None)
    server = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], env=env, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if address := re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=(\w+)", line):
                break
        else:
            pytest.fail("no address was printed:\n" + "".join(said))
        base, token = address.groups()
        names = {f["name"] for f in answer(f"{base}/api/contents?token={token}")["content"]}
        assert {n for n in names if n.endswith(".ipynb")} == {p.name for p in (ROOT / "labs").glob("*.ipynb")}
        with pytest.raises(urllib.error.HTTPError):
            answer(f"{base}/api/contents")
    finally:
        server.terminate()
        server.wait(30)


def answer(url, patience=30):
    """The JSON at `url`, once the server listens."""
    end = time.monotonic() + patience
    while True:
        try:
            return json.load(urllib.request.urlopen(url, timeout=10))
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


# --- environments and the wheel -------------------------------------------------------------------------------------

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
