"""Products and attention: as exact as fp32 whichever library computes them, and torch's switches stay as they were."""

import pytest
import torch

from peftlab import kernels
from peftlab.training import machine


def test_the_products_of_a_run_have_fp32s_precision_whichever_library_makes_them():
    before, generator = torch.backends.mkldnn.matmul.fp32_precision, torch.Generator().manual_seed(0)
    with machine():
        for rows, inner, columns in ((608, 128, 512), (512, 608, 128), (32, 768, 3), (4096, 256, 256)):
            a, b = (torch.randn(shape, generator=generator) for shape in ((rows, inner), (inner, columns)))
            assert (a @ b - a.double() @ b.double()).abs().max() < 1e-5 * inner**0.5  # bf16 would be off by 1e-2
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("t", (5, 300))
def test_short_texts_are_attended_in_plain_steps_where_that_is_faster_with_the_same_result(monkeypatch, t):
    q, k, v = (torch.randn(2, 3, t, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    found = []
    for suits in (False, True):
        monkeypatch.setattr(kernels, "ONEDNN", suits)
        with kernels.attending(q):
            found.append(torch.nn.functional.scaled_dot_product_attention(q, k, v))
            assert torch.backends.cuda.flash_sdp_enabled() == (not suits or t >= kernels.SHORT)
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("switch", ("attending", "unfused"))
def test_two_threads_within_at_once_leave_a_switch_of_torch_as_it_was(monkeypatch, switch):
    monkeypatch.setattr(kernels, "ONEDNN", True)
    enter, on = dict(
        attending=(lambda: kernels.attending(torch.ones(1, 1, 5, 8)), torch.backends.cuda.flash_sdp_enabled),
        unfused=(kernels.unfused, lambda: torch.backends.mkldnn.enabled),
    )[switch]
    first, second = enter(), enter()
    assert on()
    first.__enter__(), second.__enter__(), first.__exit__(None, None, None)
    assert not on(), "the second is still within"
    second.__exit__(None, None, None)
    assert on()
