"""One tokenizer for both languages of the micro-world, as an ordinary Hugging Face folder.

English words are whole; a word of the second language is a stem and its endings ("talom ##ka").
"""

import functools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from . import lexicon as lex
from . import scenes, things, xx

MASKS = tuple(f"<extra_id_{i}>" for i in range(8))  # T5's marks for what is left out
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", *MASKS)  # RoBERTa's order, so that padding is 1
MARKS = (".", ",", ":", "?", scenes.COPY)
LENGTH = 128


@functools.cache
def vocabulary():
    """Every piece in a fixed order: marks, English words in lower case, stems, endings."""
    endings = [f"##{ending}" for ending in xx.ENDINGS.values()]
    return [*SPECIAL, *MARKS, *xx.english(), *sorted(xx.dictionary().values()), *sorted(endings)]


def function_words():
    """The pieces that nothing around them tells: small words, marks, endings; who it was and where."""
    small = {*scenes.function_words(), *MARKS, *(f"##{e}" for e in xx.ENDINGS.values())}
    listed = [*things.LINKS, *things.QUANTIFIERS, *xx.EXTRA, *xx.KEYS, *lex.SAYING, *lex.FINDING, *lex.KIN, *lex.CROWD]
    listed += [w for table in (things.PEOPLE, things.PLACES, lex.COPULA) for words in table.values() for w in words]
    small |= {piece for w in listed for piece in (*w.lower().split(), xx.dictionary().get(w))}
    return small & {*vocabulary()} - telling_words()


def telling_words():
    """The small words that a whole sentence is needed for: who was meant, what follows, yes or no."""
    told = "he she yes no so perhaps otherwise never surely namely also likewise whereas good bad liked hated".split()
    told += things.TOPICS
    return {*told, *(xx.word(w) for w in [*told, *lex.VERDICTS.values()] if w in xx.dictionary())}


def tokenizer():
    """Words and marks to ids; lower case; `<s> … </s>`, and `<s> a </s></s> b </s>` for a pair."""
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary())}, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a stem and its endings are one word again
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>", additional_special_tokens=list(MASKS), model_max_length=LENGTH, padding_side="right",
        model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
