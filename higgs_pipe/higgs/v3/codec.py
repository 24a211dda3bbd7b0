"""The codec in the bundle of Higgs TTS 3, which is that of Higgs Audio v2.

The bundle has the weights of the codec but not its config. Servers ship the config of
``bosonai/higgs-audio-v2-tokenizer`` (SGLang-Omni: byte for byte), and so does this module. A bundle
with a smaller codec has ``codec_config`` in ``audio_encoder_config``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

from higgs_pipe.planning import model_types

CODEC_PREFIX = model_types.BUNDLED_CODECS[model_types.V3]
CONFIG_KEY = "codec_config"
RATIOS = [8, 5, 4, 2, 3]  # their product, 960 samples, is a frame
# What differs from the defaults of Transformers: 527 tensors with 201,400,553 values.
PUBLISHED = {
    "target_bandwidths": [0.5, 1, 1.5, 2],  # kbit/s: 8 codebooks of 10 bits, 25 times a second
    "acoustic_model_config": {
        "model_type": "dac",
        "downsampling_ratios": RATIOS,
        "upsampling_ratios": RATIOS,
    },
}
# In the published bundle; training alone masks, so Transformers' class leaves it out.
UNUSED = f"{CODEC_PREFIX}semantic_model.masked_spec_embed"


def codec_config(config: Mapping[str, Any]) -> HiggsAudioV2TokenizerConfig:
    """Return the config of the codec in a bundle.

    Args:
        config: The contents of the bundle's ``config.json``.
    """
    section = config.get("audio_encoder_config") or {}
    return HiggsAudioV2TokenizerConfig(**(section.get(CONFIG_KEY) or PUBLISHED))


def tensor_names(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the codec's tensors in a bundle, without the one that is not used.

    Args:
        config: The contents of the bundle's ``config.json``.
    """
    with torch.device("meta"):
        codec = HiggsAudioV2TokenizerModel(codec_config(config))
    return {f"{CODEC_PREFIX}{name}" for name in codec.state_dict()}
