"""What a pretrained encoder fills into a blank: its likeliest words, with their probabilities."""

import html
import re

from .errors import PeftlabError, choose
from .world.reading import Leaf, gloss, interlinear

BLANK = re.compile(r"_{2,}|<mask>")


class Filled(Leaf):
    """`words[i]` are the (word, probability) of blank i, the likeliest first; a notebook shows them as bars."""

    def __init__(self, text, words):
        self.words = words
        many = len(words) > 1
        body = f'<p class="pl-said">{interlinear(text)}</p>'
        body += "".join(_bars(found, f"blank {i}" if many else "") for i, found in enumerate(words, 1))
        super().__init__(body, "\n\n".join([text, *map(_lines, words)]))


def blank(text, backbone="micro-encoder", k=8):
    """The `k` likeliest words at every blank of a text: `blank("The soup was ___, so we left early.")`.

    A blank is `___` or `<mask>`; in the second language an ending may follow it at once ("___ka"). The probability of a
    word is the softmax of the pretrained masked-language-model head at the blank, over the whole vocabulary; each blank
    is read with the others still open. PeftlabError for a text without a blank, for a word that the backbone does not
    know, and for a backbone that does not read both sides of a blank (a decoder, a T5).
    """
    from .backbones import backbone as load

    return fill(load(backbone, head="lm"), text, k)


def fill(model, text, k=8):
    """`blank` for a model that is loaded: an encoder with its masked-language-model head."""
    import torch

    ids, at = read(model, text)
    if not isinstance(k, int) or not 1 <= k <= model.config.vocab_size:
        raise PeftlabError(f"k must be a whole number from 1 to {model.config.vocab_size}, not {k!r}")
    with torch.no_grad():
        p = model(input_ids=torch.tensor([ids])).logits[0, at].softmax(-1)  # (blanks v)
    best = p.topk(k)
    word = model.tokenizer.decode
    words = [
        [(word([i]).strip(), q) for i, q in zip(row, chance, strict=True)]
        for row, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return Filled(text, words)


def read(model, text):
    """(token ids, positions of the blanks). Raises PeftlabError for what the model cannot read."""
    from .backbones import max_tokens

    name, tok = model.backbone_name, model.tokenizer
    if model.kind != "encoder" or tok.mask_token is None:
        raise PeftlabError(f"{name} does not fill blanks: only an encoder does, such as micro-encoder")
    if not isinstance(text, str) or not BLANK.search(text):
        raise PeftlabError(f"there is no blank in {text!r}; write ___ for the word that the model shall fill in")
    masked = BLANK.sub(tok.mask_token, text)
    cut = tok(masked, return_offsets_mapping=True, verbose=False)
    ids, places = cut["input_ids"], cut["offset_mapping"]
    for i in range(1, len(ids)):
        begin, end = places[i]
        ending = tok.get_vocab().get(f"##{masked[begin:end].lower()}")
        if ending is not None and ids[i - 1] == tok.mask_token_id and places[i - 1][1] == begin:
            ids[i] = ending  # right after a blank it is no word but an ending
    if tok.unk_token_id in ids:
        begin, end = places[ids.index(tok.unk_token_id)]
        other = any(map(gloss, re.findall(r"\w+", text)))  # offer words of the language that the text is in
        known = sorted(w for w in tok.get_vocab() if w.isalpha() and bool(gloss(w)) == other)
        choose(masked[begin:end].lower(), known, f"word for {name}:")
    if len(ids) > (max_tokens(model) or len(ids)):
        raise PeftlabError(f"the text has {len(ids)} tokens, and {name} reads {max_tokens(model)} at most")
    return ids, [i for i, token in enumerate(ids) if token == tok.mask_token_id]


def _bars(found, name):
    """Bars as HTML: the longest has the full width, the number says the probability."""
    most = max(found[0][1], 1e-9)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(word)}{_below(word)}</th>'
        f'<td><i style="width:{100 * p / most:.1f}%"></i></td><td>{p:.1%}</td></tr>'
        for word, p in found
    )
    return f'<table class="pl-bars"><caption>{name}</caption>{rows}</table>'


def _below(word):
    meaning = gloss(word)
    return f" <small>{html.escape(meaning)}</small>" if meaning else ""


def _lines(found):
    most = found[0][1]
    return "\n".join(f"{word:>16} {p:6.1%} {'█' * round(24 * p / most)} {gloss(word)}".rstrip() for word, p in found)
