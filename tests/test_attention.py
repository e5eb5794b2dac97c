from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rali_core.attention import attention

HEADS = 3


def split(stacked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 W) to query, key and value (B, H, N, D), as the encoders do: views with gaps, not copies."""
    query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in stacked.chunk(3, dim=-1))
    return query, key, value


@pytest.mark.parametrize("width", [16, 12], ids=["scale 1/4", "a scale that is no power of two"])
def test_in_bfloat16_it_is_torchs_attention_in_float32_up_to_rounding_and_so_is_its_gradient(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    stacked = torch.randn(4, 29, 3 * HEADS * width, generator=generator).bfloat16()
    upstream = torch.randn(4, HEADS, 29, width, generator=generator)
    narrow, exact = stacked.clone().requires_grad_(), stacked.float().requires_grad_()
    got = attention(*split(narrow))
    expected = functional.scaled_dot_product_attention(*split(exact))
    got.backward(upstream.bfloat16())
    expected.backward(upstream)
    assert got.dtype is torch.bfloat16
    assert narrow.grad is not None
    assert exact.grad is not None
    # Eight bits of mantissa: a relative step of 2 ** -8, added up over a few products.
    torch.testing.assert_close(got.float(), expected, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(narrow.grad.float(), exact.grad, rtol=2**-5, atol=2**-5)


def test_under_autocast_the_same_numbers_come_out() -> None:
    stacked = torch.randn(2, 17, 3 * HEADS * 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention(*split(stacked))
    assert inside.dtype is torch.bfloat16
    assert torch.equal(inside, attention(*split(stacked)))


def test_images_do_not_depend_on_each_other() -> None:
    stacked = torch.randn(3, 17, 3 * HEADS * 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    together = attention(*split(stacked))
    assert torch.equal(together[1:2], attention(*split(stacked[1:2])))


def test_other_dtypes_and_single_questions_are_torchs_own() -> None:
    stacked = torch.randn(2, 17, 3 * HEADS * 16, generator=torch.Generator().manual_seed(3))
    query, key, value = split(stacked)
    assert torch.equal(attention(query, key, value), functional.scaled_dot_product_attention(query, key, value))
    query, key, value = split(stacked.bfloat16())
    one = attention(query[:, :, :1], key, value)
    assert torch.equal(one, functional.scaled_dot_product_attention(query[:, :, :1], key, value))
