"""The benchmark runs, compares like with like, and tells what it measured; no figure of time is judged here."""

import json
import os
import statistics
import subprocess
import sys

import nbformat
import pytest
import torch

from peftlab import PeftlabError, errors, training
from peftlab.bench import (
    abroad,
    alone,
    command,
    course,
    elsewhere,
    holding,
    peers,
    shapes,
    sides,
    speed,
    stepping,
    tables,
)

pytest.importorskip("peft")
SMALL = ["--size", "small"]


def options(*more):
    return command.parsed([*SMALL, *more])


def ran(folder, suite, *more):
    """The rows of a suite, as the command writes them."""
    assert command.main([*SMALL, "--suite", suite, "--out", str(folder), *more]) == 0
    return [json.loads(line) for line in (folder / f"bench-{suite}.jsonl").read_text().splitlines()]


# Parity -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("parity"), "parity")


def test_equal_numbers_give_equal_losses(parity):
    same = [r for r in parity if r["verdict"] == "same"]
    assert len(parity) == 3 * len(peers.PEERS) and len(same) >= 25
    for row in same:
        assert row["trained"] == row["peer_trained"] > 0 and row["apart"] < 1e-5
        assert row["moved"] > 10 * row["apart"] or row["method"] == "full", "the delta does something"
    assert {r["method"] for r in same} == {*peers.PEERS}, "each method is the same function at least once"


def test_what_differs_says_in_what(parity):
    said = {(r["shape"].partition("-")[0], r["method"]): r["verdict"] for r in parity if r["verdict"] != "same"}
    wanted = {(f, p.name): words for p in peers.PEERS.values() for f, words in (p.differs | p.without).items()}
    assert said == wanted


def test_wrong_numbers_are_told(monkeypatch):
    def carry(pair):
        with torch.no_grad():
            pair.theirs.get_parameter("base_model.model.roberta.encoder.layer.0.output.dense.bias").add_(1.0)

    monkeypatch.setitem(peers.PEERS, "ia3", peers.PEERS["ia3"]._replace(carry=carry))
    (row,) = command.parity.rows(options("--methods", "ia3", "--shapes", "roberta-tiny"))
    assert row["verdict"] == "WRONG" and row["apart"] > 1e-5


def test_rows_say_versions_and_machine(parity):
    for row in parity:
        assert {"python", "torch", "transformers", "peft"} <= {*row["versions"]}
        assert row["machine"]["cpu"] and row["machine"]["threads"] >= 1 and row["device"] == "cpu"
        assert (row["suite"], row["precision"], row["size"]) == ("parity", "fp64", "small")
        assert row["when"].startswith("20")


# Speed --------------------------------------------------------------------------------------------


def test_speed_times_all_sides_in_turns(tmp_path, monkeypatch, capsys):
    kept = []
    turns = lambda steppers, repeats: kept.append(stepping.in_turns(steppers, repeats)) or kept[-1]
    monkeypatch.setattr(speed, "in_turns", turns)
    shapes_ = ["--shapes", "roberta-tiny,t5-tiny"]
    rows = ran(tmp_path, "speed", *shapes_, "--methods", "lora,adalora,bitfit,adapter", "--repeats", "3")
    kept = [{side: a[side] + b[side] for side in a} for a, b in zip(kept[::2], kept[1::2], strict=True)]  # two builds
    told = {(r["shape"], r["method"]): r for r in rows}
    assert "no biases" in told["t5-tiny", "bitfit"]["note"] and "--adapters" in told["t5-tiny", "adapter"]["note"]
    timed = [r for r in rows if "note" not in r]
    assert len(timed) == len(kept) == 5
    for row, seconds in zip(timed, kept, strict=True):
        assert {*seconds} == {"ours", "theirs", "full", "floor"} and all(len(s) == 6 for s in seconds.values())
        for side, each in seconds.items():
            assert row[f"{side}_ms"] == pytest.approx(1000 * statistics.median(each))
        for side in ("theirs", "full", "floor"):
            ratios = [a / b for a, b in zip(seconds["ours"], seconds[side], strict=True)]
            assert row[f"to_{side}"] == pytest.approx(statistics.median(ratios))
        assert row["flops_to_floor"] == row["ours_flops"] / row["floor_flops"] > 0.5
        assert row["full_flops"] > 1.3 * row["floor_flops"], "full fine-tuning has the gradients of all weights too"
    assert told["roberta-tiny", "lora"]["ours_flops"] == told["roberta-tiny", "lora"]["theirs_flops"]
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[:3] == ["shape", "method", "peer"] and len(table) > 1 + len(rows)


def test_turns_alternate_and_ratios_are_of_neighbours():
    class Said:
        seconds = property(lambda self: [float(i) for i, side in enumerate(order) if side is self])

        def step(self):
            order.append(self)

    order, a, b = [], Said(), Said()
    stepping.in_turns(dict(a=a, b=b), repeats=2, warmup=1)
    assert order == [b, a, a, b, b, a]
    assert stepping.ratio([1.0, 2.0, 9.0], [1.0, 1.0, 3.0]) == pytest.approx([1.5, 2.0, 2.5])


def test_the_floor_goes_through_all_layers_and_trains_no_weight():
    for name in shapes.SIZES["small"]["shapes"]:
        form = shapes.shape(name)
        model = sides.floor(form.model(), form)
        blocks = [m for m in model.modules() if type(m).__name__.endswith(("Layer", "Block"))]
        assert sides.learning(model) == 1 and len(blocks) >= form.layers
        heard = set()
        for m in blocks:
            m.register_full_backward_hook(lambda m, into, out, heard=heard: heard.add(m))
        model(**form.batch(2, 8)).loss.backward()
        assert heard == {*blocks}
        assert [n for n, p in model.named_parameters() if p.grad is not None] == ["lifted.e"]


def test_adapters_take_turns_over_pipes(tmp_path):
    """A Python without that library is told apart; its protocol is played by a few lines."""
    script = tmp_path / "played.py"
    script.write_text(
        "import json, sys\n"
        "asked = json.loads(sys.stdin.readline())\n"
        "print(json.dumps(dict(flops=len(asked['batch']['input_ids']), trained=1, saved_bytes=2)), flush=True)\n"
        "for _ in sys.stdin: print(json.dumps(dict(seconds=0.5)), flush=True)\n"
    )
    form, how, one = shapes.shape("roberta-tiny"), options(), abroad.PEERS["adapter"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abroad, "SCRIPT", script)
        with abroad.Process(sys.executable, form, one, how) as there:
            there.step(), there.step()
            assert there.flops() == how.batch and there.seconds == [0.5, 0.5]
        assert there.job.returncode == 0
        one_row = ["--shapes", "roberta-tiny", "--methods", "adapter", "--adapters", sys.executable]
        (row,) = ran(tmp_path, "speed", *one_row)
    assert how.builds > 1 and row["theirs_ms"] == 500, "one process serves all builds"
    assert row["to_theirs"] == pytest.approx(row["ours_ms"] / 500)
    with pytest.raises(PeftlabError, match="cannot be run.*pip install"):
        abroad.Process(str(tmp_path / "no-python"), form, one, how)
    with pytest.raises(PeftlabError, match="given by --adapters failed: .*adapters"):
        abroad.Process(sys.executable, form, one, how)


@pytest.mark.skipif("PEFTLAB_ADAPTERS" not in os.environ, reason="PEFTLAB_ADAPTERS names no Python with adapters")
def test_adapters_train_as_many_numbers(tmp_path):
    there = ["--methods", ",".join(abroad.PEERS), "--adapters", os.environ["PEFTLAB_ADAPTERS"]]
    for row in ran(tmp_path, "speed", *there):
        assert row.get("note") or row["trained"] == row["theirs_trained"] > 0


# Memory -------------------------------------------------------------------------------------------


def test_memory_of_each_side_alone(tmp_path):
    (row,) = ran(tmp_path, "memory", "--shapes", "roberta-tiny", "--methods", "lora")
    assert 0 < row["ours_saved_bytes"] <= row["theirs_saved_bytes"]
    assert row["saved_ratio"] == row["ours_saved_bytes"] / row["theirs_saved_bytes"] <= 1
    assert row["ours_gradient_bytes"] == row["theirs_gradient_bytes"] == 4 * 2 * 2 * 2 * 64 * 8
    assert row["ours_optimizer_bytes"] == row["theirs_optimizer_bytes"] > 2 * row["ours_gradient_bytes"]
    if sys.platform == "linux":
        assert all(row[f"{side}_peak_rss"] > row[f"{side}_rise"] > 0 for side in ("ours", "theirs"))
    assert row["ours_allocated"] is None and not any("allocated" in c.key for c in holding.columns(options()))


# not bitfit: a norm keeps its bias, and b + Δb, one vector for each norm, is no tensor of the model's own; and
# PEFT's prefix in T5 is in the decoder only
LEAST = {form: [n for n, p in peers.PEERS.items() if n != "bitfit" and form.split("-")[0] not in p.without]
         for form in shapes.SIZES["small"]["shapes"]}
LEAST["t5-tiny"].remove("prefix")


@pytest.mark.parametrize("name, one", [(form, one) for form, names in LEAST.items() for one in names])
def test_nothing_saves_more_for_the_backward_pass_than_its_peer(name, one):
    form, peer = shapes.shape(name), peers.PEERS[one]
    base, batch = form.model(), form.batch(2, 128)  # as long as fused attention needs to be taken on every CPU
    ours, theirs = sides.ours(base, form, peer).model, sides.theirs(base, form, peer)
    kept = [elsewhere.saved_by(lambda m=m: m(**batch).loss, m)[0] for m in (ours, theirs)]
    assert 0 < kept[0] <= kept[1]


def test_what_is_saved_is_counted_as_in_training():
    form, report = shapes.shape("gpt2-tiny"), {}
    model = sides.ours(form.model(), form, peers.PEERS["prefix"]).model
    with training.measure(model, report):
        model(**form.batch(2, 8))
    assert report["saved_bytes"] == elsewhere.saved_by(lambda: model(**form.batch(2, 8)).loss, model)[0] > 0


def test_a_side_that_fails_is_told(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback …\nMemoryError: no more\n")
    monkeypatch.setattr(alone.subprocess, "run", lambda *a, **kw: failed)
    with pytest.raises(PeftlabError, match=r"lora \(ours\) at t5-tiny failed: MemoryError: no more"):
        alone.ask(shape="t5-tiny", method="lora", side="ours")


# Labs and the command -----------------------------------------------------------------------------


def test_a_sweep_gives_the_same_however_it_is_made(tmp_path):
    rows = ran(tmp_path, "many")
    ways = ["one by one", "new processes", "processes at hand", "one pass"]
    assert [r["how"] for r in rows] == ways and rows[0]["times"] == 1
    assert all(r["seconds"] > 0 and r["runs"] == 2 and r["apart"] < 1e-5 for r in rows)


def test_labs_and_imports_are_timed(tmp_path, monkeypatch):
    parameters = nbformat.v4.new_code_cell('profile = "interactive"', metadata=dict(tags=["parameters"]))
    kernel = dict(name="python3", display_name="Python 3", language="python")
    empty = nbformat.v4.new_code_cell('import os; assert os.listdir(os.environ["PEFTLAB_HOME"]) == []')
    book = nbformat.v4.new_notebook(cells=[parameters, empty], metadata=dict(kernelspec=kernel))
    nbformat.write(book, tmp_path / "one.ipynb")
    monkeypatch.setattr(course, "MODULES", ("peftlab",))
    lab, module = ran(tmp_path, "labs", "--labs", str(tmp_path / "one.ipynb"))
    assert lab["name"] == "one" and lab["ok"] and lab["seconds"] > 0 and lab["error"] is None
    assert module["name"] == "import peftlab" and module["seconds"] > 0


@pytest.mark.parametrize(
    "more, words",
    [
        (["--suite", "sped"], "unknown suite 'sped'; the nearest is speed"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--size", "medium"], "unknown size"),
        (["--precision", "fp8"], "unknown precision"),
        (["--shapes", "roberta-5x384"], "unknown shape .*roberta-6x384"),
        (["--methods", "lora,loara"], "unknown method with a peer 'loara'; the nearest .*lora"),
        (["--repeats", "0"], "--repeats must be at least 1, not 0"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(more, words, capsys):
    with pytest.raises(PeftlabError, match=words):
        options(*more)
    assert errors.exit_code(lambda: command.main([*SMALL, *more])) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_a_gpu_or_peft_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PeftlabError, match="no CUDA GPU here; use --device cpu"):
        options("--device", "cuda")
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert options("--suite", "labs").suites == ["labs"]
    with pytest.raises(PeftlabError, match="pip install peft"):
        options("--suite", "speed")


def test_rows_are_kept_when_a_run_is_stopped(tmp_path, monkeypatch):
    def rows(options):
        yield dict(name="first")
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "rows", rows)
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, "labs")
    assert json.loads((tmp_path / "bench-labs.jsonl").read_text())["name"] == "first"
    with pytest.raises(PeftlabError, match="cannot be written .*--out"):
        ran(tmp_path / "bench-labs.jsonl", "labs")


def test_json_has_the_rows_of_the_file(tmp_path, capsys):
    rows = ran(tmp_path, "parity", "--json", "--methods", "ia3", "--shapes", "gpt2-tiny,t5-tiny")
    printed = json.loads(capsys.readouterr().out)["parity"]
    assert [r | p for r, p in zip(rows, printed, strict=True)] == rows


def test_a_table_keeps_its_columns():
    columns = (tables.Column("a", "word"), tables.Column("b", "n", ".1f"))
    lines = tables.table([dict(a="x", b=2.0), dict(a="long word")], columns)
    assert lines == ["word         n", "x          2.0", "long word    –"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; its twins are test_bench's other tests")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(precision, tmp_path):
    there = ["--device", "cuda", "--precision", precision, "--shapes", "roberta-tiny", "--methods", "lora"]
    assert ran(tmp_path, "parity", *there)[0]["verdict"] == "same"
    assert ran(tmp_path, "speed", *there)[0]["machine"]["gpu"]
    (row,) = ran(tmp_path, "memory", *there)
    assert row["ours_reserved"] >= row["ours_allocated"] > row["ours_saved_bytes"] > 0
