from typing import Any

import pytest
import torch

from higgs_pipe.errors import UserError
from higgs_pipe.higgs import quantization
from higgs_pipe.higgs.family import V2
from higgs_pipe.higgs.quantization import quantization_options

HEADS = V2.unquantized
CUDA = torch.device("cuda", 0)


def test_without_quantization_no_options_are_set() -> None:
    assert quantization_options(None, torch.device("cpu"), torch.float32, HEADS) == {}


def test_quantization_without_cuda_is_refused_with_what_to_set() -> None:
    with pytest.raises(UserError, match=r"4bit.*CUDA.*quantization: null"):
        quantization_options("4bit", torch.device("cpu"), torch.bfloat16, HEADS)


def test_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        quantization_options("8bit", CUDA, torch.bfloat16, HEADS)


@pytest.mark.parametrize(("setting", "method"), [("8bit", "llm_int8"), ("4bit", "nf4")])
def test_heads_are_not_quantized(
    monkeypatch: pytest.MonkeyPatch, setting: Any, method: str
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: object())
    options = quantization_options(setting, CUDA, torch.bfloat16, HEADS)
    assert options["device_map"] == {"": CUDA}
    config = options["quantization_config"]
    assert config.quantization_method() == method
    assert config.llm_int8_skip_modules == ["text_lm_head", "audio_lm_head"]
