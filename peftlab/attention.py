"""Attention through transformers' registry, with room for deltas on keys and values.

Not `past_key_values`: those shift positions, break padded encoders and vanish under gradient checkpointing.
"""

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .kernels import attending
from .rows import Rows, grouped


def attention(module, q, k, v, mask, position_bias=None, is_causal=None, **kw):
    """softmax(q k'ᵀ) v', with k', v' from every delta in `module.keyvals`, the mask widened.  q, k, v (b h t d)"""
    deltas = [d for d in getattr(module, "keyvals", ()) if d.on]
    if deltas:
        t, s = q.shape[2], k.shape[2]
        k, v, heard = changed(deltas, k, v)
        n = k.shape[2] - s
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        if mask is not None:
            mask = F.pad(mask, (n, 0), value=True if mask.dtype == torch.bool else 0.0)
        elif (
            causal and t > 1
        ):  # sdpa's own causal mask would cut the prefix off: it aligns the first key with the first query
            mask = torch.ones(t, n + s, dtype=torch.bool, device=q.device).tril(n + s - t)[None, None]
        if heard is not None:
            least = None if mask is None else torch.finfo(mask.dtype).min if mask.is_floating_point() else False
            mask = heard.expand(-1, -1, t, -1) if mask is None else mask.where(heard, least)
        if position_bias is not None:
            position_bias = F.pad(position_bias, (n, 0))
    with attending(q):
        return sdpa_attention_forward(module, q, k, v, mask, position_bias=position_bias, is_causal=is_causal, **kw)


def changed(deltas, k, v):
    """k', v'; where rows have deltas of their own also which keys are theirs (b 1 1 n+s): prefixes differ in length."""
    if not any(isinstance(d.rows, Rows) for d in deltas):
        for d in deltas:
            k, v = d.rows.call(d, k, v)
        return k, v, None
    order, keys, values = [], [], []
    for index, mine in grouped(deltas, k):
        a, b = k[index], v[index]
        for d in mine:
            a, b = d(a, b)
        order.append(index), keys.append(a), values.append(b)
    n, back = max(a.shape[2] for a in keys), torch.cat(order).argsort()
    joined = lambda parts: torch.cat([F.pad(a, (0, 0, n - a.shape[2], 0)) for a in parts])[back]
    heard = [torch.ones(len(a), 1, a.shape[2], 1, dtype=torch.bool, device=k.device) for a in keys]
    return joined(keys), joined(values), joined(heard).transpose(2, 3)


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
