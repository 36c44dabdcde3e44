"""The labs with the kernel and the widgets of a hosted notebook, which are older than those of `.venv`."""

import hashlib
import json
import os
import pathlib
import site
import subprocess
import sys
import venv

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[1]
# Colab's image of August 2026. What is not named here (torch, transformers, …) is that of the environment of the tests.
PINS = (
    "ipykernel==6.17.1 ipython==7.34.0 ipywidgets==7.7.1 plotly==5.24.1 anywidget==0.9.21 "
    "jupyter_client==7.4.9 traitlets==5.7.1"
).split()


@pytest.fixture(scope="module")
def hosted():
    """The Python of an environment with these versions; it is made once and stays beside `.venv`'s own files."""
    name = hashlib.sha256(" ".join([sys.version, *PINS]).encode()).hexdigest()[:12]
    folder = pathlib.Path(sys.prefix) / "share" / "peftlab" / f"hosted-{name}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "whole").exists():
        venv.create(folder, clear=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
        done = subprocess.run([*pip, *PINS], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the package index, to install {' '.join(PINS)}: {done.stderr.strip()[-300:]}")
        place = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True)
        rest = "\n".join([str(ROOT), *site.getsitepackages()])  # behind its own packages
        (pathlib.Path(place.stdout.decode().strip()) / "rest.pth").write_text(rest)
        (folder / "whole").touch()
    return python


def test_every_lab_runs_with_the_widgets_of_a_hosted_notebook(hosted, tmp_path, labs_home):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "PYTHON"))}
    env = own | dict(PEFTLAB_HOME=str(labs_home), COLAB_RELEASE_TAG="release", OMP_NUM_THREADS="1")
    versions = "import ipykernel, ipywidgets, plotly, anywidget, IPython as I, json; print(json.dumps([m.__version__ "
    versions += "for m in (ipykernel, I, ipywidgets, plotly, anywidget)]))"
    seen = subprocess.run([hosted, "-c", versions], env=env, capture_output=True, text=True, check=True)
    assert json.loads(seen.stdout) == [pin.split("==")[1] for pin in PINS[:5]]
    run = [hosted, "-m", "peftlab", "labs", "run", "--json", "--out", str(tmp_path / "out"), "--jobs", "1"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    assert rows and all(r["ok"] for r in rows)
    for row in rows:
        book = json.loads((tmp_path / "out" / f"{row['name']}.ipynb").read_text())
        assert "widgets" not in book["metadata"], "no state of widgets is stored"
        assert "Plotly.newPlot" in json.dumps(book), "figures bring their own script there"
