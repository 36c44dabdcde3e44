"""What a backbone learns from unlabelled text: masked words, the next word or missing spans; and batches of it.

An objective makes a batch from token ids (`make`) and a loss from a model and a batch (`loss`): the mean of
-log p(label) over the positions that have one, in fp32, with logits only where there is something to predict.
"""

import random
import re
import signal

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from . import corpus
from .scenes import COPY
from .tokenizer import function_words, telling_words

SHARES = dict(small=0.06, content=0.3, telling=0.4)  # how often a word is masked: see the tokenizer's lists of words
GROUP = 16  # batches in a block: documents are sorted by length inside a block
SKIP = -100  # the label of a position without one
EVEN = 64  # logits come in multiples of so many, some for nothing: on a CPU a kernel is compiled for each new number


class Objective:
    """The parts that all objectives share; `unit` is what the loss is counted per, `task` the Hub's name of its use."""

    between = " "  # the parts of a document; an encoder meets the mark between two texts

    def __init__(self, tokenizer):
        self.tokenizer, self.pad = tokenizer, tokenizer.pad_token_id
        small, telling = function_words(), telling_words()
        self.shares = torch.zeros(len(tokenizer))  # id -> salience; 0 for <s>, <pad>, <extra_id_0>, ...
        for word, i in tokenizer.get_vocab().items():
            if not re.fullmatch("<.+>", word):
                self.shares[i] = SHARES["small" if word in small else "telling" if word in telling else "content"]
        self.words = self.shares.nonzero()[:, 0]

    def make(self, ids, seed):
        """ids (b t) -> dict of the model's inputs and `labels`; the same seed draws the same."""
        raise NotImplementedError

    @staticmethod
    def prepare(model):
        """What a new model is told before it learns from this objective."""

    def rows(self, batch, chosen):
        """The chosen rows of a batch, without the columns that only the others need."""
        width = batch["attention_mask"][chosen].sum(1).max()
        return {k: v[chosen, :width] for k, v in batch.items()}

    def logits(self, model, inputs, at):
        """Logits (n v) at n of the b·t positions."""
        return model.lm_head(model.base_model(**inputs)[0].flatten(0, 1).index_select(0, at))

    def loss(self, model, batch):
        inputs, labels = {k: v for k, v in batch.items() if k != "labels"}, batch["labels"].flatten()
        at = (labels != SKIP).nonzero()[:, 0]
        more = (0, -len(at) % EVEN)
        right = F.pad(labels[at], more, value=SKIP)
        whole = F.cross_entropy(self.logits(model, inputs, F.pad(at, more)).float(), right, reduction="sum")
        return whole / max(1, len(at))  # a few rows may have no label at all


class MaskedWords(Objective):
    """BERT's masking with salience: of the chosen words 80 % are masked, 10 % are another word, 10 % stay.

    A word of content is chosen more often than a function word: what it is follows from the meaning, not the grammar.
    """

    about, unit, task, between = "masked words", "masked word", "fill-mask", "</s></s>"

    def make(self, ids, seed):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(ids.shape, generator=generator) < self.shares[ids]
        draw = torch.rand(ids.shape, generator=generator)
        other = self.words[torch.randint(len(self.words), ids.shape, generator=generator)]
        seen = torch.where(chosen & (draw < 0.8), self.tokenizer.mask_token_id, ids)
        seen = torch.where(chosen & (draw >= 0.9), other, seen)
        return dict(input_ids=seen, attention_mask=(ids != self.pad).long(), labels=torch.where(chosen, ids, SKIP))

    @staticmethod
    def prepare(model):
        layers = model.base_model.encoder.layer  # more may come: the last one is asked for in each pass

        def only(attention, args, kwargs, out):
            """Of the last attention's output (b t d) the positions `at` (n) go on, as (1 n d); all without `at`."""
            if (at := kwargs.get("at")) is None or attention is not layers[-1].attention:
                return out
            return out[0].flatten(0, 1).index_select(0, at)[None], *out[1:]

        for layer in layers:
            layer.attention.register_forward_hook(only, with_kwargs=True)

    def logits(self, model, inputs, at):
        return model.lm_head(model.base_model(**inputs, at=at)[0][0])


class NextWord(Objective):
    """Each word from those before it, from <s> to </s>."""

    about, unit, task = "the next word", "word", "text-generation"

    def make(self, ids, seed):
        there = ids != self.pad
        return dict(
            input_ids=ids[:, :-1], attention_mask=there[:, :-1].long(), labels=torch.where(there, ids, SKIP)[:, 1:]
        )


class MissingSpans(Objective):
    """T5's corruption with BART's target: a sentinel stands for each missing span, the target is the whole document.

    "<s> the <extra_id_0> is kind <extra_id_1> it </s>" -> "<s> the old cook is kind . we like it </s>"
    Where a sentence stands beside its translation, every second time one of the two is missing and is the target:
    "<s> the cook sang . = <extra_id_0> </s>" -> "<s> nudok gasite . </s>"
    With the missing words alone as target, the decoder learns to guess them without a look at the encoder.
    """

    about, unit, task = "missing spans of words", "word of the target", "text2text-generation"
    missing, mean = 0.25, 3  # the share of words that are missing, and the mean length of a span

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.copy = tokenizer.get_vocab()[COPY]
        self.sentinels = sorted(i for w, i in tokenizer.get_vocab().items() if w.startswith("<extra_id_"))

    def make(self, ids, seed):
        rng = random.Random(seed)
        pairs = [self.corrupt(row[row != self.pad].tolist(), rng) for row in ids]
        sources, targets = (
            pad_sequence([torch.tensor(r) for r in rows], True, SKIP) for rows in zip(*pairs, strict=True)
        )
        there = sources != SKIP
        shifted = F.pad(targets[:, :-1], (1, 0), value=self.pad)  # the decoder starts from <pad>
        return dict(
            input_ids=torch.where(there, sources, self.pad),
            attention_mask=there.long(),
            decoder_input_ids=torch.where(shifted == SKIP, self.pad, shifted),
            labels=targets,
        )

    def corrupt(self, row, rng):
        """<s> words </s> -> (source, target), both lists of ids. Of two draws the one that misses more content."""
        start, *words, end = row
        if side := self.side(words, rng):
            return tuple([start, *part, end] for part in side)
        holes = max((self.holes(len(words), rng) for _ in range(2)), key=lambda h: self.content(words, h))
        source, at = [start], 0
        for sentinel, (a, b) in zip(self.sentinels, holes, strict=False):
            source += [*words[at:a], sentinel]
            at = b
        return [*source, *words[at:], end], row

    def side(self, words, rng):
        """(A sentence beside a sentinel for its translation, the translation), or the other way round, or None."""
        if words.count(self.copy) != 1 or rng.random() < 0.5:
            return None
        at, gone = words.index(self.copy), self.sentinels[:1]
        before, after = words[:at], words[at + 1 :]
        return rng.choice((([*before, self.copy, *gone], after), ([*gone, self.copy, *after], before)))

    def holes(self, n, rng):
        """Where the spans lie among n words: [(start, end)], in order, apart from each other, together 25 % of n."""
        gone = max(1, round(self.missing * n))
        k = max(1, min(len(self.sentinels), round(gone / self.mean), n - gone + 1))
        gaps, spans = parts(n - gone + 2, k + 1, rng), parts(gone, k, rng)
        gaps[0] -= 1  # the first gap and the last may be empty
        at, holes = 0, []
        for gap, span in zip(gaps, spans, strict=False):
            holes.append((at + gap, at + gap + span))
            at += gap + span
        return holes

    def content(self, words, holes):
        return sum(self.shares[words[a:b]].sum().item() for a, b in holes)

    def rows(self, batch, chosen):
        width = (batch["labels"][chosen] != SKIP).sum(1).max()
        return super().rows(batch, chosen) | {k: batch[k][chosen, :width] for k in ("labels", "decoder_input_ids")}

    def logits(self, model, inputs, at):
        return model(**inputs).logits.flatten(0, 1).index_select(0, at)


def parts(total, k, rng):
    """`total` as a sum of k whole numbers >= 1, each way as likely as any other."""
    cuts = [0, *sorted(rng.sample(range(1, total), k - 1)), total]
    return [b - a for a, b in zip(cuts, cuts[1:], strict=False)]


class Blocks(torch.utils.data.Dataset):
    """Block number -> its GROUP batches of `size` documents as (batch, tokens); fixed by the seed and the number."""

    def __init__(self, objective, size, seed):
        self.objective, self.size, self.seed = objective, size, seed

    def __getitem__(self, block):
        rows = self.objective.tokenizer(self.documents(block), truncation=True)
        rows = sorted(rows["input_ids"], key=len)  # short with short: less padding
        chunks = [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
        random.Random(f"{self.seed}/{block}/order").shuffle(chunks)
        first = self.seed * 1_000_003 + block * GROUP
        return [(self.objective.make(self.padded(c), first + i), sum(map(len, c))) for i, c in enumerate(chunks)]

    def documents(self, block):
        return corpus.documents(self.size * GROUP, self.seed, block, self.objective.between)

    def padded(self, rows):
        return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=self.objective.pad)

    def stream(self, start, steps, workers=0):
        """The batches of the steps `start` to `steps`, made ahead by `workers` processes (0: here, when needed)."""
        numbers = range(start // GROUP, -(-steps // GROUP))
        ahead = torch.utils.data.DataLoader(
            self, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=deaf
        )
        for block, made in zip(numbers, ahead, strict=True):
            for step, batch in enumerate(made, block * GROUP):
                if start <= step < steps:
                    yield batch


def deaf(_):
    """A worker does not hear Ctrl-C; the process it works for does, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
