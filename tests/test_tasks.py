import pandas as pd
import pytest
import small

from peftlab import PeftlabError, collate, files, hub, metrics, scoring, tasks
from peftlab.tasks import task


@pytest.mark.parametrize("extension", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_task(tmp_path, extension, capsys):
    rows = small.sentences(60)
    path = tmp_path / f"mine{extension}"
    if extension == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        small.write(path, rows)
    t = task(f"file:{path}", seed=3)
    assert t.kind == "classification" and t.labels == ["0", "1"] and t.metric == "accuracy"
    assert {s: len(d) for s, d in t.data.items()} == dict(train=48, validation=6, test=6)
    texts = [r for d in t.data.values() for r in d["text"]]
    assert sorted(texts) == sorted(r["text"] for r in rows)  # every row is in one split, and only there
    assert "guessed that text is column 'text', label is column 'label'" in capsys.readouterr().err


def test_split_and_draw_follow_the_seed(tmp_path):
    name = small.write(tmp_path / "mine.tsv", small.sentences(100))
    a, b, c = (task(name, seed=s, size=20).data for s in (1, 1, 2))
    assert a["test"][:] == b["test"][:] and a["train"][:] == b["train"][:]
    assert a["test"][:] != c["test"][:] and len(a["train"]) == 20 and set(a["train"]["label"]) == {0, 1}


def test_folder_with_and_without_a_test_file(tmp_path):
    small.write(tmp_path / "a/train.tsv", small.sentences(50))
    small.write(tmp_path / "a/dev.tsv", small.sentences(10, 1))
    t = task(f"file:{tmp_path / 'a'}")
    assert {s: len(d) for s, d in t.data.items()} == dict(train=45, validation=5, test=10)
    small.write(tmp_path / "a/test.tsv", small.sentences(12, 2))
    t = task(f"file:{tmp_path / 'a'}")
    assert {s: len(d) for s, d in t.data.items()} == dict(train=50, validation=10, test=12)


def test_quotes_are_characters_in_tsv_and_quotes_in_csv(tmp_path):
    lines = ["say\tlab", '"half a quote\t0', "`` backquotes ''\t1", "NA\t0"] + [f"word {i}\t{i % 2}" for i in range(20)]
    (tmp_path / "q.tsv").write_text("\n".join(lines) + "\n")
    t = task(f"file:{tmp_path / 'q.tsv'}", text="say", label="lab")
    texts = {r for d in t.data.values() for r in d["text"]}
    assert {'"half a quote', "`` backquotes ''", "NA"} <= texts and len(texts) == 23
    (tmp_path / "q.csv").write_text('text,label\n"one, two",0\n"three ""four""\nfive",1\n' + "x,0\ny,1\n" * 5)
    texts = set(files.read(tmp_path / "q.csv")["text"])
    assert {"one, two", 'three "four"\nfive'} <= texts


def test_names_of_classes_and_pairs(tmp_path):
    rows = [dict(premise=f"a {i}", hypothesis="b", label=["no", "yes", "maybe"][i % 3]) for i in range(30)]
    t = task(small.write(tmp_path / "nli.jsonl", rows))
    assert t.labels == ["maybe", "no", "yes"] and "text2" in t.data["train"].column_names
    assert {t.labels[i] for i in t.data["train"]["label"]} == {"maybe", "no", "yes"}


def test_regression_and_generation_are_recognised(tmp_path):
    t = task(small.write(tmp_path / "r.jsonl", [dict(text=f"t {i}", label=i / 7) for i in range(30)]))
    assert t.kind == "regression" and t.metric == "correlation" and t.majority() == 0.0
    t = task(small.write(tmp_path / "g.jsonl", small.verdicts(200)))
    assert t.kind == "seq2seq" and t.metric == "exact_match" and 0 < t.majority() < 1
    t = task(small.write(tmp_path / "l.jsonl", [dict(text=f"t {i}") for i in range(40)]), kind="lm", text="text")
    assert t.kind == "lm" and t.metric == "perplexity" and t.majority() is None and t.lower_is_better


def test_majority_and_metrics_against_their_definitions(tmp_path):
    rows = [dict(text=f"t {i}", label=int(i % 4 == 0)) for i in range(200)]
    t = task(small.write(tmp_path / "m.jsonl", rows))
    assert t.majority() == pytest.approx(t.data["test"]["label"][:].count(0) / 20)
    p, y = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 true, 1 false positive, 1 false negative, 1 true negative
    assert metrics.accuracy(p, y) == 0.6
    assert metrics.f1(p, y) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.matthews(p, y) == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    assert metrics.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and metrics.spearman(
        [1, 2, 9], [3, 2, 1]
    ) == pytest.approx(-1)
    assert metrics.perplexity([-2.0, -4.0], []) == pytest.approx(2.718281828**3)
    assert metrics.bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)


def test_several_references_count_as_their_packages_count_them():
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    p = ["the plot was very dull", "a film", "it was fine"]
    y = [["the plot was dull", "very dull was the plot"], ["a great film"], ["it was fine", "fine it was", "was it"]]
    ranks = [[r[i] if i < len(r) else None for r in y] for i in range(3)]
    assert metrics.bleu(p, y) == sacrebleu.corpus_bleu(p, ranks).score < 100
    assert metrics.bleu(p, [[f"no {r}", r] for r in p]) == pytest.approx(100)
    assert metrics.bleu(p, [[r] for r in p]) == metrics.bleu(p, p) == pytest.approx(100)
    one = lambda right, text: RougeScorer(["rougeL"]).score(right, text)["rougeL"].fmeasure
    best = [max(one(r, text) for r in right) for text, right in zip(p, y, strict=True)]
    assert metrics.rouge(p, y) == pytest.approx(100 * sum(best) / 3) and metrics.rouge(p, p) == pytest.approx(100)


@pytest.mark.parametrize("metric", metrics.TEXTS)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_generated_text_meets_the_references_of_its_own_row(tmp_path, family, metric, monkeypatch):
    import datasets

    asked = [r["text"] for r in small.sentences(30)]
    rows = datasets.Dataset.from_list([dict(text=t, target="fine", references=["fine", f"{t} lovely"]) for t in asked])
    kind = "lm" if family == "gpt2" else "seq2seq"
    t = tasks.Task("t", kind, datasets.DatasetDict(train=rows, test=rows), None, metric)
    model = small.T.AutoModel.from_pretrained(small.backbone(tmp_path / "b", family))
    model.tokenizer = small.T.AutoTokenizer.from_pretrained(tmp_path / "b")

    def said(model, batch):  # each row's own text
        asked = batch["input_ids"] if family == "t5" else batch["input_ids"].where(batch["labels"] == -100, 1)
        return model.tokenizer.batch_decode(asked, skip_special_tokens=True), None

    seen = []
    monkeypatch.setitem(scoring.PREDICT, metric, said)
    monkeypatch.setitem(metrics.SCORES, metric, lambda p, y: seen.extend(zip(p, y, strict=True)) or 1.0)
    for limit, n in ((None, 30), (10, 11)):
        seen.clear()
        assert scoring.evaluate(model, t, "test", batch=8, rows=limit) == 1.0 and len(seen) == n
        assert all(right[0] == "fine" and right[1] == f"{text} lovely" for text, right in seen)
    assert t.majority() == 1.0 and collate.by_length(["aa", "b", "cc"]) == [1, 0, 2]


def test_batches_cover_every_row_once_or_for_ever(tmp_path):
    tok = small.T.AutoTokenizer.from_pretrained(small.backbone(tmp_path / "b"))
    t = task(small.write(tmp_path / "mine.tsv", small.sentences(50)))
    seen = [b for b in t.batches(tok, "train", 16)]
    assert sum(len(b["labels"]) for b in seen) == 40 and all(
        b["input_ids"].shape == b["attention_mask"].shape for b in seen
    )
    assert [b["input_ids"].shape[1] for b in seen] == sorted(b["input_ids"].shape[1] for b in seen)
    endless = t.batches(tok, "train", 16, seed=0)
    assert all(len(next(endless)["labels"]) == 16 for _ in range(10))
    again = [next(t.batches(tok, "train", 16, seed=s))["input_ids"].tolist() for s in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_generation_batches_put_the_loss_on_the_target(tmp_path):
    name = small.write(tmp_path / "g.jsonl", small.verdicts(40))
    tok = small.T.AutoTokenizer.from_pretrained(small.backbone(tmp_path / "g", "gpt2"))
    b = next(task(name, kind="lm").batches(tok, "train", 8, seed=0))
    told = b["labels"] != -100
    assert (told.sum(1) == 5).all() and (b["input_ids"][told] == b["labels"][told]).all()  # four words and the end
    tok = small.T.AutoTokenizer.from_pretrained(small.backbone(tmp_path / "t", "t5"))
    b = next(task(name).batches(tok, "train", 8, seed=0))
    assert b["labels"].shape == (8, 5) and (b["labels"][:, 4] == tok.eos_token_id).all()


HEADER = b"text\tlabel\n"
BAD_FILES = {
    "empty": ("f.tsv", b"", "f.tsv is empty"),
    "only a header": ("f.tsv", HEADER, "f.tsv has no rows below its header"),
    "only blank lines": ("f.csv", b"\n\n", "f.csv is empty"),
    "ragged, too many": ("f.tsv", HEADER + b"a\t0\nb\t1\tx\n", "line 3 has 3 columns, the header has 2"),
    "ragged, too few": ("f.csv", b"text,label\na,0\nb\n", "line 3 has 1 columns, the header has 2"),
    "ragged jsonl": (
        "f.jsonl",
        b'{"text": "a", "label": 0}\n{"text": "b"}\n',
        "line 2 and the first line differ in the keys label",
    ),
    "not json": ("f.jsonl", b'{"text": "a", "label": 0}\n{"text": \n', "f.jsonl, line 2 is not JSON"),
    "no object": ("f.jsonl", b"3\n", "line 1 is not a JSON object"),
    "open quote": ("f.csv", b'text,label\n"a,0\n', "f.csv, line 2"),
    "encoding": ("f.tsv", HEADER + b"a\t0\ncaf\xe9\t1\n", "f.tsv is not UTF-8: byte 0xe9 in line 3"),
    "parquet": ("f.parquet", b"no parquet at all", "f.parquet is not a readable parquet file"),
    "extension": ("f.xlsx", b"x", "unknown extension '.xlsx'; use .tsv, .csv, .jsonl, .parquet"),
    "one class": ("f.tsv", HEADER + b"a\t1\n" * 20, "only one class (1)"),
    "empty label": ("f.tsv", HEADER + b"a\tyes\n" * 20 + b"b\t\n", "has no label"),
    "too few rows": ("f.tsv", HEADER + b"a\t0\nb\t1\n", "f.tsv has 2 rows; too few to split"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_told_in_one_sentence(tmp_path, case):
    name, content, sentence = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PeftlabError) as told:
        task(f"file:{tmp_path / name}")
    assert sentence in str(told.value) and "\n" not in str(told.value)
    assert (tmp_path / name).read_bytes() == content


def test_missing_columns_name_those_that_exist(tmp_path):
    name = small.write(tmp_path / "f.tsv", [dict(body=f"t {i}", mood=i % 2, size=3) for i in range(30)])
    with pytest.raises(
        PeftlabError, match="f.tsv has no column 'lable' for the label; the columns are body, mood, size"
    ):
        task(name, label="lable")
    with pytest.raises(PeftlabError, match="which column is the label"):
        task(name)
    assert task(name, label="mood").data["train"].column_names == ["label", "text"]
    small.write(tmp_path / "d/train.tsv", small.sentences(20))
    small.write(tmp_path / "d/test.tsv", [dict(text="a", mark=1)])
    with pytest.raises(PeftlabError, match="test.tsv has no column 'label' for the label; the columns are text, mark"):
        task(f"file:{tmp_path / 'd'}")


def test_labels_outside_the_range_are_named_with_their_row(tmp_path):
    small.write(tmp_path / "d/train.tsv", small.sentences(40))
    small.write(tmp_path / "d/test.tsv", small.sentences(6) + [dict(text="odd", label=7)])
    with pytest.raises(
        PeftlabError, match="test.tsv: label 7 in row 7 of test is outside the range; the labels are 0 to 1"
    ):
        task(f"file:{tmp_path / 'd'}")
    name = small.write(tmp_path / "n.tsv", small.sentences(40) + [dict(text="odd", label=-1)] * 10)
    with pytest.raises(PeftlabError, match="label -1 in row .* is outside the range; the labels are 0 to 1"):
        task(name)


def test_wrong_settings_are_told(tmp_path):
    name = small.write(tmp_path / "f.tsv", small.sentences(40))
    for setting, sentence in (
        (dict(size=1), "size must be a whole number from 2 to 32"),
        (dict(size=99), "from 2 to 32"),
        (dict(size=2.5), "not 2.5"),
        (dict(metric="bleu"), "unknown metric for classification 'bleu'"),
        (dict(kind="klass"), "unknown kind of task"),
        (dict(texts="a"), "unknown task setting 'texts'; the nearest"),
    ):
        with pytest.raises(PeftlabError, match=sentence):
            task(name, **setting)
    with pytest.raises(PeftlabError, match="no such file or folder"):
        task("file:/nowhere/at/all.tsv")
    with pytest.raises(PeftlabError, match="has no train file .* it has notes.txt"):
        (tmp_path / "e").mkdir()
        (tmp_path / "e/notes.txt").write_text("x")
        task(f"file:{tmp_path / 'e'}")


def test_names_tell_the_world_from_the_hub(monkeypatch, tmp_path):
    assert "reviews" in tasks.names() and task("reviews", size=4).labels == ["negative", "positive"]
    asked = []
    monkeypatch.setattr(
        hub, "splits", lambda name: asked.append(name) or {"train": (name, pd.DataFrame(small.sentences(40)))}
    )
    task("someone/garden"), task("glue/sst2"), task("reviews/garden", size=4)
    assert asked == ["someone/garden", "glue/sst2"]  # a kind before the slash wins over a Hub dataset
    for name in ("reveiws", "reveiws/garden"):
        with pytest.raises(PeftlabError, match="unknown task 'reveiws'; the nearest (is|are) reviews"):
            task(name)
    with pytest.raises(PeftlabError, match="lang is for embedded tasks"):
        task(small.write(tmp_path / "f.tsv", small.sentences(40)), lang="xx")
    with pytest.raises(PeftlabError, match="unknown task setting 'noise'"):
        task(small.write(tmp_path / "f.tsv", small.sentences(40)), noise=0.1)


def test_the_hub_out_of_reach_is_told_with_the_embedded_default(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(hub, "reachable", lambda repo: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        PeftlabError, match="no network to the Hub and no local copy; the embedded task 'reviews' needs none"
    ):
        task("glue/sst2")
    assert hub.address("glue/sst2") == ("nyu-mll/glue", "sst2") and hub.address("stanfordnlp/imdb") == (
        "stanfordnlp/imdb",
        None,
    )
    with pytest.raises(PeftlabError, match="a Hub dataset is owner/name"):
        hub.address("a/b/c/d")


def test_a_hub_dataset_is_read_like_a_file(monkeypatch):
    import datasets

    part = lambda n, label: datasets.Dataset.from_list(
        [dict(sentence=f"s {i}", label=label(i), idx=i) for i in range(n)]
    )
    whole = datasets.DatasetDict(
        train=part(50, lambda i: i % 2), validation=part(20, lambda i: i % 2), test=part(20, lambda i: -1)
    )
    monkeypatch.setattr(hub, "reachable", lambda repo: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, config: whole)
    t = task("glue/sst2")
    assert {s: len(d) for s, d in t.data.items()} == dict(
        train=45, validation=5, test=20
    )  # hidden test labels: validation is test
    assert t.labels == ["0", "1"] and set(t.data["test"]["label"]) == {0, 1}
