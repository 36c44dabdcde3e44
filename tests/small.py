"""Tiny backbones as folders on disk, and small task files that they can learn in seconds."""

import json
import random

import pytest
import tiny
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers, processors

GOOD, BAD, PLAIN = (
    "fine great lovely superb".split(),
    "awful bad dull poor".split(),
    "a film is it plot the very was".split(),
)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
AUTO = dict(roberta=T.AutoModelForSequenceClassification, gpt2=T.AutoModelForCausalLM, t5=T.AutoModelForSeq2SeqLM)
FRAME = dict(roberta="<s> $A </s>", gpt2="$A", t5="$A </s>")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A ledger of its own for the test."""
    monkeypatch.setenv("PEFTLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def backbone(folder, family="roberta"):
    """A tiny random model of the family with a word tokenizer, saved in Hugging Face format."""
    words = SPECIAL + GOOD + BAD + PLAIN + ["<mask>"]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single=FRAME[family], pair=FRAME[family] + " $B", special_tokens=[(w, i) for i, w in enumerate(SPECIAL)]
    )
    fast = T.PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=24,
    )
    T.set_seed(0)
    AUTO[family].from_config(tiny.CONFIGS[family]()).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def sentences(n, seed=0):
    """Rows of text and label; one word decides."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        words = draw.choices(PLAIN, k=draw.randint(2, 6)) + [draw.choice(GOOD if i % 2 else BAD)]
        draw.shuffle(words)
        rows.append(dict(text=" ".join(words), label=i % 2))
    return rows


def verdicts(n, seed=0):
    """Rows of text and target: the last word of the text decides the first of the answer, one of two."""
    draw = random.Random(seed)
    asked = [draw.choice(GOOD + BAD) for _ in range(n)]
    return [
        dict(text=f"the {draw.choice(PLAIN)} was {word}", target=f"{'lovely' if word in GOOD else 'poor'} it was very")
        for word in asked
    ]


def write(path, rows):
    """A jsonl, or a tsv or csv with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        comma = {".tsv": "\t", ".csv": ","}[path.suffix]
        text = "\n".join(comma.join(map(str, cells)) for cells in [rows[0], *(r.values() for r in rows)]) + "\n"
    path.write_text(text, encoding="utf-8")
    return f"file:{path}"
