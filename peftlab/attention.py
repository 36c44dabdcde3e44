"""Attention through transformers' registry, with room for deltas on keys and values.

Not `past_key_values`: those shift positions, break padded encoders and vanish under gradient checkpointing.
"""

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .kernels import attending


def attention(module, q, k, v, mask, position_bias=None, is_causal=None, **kw):
    """softmax(q k'ᵀ) v', with k', v' from every delta in `module.keyvals`, the mask widened.  q, k, v (b h t d)"""
    deltas = [d for d in getattr(module, "keyvals", ()) if d.on]
    if deltas:
        t, s = q.shape[2], k.shape[2]
        for d in deltas:
            k, v = d(k, v)
        n = k.shape[2] - s
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        if mask is not None:
            mask = F.pad(mask, (n, 0), value=True if mask.dtype == torch.bool else 0.0)
        elif (
            causal and t > 1
        ):  # sdpa's own causal mask would cut the prefix off: it aligns the first key with the first query
            mask = torch.ones(t, n + s, dtype=torch.bool, device=q.device).tril(n + s - t)[None, None]
        if position_bias is not None:
            position_bias = F.pad(position_bias, (n, 0))
    with attending(q):
        return sdpa_attention_forward(module, q, k, v, mask, position_bias=position_bias, is_causal=is_causal, **kw)


AttentionInterface.register("delta", attention)
AttentionMaskInterface.register(
    "delta", sdpa_mask
)  # without a mask function of the same name padding is ignored, silently


def use(model):
    """Route the model's attention through `attention`; one that cannot stays as it is."""
    if getattr(model, "_supports_sdpa", False):
        model.set_attn_implementation("delta")


def routed(model):
    return model.config._attn_implementation == "delta"
