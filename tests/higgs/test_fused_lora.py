"""The fused LoRA layer against PEFT's own."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from higgs_pipe.higgs.fused_lora import fuse_lora

NUM_ROWS, SIZE_IN, SIZE_OUT = 7, 12, 10


def adapted(dropout: float = 0.0, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(SIZE_IN, SIZE_OUT, dtype=dtype)).requires_grad_(False)
    config = LoraConfig(
        r=4, lora_dropout=dropout, target_modules=["0"], init_lora_weights=False, **options
    )
    return get_peft_model(base, config).train()


def output_and_gradients(model: nn.Module, dtype: torch.dtype = torch.float64) -> list:
    x = torch.randn(NUM_ROWS, SIZE_IN, generator=torch.Generator().manual_seed(1))
    x = x.to(dtype).requires_grad_()
    torch.manual_seed(2)  # of the dropout
    output = model(x)
    output.double().square().sum().backward()
    return [output, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_output_and_gradients_match_peft(dropout: float) -> None:
    expected = output_and_gradients(adapted(dropout))
    fused = adapted(dropout)
    fuse_lora(fused)
    found = output_and_gradients(fused)
    assert len(found) == 4  # output, input, A, B
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_over_a_bfloat16_base_lora_matrices_and_gradients_stay_float32() -> None:
    expected = output_and_gradients(adapted(dtype=torch.bfloat16), torch.bfloat16)
    fused = adapted(dtype=torch.bfloat16)
    fuse_lora(fused)
    found = output_and_gradients(fused, torch.bfloat16)
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for ours, of_peft in zip(found, expected, strict=True):
        assert (ours - of_peft).norm() < 0.02 * of_peft.norm()


def test_converting_the_base_to_float32_discards_the_rounded_matrices() -> None:
    expected = output_and_gradients(adapted(dtype=torch.bfloat16).float(), torch.float32)
    fused = adapted(dtype=torch.bfloat16)
    matrices = fuse_lora(fused)
    matrices.refresh()
    fused.float()
    matrices.refresh()
    found = output_and_gradients(fused, torch.float32)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_of_lora_are_left_to_peft(options: dict[str, Any]) -> None:
    expected = output_and_gradients(adapted(**options))
    fused = adapted(**options)
    fuse_lora(fused)
    found = output_and_gradients(fused)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_merged_adapter_is_not_added_twice() -> None:
    fused: Any = adapted()
    fuse_lora(fused)
    x = torch.randn(NUM_ROWS, SIZE_IN, dtype=torch.float64)
    expected = fused(x)
    fused.merge_adapter()
    assert torch.allclose(fused(x), expected, atol=1e-12)


def test_a_disabled_adapter_gives_the_output_of_the_base() -> None:
    fused: Any = adapted()
    fuse_lora(fused)
    x = torch.randn(NUM_ROWS, SIZE_IN, dtype=torch.float64)
    with fused.disable_adapter():
        assert torch.equal(fused(x), fused.get_base_model()[0].base_layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what PyTorch itself imports
def test_the_compiled_layer_gives_the_same_output_and_gradients() -> None:
    """Traced together with its backward pass; ``test_compiling.py`` runs compiled code."""
    plain, compiled = adapted(), adapted()
    for model in (plain, compiled):
        fuse_lora(model)
    expected = output_and_gradients(plain)
    compiled.compile(dynamic=True, backend="aot_eager")
    found = output_and_gradients(compiled)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))
