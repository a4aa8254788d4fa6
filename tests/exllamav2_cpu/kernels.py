"""Norms, rotary embedding and element-wise kernels, in plain torch.

Each fills its output in place, as the kernel of that name in exllamav2_ext/cuda does. An absent tensor is one on the
device "meta".
"""

from __future__ import annotations

import torch

HALF_MAX = 65504.0


def rms_norm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, epsilon: float) -> None:
    """out = x * weight / sqrt(mean(x * x) + epsilon), along the last dimension; in float64, as attention is."""
    values = x.double()
    if x.dtype == torch.half:
        values = values.clamp(-HALF_MAX, HALF_MAX)
    out.copy_(values * weight.double() * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon))


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, epsilon: float) -> None:
    """torch's layer_norm along the last dimension; bias may be absent."""
    shift = None if bias.is_meta else bias.float()
    out.copy_(torch.nn.functional.layer_norm(x.float(), (x.shape[-1],), weight.float(), shift, epsilon))


def head_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    epsilon: float,
    rms: bool,
) -> None:
    """A norm of each head by itself: x (..., heads, head_dim), weight (heads, head_dim) or (head_dim)."""
    values = x.float()
    if not rms:
        values = values - values.mean(-1, keepdim=True)
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float()
    out.copy_(values if bias.is_meta else values + bias.float())


def rope_(
    x: torch.Tensor,
    sin: torch.Tensor,
    cos: torch.Tensor,
    past_len: int,
    num_heads: int,
    head_dim: int,
    offsets: torch.Tensor,
    neox_style: bool,
) -> None:
    """Rotate x (batch, tokens, heads * head_dim), fp16, in place.

    The first token of row b has the position past_len + offsets[b], or offsets[b] where past_len is -1.
    """
    if not (x.dtype == sin.dtype == cos.dtype == torch.half and x.is_contiguous()):
        raise TypeError("rope_ takes contiguous fp16 tensors")
    batch = x.shape[0]
    heads = x.view(batch, -1, num_heads, head_dim)
    if offsets.is_meta:
        first = torch.full((batch,), int(past_len))
    elif past_len == -1:
        first = offsets.long().clamp(min=0)
    else:
        first = offsets.long() + int(past_len)
    positions = (first.view(-1, 1) + torch.arange(heads.shape[1])).clamp(min=0)
    rotated_dims = cos.shape[-1]
    cos_at = cos.view(-1, rotated_dims)[positions].float().unsqueeze(2)
    sin_at = sin.view(-1, rotated_dims)[positions].float().unsqueeze(2)
    values = heads[..., :rotated_dims].float()
    if neox_style:
        left, right = values.chunk(2, -1)
        turned = torch.cat((-right, left), -1)
    else:
        turned = torch.stack((-values[..., 1::2], values[..., 0::2]), -1).flatten(-2)
    heads[..., :rotated_dims] = (values * cos_at + turned * sin_at).half()


def softcap_(x: torch.Tensor, scale: float) -> None:
    """x = scale * tanh(x / scale), in place."""
    x.copy_(torch.tanh(x.float() / scale) * scale)
