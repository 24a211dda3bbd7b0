"""The published 3B model's config, for what is computed without weights."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig


def real_shape(base: Path) -> Any:
    """The published 3B model's config, made from the miniature's."""
    shape = AutoConfig.from_pretrained(base)
    shape.update({"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28})
    shape.update({"num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128})
    shape.update({"vocab_size": 128_256})
    return shape
