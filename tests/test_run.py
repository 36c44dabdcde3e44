"""One run: what its result holds, that it repeats, heads, precisions, generation, two processes."""

import json
import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from running import ROOT, R, done, place, tiny_spec  # noqa: F401
from small import backbone, home, sentences, verdicts, write  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, ledger
from peftlab.results import Result, frame
from peftlab.runs import baselines, execute, run
from peftlab.specs import identify, like, spec
from peftlab.training import fit, machine, schedule, split


def losses(result):
    return [row["loss"] for row in result.rows]


def test_a_result_holds_what_it_promises(done):
    result, _ = done
    assert [row["step"] for row in result.rows] == [1, 5, 10, 15, 20]
    assert all({"step", "loss", "lr", "seconds"} <= row.keys() for row in result.rows)
    assert [row["step"] for row in result.rows if "validation" in row] == [5, 10, 15, 20]
    assert (
        result.split == "test"
        and result.metric == "accuracy"
        and 0 <= result.score <= 1
        and 0 <= result.validation <= 1
    )
    assert result.baselines == dict(majority=0.5, head=None, full=None) or 0 < result.baselines["majority"] < 1
    # RoBERTa-shaped, 2 layers of width 32, LoRA r=8 on q and v; a dense layer and two classes in the head
    assert result.counts["delta"] == 2 * 2 * 8 * (32 + 32) and result.counts["head"] == 32 * 32 + 32 + 32 * 2 + 2
    assert result.seconds == result.rows[-1]["seconds"] > 0 and result.device == "cpu" and not result.stopped
    assert result.peak["saved_bytes"] > 0 and result.peak["allocated_bytes"] is None
    assert result.versions["torch"] == torch.__version__ and result.versions["peftlab"] == pl.__version__
    assert json.loads(json.dumps(result.json())) == result.json()


def test_the_same_spec_gives_the_same_losses_bit_for_bit(place, done, home):
    first, _ = done
    torch.manual_seed(999)  # whatever the caller drew before
    assert losses(run(tiny_spec(place))) == losses(first)
    box = []
    thread = threading.Thread(target=lambda: box.append(run(tiny_spec(place), fresh=True)), daemon=True)
    thread.start()
    thread.join(120)
    assert losses(box[0]) == losses(first) and box[0].score == first.score
    assert losses(run(tiny_spec(place, seed=1))) != losses(first)


def test_a_run_gives_back_the_callers_threads_and_random_numbers(place, home):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        with machine():
            assert torch.get_num_threads() == int(os.environ.get("PEFTLAB_THREADS", 1))
        run(tiny_spec(place, steps=2))
        assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)


def test_a_second_call_comes_from_the_ledger(place, done, monkeypatch):
    first, folder = done
    monkeypatch.setenv("PEFTLAB_HOME", str(folder))
    monkeypatch.setattr(R, "execute", lambda *a: pytest.fail("it ran again"))
    again = run(tiny_spec(place))
    assert again.cached and {**again.json(), "cached": False} == first.json()
    with pytest.raises(pytest.fail.Exception):
        run(tiny_spec(place), fresh=True)


def test_the_hash_follows_every_setting_and_the_data(place, tmp_path):
    base = tiny_spec(place)
    changes = dict(
        seed=1,
        steps=21,
        batch=8,
        lr=2e-2,
        size=50,
        head="frozen",
        precision="bf16",
        accumulate=2,
        pretrained=False,
        every=4,
        task_knobs=dict(max_length=9),
        r=4,
        where="q",
        layers=[0],
    )
    hashes = {identify(base)} | {identify(tiny_spec(place, **{k: v})) for k, v in changes.items()}
    assert len(hashes) == len(changes) + 1
    assert identify(tiny_spec(place, r=8, where="q v")) == identify(base)  # defaults said aloud are the same run
    assert identify(spec(**json.loads(json.dumps(base)))) == identify(base)
    name = write(tmp_path / "mine.tsv", sentences(50))
    before = identify(tiny_spec(place | dict(task=name)))
    write(tmp_path / "mine.tsv", sentences(50, seed=5))
    assert identify(tiny_spec(place | dict(task=name))) != before


@pytest.mark.parametrize("method", sorted(pl.METHODS))
def test_every_method_learns_a_word_task(place, home, method):
    result = run(tiny_spec(place, method, steps=10, lr=None))
    assert all(math.isfinite(v) for v in losses(result)) and result.counts["total"] > 0
    assert result.score is not None


def test_full_fine_tuning_learns_and_joins_the_baselines(place, home):
    wanted = tiny_spec(place, "lora", steps=60)
    assert run(wanted).baselines["full"] is None
    head, full = baselines(wanted)
    assert full.spec["recipe"][0]["method"] == "full" and full.spec["lr"] == pl.get("full").lr
    strong = run(tiny_spec(place, "full", steps=120, lr=3e-3))
    assert strong.score > 0.9  # one word decides: it can be learned
    again = run(wanted)
    assert again.cached and again.baselines["head"] == head.score and again.baselines["full"] == full.score


def test_each_sees_every_row_and_may_stop(place, home):
    seen = []
    result = run(tiny_spec(place), each=lambda row: seen.append(row) or row["step"] == 10)
    assert result.stopped and result.score is None and [r["step"] for r in seen] == [1, 5, 10] and result.rows == seen
    assert ledger.records(ledger.own()) == []  # never taken for a finished run
    assert not run(tiny_spec(place)).stopped


def test_stop_is_heard_after_any_update(place, home):
    asked = iter([False, False, True])
    result = run(tiny_spec(place, steps=20, every=10), stop=lambda: next(asked))
    assert result.stopped and result.score is None and [r["step"] for r in result.rows] == [1, 3]


def test_fit_restores_the_last_good_state(place):
    model, rows = pl.backbone(place["backbone"]), []
    undo = pl.attach(model, "lora")
    stream = pl.task(place["task"]).batches(model.tokenizer, "train", 8, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PeftlabError, match="not finite at step 2"):
        for row in fit(model, stream, lr=1e30, steps=10, every=1, clip=1e30):
            rows.append(row)
    after = model.state_dict()  # the state whose loss was finite: the one before the first update
    assert len(rows) == 1 and all(torch.equal(before[k], after[k]) for k in before) and not model.training
    undo()


class Verbs(torch.nn.Module):
    """A delta's two optional verbs, written down as they are called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def penalty(self):
        self.calls.append("penalty")
        return torch.zeros(())

    def after_step(self, step, total):
        self.calls.append((step, total))


def test_fit_calls_the_optional_verbs(place):
    model, verbs = pl.backbone(place["backbone"]), Verbs()
    stream = pl.task(place["task"]).batches(model.tokenizer, "train", 8, seed=0)
    assert len(list(fit(model, stream, [verbs, torch.nn.Identity()], steps=2, every=1))) == 2
    assert verbs.calls == ["penalty", (1, 2), "penalty", (2, 2)]
    model.requires_grad_(False)
    with pytest.raises(PeftlabError, match="nothing to train"):
        next(fit(model, stream))


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(i, 100) for i in range(1, 101)]
    assert (
        rates[9] == 1 == max(rates)
        and rates[:10] == sorted(rates[:10])
        and rates[9:] == sorted(rates[9:], reverse=True)
    )
    assert 0 < rates[0] <= 0.1 and 0 < rates[-1] < 0.02 and schedule(1, 1) == 1


def test_accumulation_gives_the_losses_of_the_whole_batch(place, home):
    whole, parts = (run(tiny_spec(place, "ia3", accumulate=n, head="frozen")) for n in (1, 4))
    # dropout is drawn per part, so the losses agree in size only
    assert (
        losses(parts) == pytest.approx(losses(whole), abs=0.1) and parts.peak["saved_bytes"] < whole.peak["saved_bytes"]
    )


def test_precisions_follow_each_other_in_one_process(place, home):
    first = run(tiny_spec(place))
    half = run(tiny_spec(place, precision="bf16"))
    again = run(tiny_spec(place), fresh=True)
    assert losses(first) == losses(again) != losses(half) and losses(half) == pytest.approx(losses(first), abs=0.2)


def test_saved_bytes_tell_lora_from_full_fine_tuning(place, home):
    saved = {m: run(tiny_spec(place, m, steps=1)).peak["saved_bytes"] for m in ("head", "lora", "full")}
    assert saved["head"] < saved["lora"] < saved["full"]


def test_the_heads_policies(place, home):
    trained, frozen = (execute(tiny_spec(place, head=h), "x") for h in ("trained", "frozen"))
    drawn = {n: p.clone() for n, p in pl.head_parameters(pl.backbone(place["backbone"])).items()}
    assert all(torch.equal(drawn[n], frozen[1][n]) for n in drawn) and not all(
        torch.equal(drawn[n], trained[1][n]) for n in drawn
    )
    shared = run(tiny_spec(place, head="shared"))
    kept = list((home / "heads").glob("*.safetensors"))
    assert len(kept) == 1 and shared.baselines["head"] is not None  # the head-only run is a result of its own
    assert shared.counts == trained[0].counts
    before = kept[0].stat().st_mtime_ns
    run(tiny_spec(place, "ia3", head="shared"))
    assert (
        kept[0].stat().st_mtime_ns == before and len(list((home / "heads").glob("*"))) == 1
    )  # trained once, used again


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("metric", ["exact_match", "bleu", "perplexity"])
def test_generation_trains_and_is_scored(tmp_path, home, family, metric):
    where = dict(backbone=backbone(tmp_path / family, family), task=write(tmp_path / "g.jsonl", verdicts(200)))
    result = run(spec("full", **where, steps=80, batch=16, lr=1e-2, every=40, task_knobs=dict(metric=metric)))
    assert result.rows[-1]["loss"] < 0.5 * result.rows[0]["loss"]
    assert (
        result.baselines["majority"] is None if metric == "perplexity" else result.baselines["majority"] < result.score
    )
    # one of two answers of five tokens: knowing nothing is right half the time and gives a perplexity of 2 ** (1 / 5)
    assert result.score < 2**0.1 if metric == "perplexity" else result.score > dict(exact_match=0.8, bleu=80)[metric]


def test_greedy_answers_are_what_generation_gives(tmp_path, home):
    from peftlab import scoring

    for family in ("gpt2", "t5"):
        where = dict(backbone=backbone(tmp_path / family, family), task=write(tmp_path / "g.jsonl", verdicts(120)))
        task = pl.task(where["task"], kind="lm" if family == "gpt2" else "seq2seq")
        model = pl.backbone(where["backbone"], head="seq2seq")
        undo = pl.attach(model, "full")
        list(fit(model, task.batches(model.tokenizer, "train", 16, seed=0), lr=1e-2, steps=25, every=25))
        batch = next(task.batches(model.tokenizer, "test", 12))
        with torch.no_grad():
            exact = [a == b for a, b in zip(*scoring.answers(model, batch), strict=True)]
            same = [a == b for a, b in zip(*scoring.texts(model, batch), strict=True)]
        assert exact == same
        undo()


def test_generation_needs_a_decoder(place, tmp_path, home):
    task = write(tmp_path / "g.jsonl", verdicts(60))
    with pytest.raises(PeftlabError, match="cannot carry a seq2seq head; take a decoder or a T5"):
        run(spec("lora", backbone=place["backbone"], task=task))


def test_one_head_for_two_processes_shares_each_batch():
    class Half:
        num_processes, device = 2, torch.device("cpu")

    batch = dict(labels=torch.arange(8), input_ids=torch.arange(16).view(8, 2))
    seen = []
    for Half.process_index in (0, 1):
        seen += [part["labels"].tolist() for part in split(batch, 2, Half)]
    assert sorted(sum(seen, [])) == list(range(8)) and len(seen) == 4
    with pytest.raises(PeftlabError, match="batch 8 cannot be split into 6 equal parts"):
        split(batch, 3, Half)


def test_two_processes_train_like_one(place, home, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(tiny_spec(place, "ia3", head="frozen", steps=4, every=1)))
    env = os.environ | dict(ACCELERATE_USE_CPU="true", PEFTLAB_DEVICE="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    call = ["-m", "peftlab", "run", "--recipe", str(tmp_path / "spec.json"), "--json"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two, one = (
        json.loads(
            subprocess.run([sys.executable, *how, *call, "--fresh"], env=env, capture_output=True, check=True).stdout
        )
        for how in (launch, [])
    )
    assert two["device"] == "cpu × 2" and two["peak"]["saved_bytes"] < one["peak"]["saved_bytes"]
    # the tiny backbone drops out at random, per process: only the first loss's order of size can agree
    assert [r["loss"] for r in two["rows"]] == pytest.approx([r["loss"] for r in one["rows"]], abs=0.05)
    assert len(ledger.records(ledger.own())) == 2  # one line a run, whatever the number of processes


def test_frame_has_one_row_a_result(done):
    first, folder = done
    table = frame([first, first.json()])
    assert len(table) == 2 and (table["method"] == "lora").all() and (table["r"] == 8).all()
    assert (table["score"] == first.score).all() and (table["delta"] == first.counts["delta"]).all()
    assert frame(ledger.records(folder / "results.jsonl"))["hash"].tolist() == [first.hash]
    assert like(first.spec, "head")["lr"] == pl.get("head").lr and isinstance(Result.of(first.json()), Result)
