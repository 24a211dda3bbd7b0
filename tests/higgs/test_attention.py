"""Attention over packed samples against a plain loop."""

import inspect
import logging
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from higgs_pipe.higgs import attention
from higgs_pipe.higgs.attention import SampleBounds, attention_by_sample, packed_attention

LENGTHS = (5, 1, 9)
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 8
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def samples(device: str = "cpu") -> SampleBounds:
    offsets = torch.tensor([0, 5, 6, 15], dtype=torch.int32, device=device)
    return SampleBounds(LENGTHS, offsets, max(LENGTHS))


def random_heads(dtype: torch.dtype, device: str = "cpu") -> Heads:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(15, heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


def plain_loop(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: list[int]) -> Any:
    """Each query over the keys of its sample up to its own position, one at a time."""
    output, starts = torch.zeros_like(query), [0, *ends[:-1]]
    for start, end in zip(starts, ends, strict=True):
        for position in range(start, end):
            for head in range(HEADS):
                seen = slice(start, position + 1)
                scores = key[seen, head // 2] @ query[position, head] / HEAD_DIM**0.5
                output[position, head] = scores.softmax(0) @ value[seen, head // 2]
    return output


def test_each_sample_attends_only_to_its_own_past() -> None:
    heads = random_heads(torch.float64)
    expected = plain_loop(*heads, ends=[5, 6, 15])
    found = packed_attention(*heads, samples())
    assert torch.allclose(found, expected, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), heads) for out in (found, expected)]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*gradients, strict=True))


def test_the_varlen_call_equals_a_loop_over_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(
        query: Any,
        key: Any,
        value: Any,
        cu_q: Any,
        cu_k: Any,
        max_q: Any,
        max_k: Any,
        *,
        window_size: Any,
        **grouped: Any,
    ) -> Any:
        signature.bind(query, key, value, cu_q, cu_k, max_q, max_k, window_size=window_size)
        signature.bind_partial(**grouped)  # PyTorch 2.11 has no enable_gqa, and needs none
        assert grouped.get("enable_gqa", True) is True
        assert ("enable_gqa" in grouped) == ("enable_gqa" in signature.parameters)
        assert (window_size, cu_q.dtype) == ((-1, 0), torch.int32)
        assert max_q == max_k == int(cu_q.diff().max())
        assert torch.equal(cu_q, cu_k)
        return plain_loop(query, key, value, ends=cu_q[1:].tolist())

    signature = inspect.signature(varlen_attn)
    monkeypatch.setattr(attention, "varlen_attn", stand_in)
    monkeypatch.setattr(attention, "has_varlen", lambda *_: True)
    heads = random_heads(torch.float64)
    expected = attention_by_sample(*heads, samples())
    assert torch.allclose(packed_attention(*heads, samples()), expected, atol=1e-12)


def test_attention_dropout_bypasses_the_varlen_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "has_varlen", lambda *_: True)
    heads, found = random_heads(torch.float64), []
    for attend in (packed_attention, attention_by_sample):
        torch.manual_seed(1)
        found.append(attend(*heads, samples(), dropout=0.5))
    assert torch.equal(*found)
    assert not torch.allclose(found[0], attention_by_sample(*heads, samples()))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_on_cuda_equals_one_call_per_sample(dtype: Any) -> None:
    heads, plain = random_heads(dtype, "cuda"), random_heads(torch.float64)
    assert attention.has_varlen(heads[0].device, dtype, HEAD_DIM)
    found = packed_attention(*heads, samples("cuda"))
    expected = attention_by_sample(*plain, samples())
    assert torch.allclose(found.cpu().double(), expected, atol=2e-2)
    of_found = torch.autograd.grad(found.double().square().sum(), heads)
    of_expected = torch.autograd.grad(expected.square().sum(), plain)
    for gradient, reference in zip(of_found, of_expected, strict=True):
        assert (gradient.cpu().double() - reference).norm() < 2e-2 * reference.norm()


def test_the_kernel_in_use_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attention.has_varlen.cache_clear()
    with caplog.at_level(logging.INFO, "higgs_pipe"):
        for _ in range(2):
            packed_attention(*random_heads(torch.float32), samples())
    (record,) = caplog.records
    assert isinstance(record.args, tuple)
    assert record.args[:2] == (torch.device("cpu"), "float32")
    assert "SDPA" in record.getMessage()


@pytest.mark.parametrize(
    ("capability", "fault", "expected"),
    [
        ((9, 0), None, "FlashAttention 3"),
        ((8, 9), None, "FlashAttention 2"),
        ((9, 0), ImportError("built for another PyTorch"), "FlashAttention 2"),
    ],
)
def test_flash_attention_3_is_used_if_it_is_installed_and_loads(
    monkeypatch: pytest.MonkeyPatch, capability: Any, fault: Any, expected: str
) -> None:
    activated: list[str] = []

    def activate(name: str) -> None:
        if fault is not None:
            raise fault
        activated.append(name)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activate)
    assert attention.newest_flash(torch.device("cuda", 0)) == expected
    assert activated == (["FA3"] if expected == "FlashAttention 3" else [])
