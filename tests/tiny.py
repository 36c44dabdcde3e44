"""One tiny random configuration of the real transformers class for each model family."""

import types

import torch
import transformers as T

import peftlab as pl

WORDS = 60
_common = dict(vocab_size=WORDS, pad_token_id=1, bos_token_id=0, eos_token_id=2)
_wide = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=40
)
_gqa = _common | _wide | dict(num_key_value_heads=2, head_dim=8)
CONFIGS = {
    "bert": lambda: T.BertConfig(**_common, **_wide),
    "roberta": lambda: T.RobertaConfig(**_common, **_wide),
    "distilbert": lambda: T.DistilBertConfig(
        **_common, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
    ),
    "gpt2": lambda: T.GPT2Config(**_common, n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=40),
    "opt": lambda: T.OPTConfig(
        **_common,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
        max_position_embeddings=40,
    ),
    "t5": lambda: T.T5Config(
        vocab_size=WORDS,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        d_model=32,
        num_layers=2,
        num_heads=4,
        d_kv=8,
        d_ff=48,
    ),
    "llama": lambda: T.LlamaConfig(**_gqa),
    "qwen2": lambda: T.Qwen2Config(**_gqa),
    "qwen3": lambda: T.Qwen3Config(**_gqa),
    "mistral": lambda: T.MistralConfig(**_gqa),
    "gemma": lambda: T.GemmaConfig(**_gqa),
    "gemma3_text": lambda: T.Gemma3TextConfig(**_gqa, sliding_window=8),
}
AUTO = dict(
    classification=T.AutoModelForSequenceClassification,
    lm=T.AutoModelForCausalLM,
    mlm=T.AutoModelForMaskedLM,
    seq2seq=T.AutoModelForSeq2SeqLM,
)


def model(family="roberta", head="classification", labels=2, seed=0):
    """A prepared tiny model. Weights are drawn wide (std 0.3), so that every change of a tensor shows in the logits."""
    config = CONFIGS[family]()
    config.num_labels = labels
    torch.manual_seed(seed)
    m = AUTO[head].from_config(config)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.3 * torch.randn_like(p) if p.ndim > 1 else 0.1 * torch.randn_like(p))
    m.tie_weights()
    pl.prepare(m)
    if m.kind == "encoder":
        m.tokenizer = types.SimpleNamespace(mask_token_id=3)
    return m


def batch(m, seed=1, pad=True, labels=True):
    """Four sentences of seven tokens, the second padded; each ends in the end token, as T5's pooling wants."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (4, 7), generator=g)
    ids[:, -1] = 2
    mask = torch.ones_like(ids)
    if pad:
        ids[1, 4], ids[1, 5:], mask[1, 5:] = 2, 1, 0
    out = dict(input_ids=ids, attention_mask=mask)
    if labels:
        out["labels"] = (
            torch.tensor([0, 1, 1, 0]) if m.head_kind == "classification" else ids.masked_fill(mask == 0, -100)
        )
    return out


def logits(m, **kw):
    with torch.no_grad():
        return m(**batch(m, **kw)).logits


def scatter(undo, seed=5):
    """Move every delta off its start, so that it does something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for d in undo.deltas:
            for p in d.own().values():
                if p.is_floating_point():
                    p.add_(0.1 * torch.randn(p.shape, generator=g))


def train(m, steps=10, lr=1e-2, seed=1):
    """A few AdamW steps on one batch; returns the losses."""
    opt, losses = torch.optim.AdamW(pl.trainable(m), lr, weight_decay=0), []
    for _ in range(steps):
        loss = m(**batch(m, seed=seed)).loss
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses
