"""A word-level tokenizer for the micro-world, as an ordinary Hugging Face folder."""
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .grammar import vocabulary

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")       # RoBERTa's order, so that padding is 1
LENGTH = 128


def tokenizer():
    """Words and marks to ids; lower case; `<s> … </s>`, and `<s> a </s></s> b </s>` for a pair."""
    words = {w: i for i, w in enumerate((*SPECIAL, *vocabulary()))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", model_max_length=LENGTH, padding_side="right",
        model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False)
