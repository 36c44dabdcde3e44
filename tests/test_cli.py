import json
import os
import pathlib
import subprocess
import sys

import pytest
from small import backbone, home, sentences, write  # noqa: F401

import peftlab as pl
from peftlab import cli, ledger

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    task = write(folder / "task.tsv", sentences(120))
    return ["--backbone", backbone(folder / "tiny"), "--task", task, "--steps", "4", "--batch", "8", "--every", "2"]


def call(capsys, *args):
    code = cli.main([str(a) for a in args])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_methods_lists_the_registry(capsys):
    code, out, _ = call(capsys, "methods", "--json")
    rows = json.loads(out)
    assert code == 0 and [r["name"] for r in rows] == list(pl.METHODS)
    keys = "name aliases equation review delta_tuning sparse_view paper sites knobs merges".split()
    assert all(set(keys) <= r.keys() for r in rows)
    code, out, _ = call(capsys, "methods")
    assert code == 0 and len(out.splitlines()) == len(rows) + 1 and pl.get("lora").equation in out


def test_run_prints_one_json_object(place, home, capsys):
    code, out, err = call(
        capsys,
        "run",
        "--method",
        "lora",
        "--set",
        "r=4",
        "--set",
        "alpha=8",
        "--where",
        "q v",
        "--layers",
        "0-1",
        *place,
        "--seed",
        3,
        "--size",
        40,
        "--lr",
        "0.01",
        "--json",
    )
    result = json.loads(out)
    keys = "spec task metric split score validation baselines counts seconds device versions peak".split()
    assert code == 0 and set(keys) <= result.keys() and {"delta", "head", "total"} <= result["counts"].keys()
    assert {"majority", "head", "full"} == result["baselines"].keys() and len(out.splitlines()) == 1
    assert result["spec"]["recipe"] == [dict(method="lora", where="q v", layers=[0, 1], settings=dict(r=4, alpha=8))]
    assert result["spec"]["seed"] == 3 and result["spec"]["size"] == 40 and result["spec"]["lr"] == 0.01
    assert "step 4" in err and not result["cached"]
    again = json.loads(call(capsys, "run", "--recipe", spec_file(home, result["spec"]), "--json")[1])
    assert again["cached"] and again["score"] == result["score"]
    fresh = json.loads(call(capsys, "run", "--recipe", spec_file(home, result["spec"]), "--fresh", "--json")[1])
    assert not fresh["cached"] and [r["loss"] for r in fresh["rows"]] == [r["loss"] for r in result["rows"]]


def spec_file(home, spec):
    path = home / "spec.json"
    path.write_text(json.dumps(spec))
    return path


def test_run_prints_a_table_with_its_baselines(place, home, capsys):
    code, out, err = call(capsys, "run", *place, "--baselines")
    assert code == 0 and "accuracy on test" in out and "head only" in out and "not run" not in out
    assert "baseline step 4" in err
    assert sorted(r["spec"]["recipe"][0]["method"] for r in ledger.records(ledger.own())) == ["full", "head", "lora"]
    code, out, _ = call(capsys, "run", *place)
    assert code == 0 and "from the ledger; --fresh runs again" in out


def test_a_recipe_file_of_several_rows(place, home, capsys):
    path = home.parent / "hybrid.json"
    path.write_text(json.dumps([dict(method="lora", settings=dict(r=2)), dict(method="bitfit")]))
    code, out, _ = call(capsys, "run", "--recipe", path, *place)
    assert code == 0 and out.startswith("lora q v r=2") and " + bitfit" in out


BAD = {
    "method": (["--method", "lroa"], "peftlab: unknown method 'lroa'; the nearest"),
    "setting": (["--set", "r8"], "peftlab: --set takes KEY=VALUE, such as r=8, not 'r8'"),
    "word": (["--set", "r=eight"], "peftlab: r (rank) must be a whole number, not 'eight'"),
    "layers": (["--layers", "1-b"], "peftlab: layers are written like"),
    "layer": (["--layers", "9"], "peftlab: layer 9 does not exist"),
    "task": (["--task", "file:/nowhere.tsv"], "peftlab: /nowhere.tsv: no such file or folder"),
    "column": (
        ["--label", "lable"],
        "peftlab: task.tsv has no column 'lable' for the label; the columns are text, label",
    ),
    "metric": (["--metric", "accuray"], "peftlab: unknown metric for classification 'accuray'"),
    "recipe": (["--recipe", "/nowhere.json"], "peftlab: --recipe /nowhere.json: No such file or directory"),
    "both": (["--recipe", "x.json", "--method", "lora"], "peftlab: --recipe says which methods"),
    "head": (["--head", "frosen"], "peftlab: unknown head policy 'frosen'; the nearest"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_on_stderr(place, home, capsys, case):
    more, sentence = BAD[case]
    code, out, err = call(capsys, "run", *place, *more)
    assert code == 2 and out == "" and err.splitlines()[-1].startswith(sentence)
    assert sum(line.startswith("peftlab: ") and "guessed" not in line for line in err.splitlines()) == 1
    assert ledger.records(ledger.own()) == []


def test_an_interrupt_ends_with_130(place, home, capsys, monkeypatch):
    monkeypatch.setattr("peftlab.runs.train", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    code, out, _ = call(capsys, "run", *place, "--json")
    assert code == 130 and json.loads(out)["stopped"]


def test_labs_run_reports_each_lab(capsys, monkeypatch):
    seen, read = [], dict(cells=20, lines=70, words=900)

    def labs(names, **how):
        seen.append((list(names), how))
        return [
            dict(name="00_tour", ok=True, seconds=1.25, peak_rss_mb=300.0, error=None, **read),
            dict(name="01_x", ok=names == [], seconds=2.0, peak_rss_mb=None, error="cell 3: it broke", **read),
        ]

    monkeypatch.setattr("peftlab.labs.run_labs", labs)
    code, out, err = call(capsys, "labs", "run", "01_x", "--profile", "cpu", "--out", "there")
    assert code == 1 and "FAILED" in out and "cell 3: it broke" in err
    assert seen[0] == (["01_x"], dict(profile="cpu", out="there", jobs=2, timeout=600))
    code, out, _ = call(capsys, "labs", "run", "--json")
    assert code == 0 and {"name", "ok", "seconds", "peak_rss_mb"} <= json.loads(out)[0].keys()


def test_the_command_line_as_a_program(tmp_path):
    env = os.environ | dict(PYTHONPATH=str(ROOT), PEFTLAB_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "peftlab", "run", "--method", "nothing-like-it"], env=env, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("peftlab: unknown method")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("command", (["peftlab", "tasks", "--json"], ["peftlab.world", "sample", "-n", "2000"]))
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, command):  # both write more than a pipe holds
    env = os.environ | dict(PYTHONPATH=str(ROOT), PEFTLAB_HOME=str(tmp_path))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-m", *command], env=env, **pipes) as writer:
        assert writer.stdout.readline()
        writer.stdout.close()
        assert writer.stderr.read() == b"" and writer.wait() == 141
