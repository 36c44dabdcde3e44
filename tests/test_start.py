"""The start: go.py's phases and sentences, on an old Python, without a network, with a torch that is there."""

import ast
import json
import os
import re
import subprocess
import sys
import urllib.request

import pytest
from starting import ROOT, answer, go, posix, stand_in  # noqa: F401


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
