"""Adapter settings, tested by the file that the train stage writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from trainings import PackedCorpus, train
from transformers import HiggsAudioV2ForConditionalGeneration

# At the first step of a warmup the rate is 0: the adapter stays as it started.
AT_THE_START: dict[str, Any] = {"max_steps": 2, "warmup_fraction": 0.9, "eval_steps": 1}
AT_THE_START |= {"preflight": False, "num_epochs": 1, "rows_per_step": 1, "learning_rate": 1e-9}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


def written(corpus: PackedCorpus, output: Path, **lora: Any) -> dict[str, torch.Tensor]:
    train(corpus, output, **AT_THE_START, lora=lora)
    return load_file(output / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_each_init_method_matches_peft(corpus: PackedCorpus, tmp_path: Path, init: Any) -> None:
    found = written(corpus, tmp_path, init=init, r=4, target_modules="attention")
    base = HiggsAudioV2ForConditionalGeneration.from_pretrained(corpus.base, use_text_head=True)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules=LAYERS, init_lora_weights=init
    )
    torch.manual_seed(0)
    expected = get_peft_model_state_dict(get_peft_model(base, config))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


@pytest.mark.parametrize(
    ("lora", "part", "shape"),
    [
        ({"use_dora": True}, "layers.0.self_attn.q_proj.lora_magnitude_vector", (64,)),
        ({"train_in_full": ["audio_head"]}, "audio_lm_head.weight", (8 * 1026, 64)),
        ({"trainable_tokens": ["<|eot_id|>"]}, "embed_tokens.token_adapter", (1, 64)),
        ({"r": 3}, "layers.1.mlp.up_proj.lora_A.weight", (3, 64)),
        ({"target_modules": ["o_proj"]}, "layers.1.self_attn.o_proj.lora_A.weight", (16, 64)),
    ],
    ids=str,
)
def test_the_adapter_file_holds_every_trained_tensor(
    corpus: PackedCorpus, tmp_path: Path, lora: dict[str, Any], part: str, shape: tuple[int, ...]
) -> None:
    found = written(corpus, tmp_path, **lora)
    shapes = [tuple(tensor.shape) for name, tensor in found.items() if part in name]
    assert shapes == [shape]
    others = {name for name in found if "lora_A" in name and "o_proj" not in name}
    assert bool(others) == ("target_modules" not in lora)
