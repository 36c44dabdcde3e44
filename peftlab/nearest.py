"""What a soft prompt is near to: words of the backbone's own vocabulary."""

import torch
from torch.nn import functional as F

from .errors import PeftlabError


@torch.no_grad()
def nearest_words(model, attached, k=5):
    """For each trained vector at the input the k words of largest cosine, the nearest first: [[(word, cosine), …], …].

    Every entry of the vocabulary counts as a word, special ones too. PeftlabError when nothing of `attached` is a
    prompt at the input (a prefix is keys and values, no words), or for a k that the vocabulary does not have.
    """
    prompts = [d for d in attached.deltas if hasattr(d, "vectors")]
    if not prompts:
        raise PeftlabError("none of these deltas is made of word vectors; attach prompt, p-tuning or warp")
    ids = range(min(len(model.get_input_embeddings().weight), len(model.tokenizer)))
    if not isinstance(k, int) or not 1 <= k <= len(ids):
        raise PeftlabError(f"k must be a whole number from 1 to {len(ids)}, not {k!r}")
    words = model.get_input_embeddings().weight[: len(ids)].float()
    found = []
    for P in (d.vectors().float() for d in prompts):
        best = (F.normalize(P) @ F.normalize(words).T).topk(k)  # (n v) -> (n k)
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            found.append([(model.tokenizer.decode([i]).strip(), cosine) for i, cosine in zip(*row, strict=True)])
    return found
