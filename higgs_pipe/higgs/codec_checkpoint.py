"""Checkpoints of the codec: a folder of its own, or the bundle of a base that holds it.

A bundle is recognised by ``model_type`` in its ``config.json``, like a base.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.forms import side_files
from higgs_pipe.higgs.pretrained import (
    all_files,
    checkpoint_dir,
    load_pretrained,
    load_weights,
    small_files,
    weight_files,
)
from higgs_pipe.higgs.rules import config_json
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.v3 import codec as v3_codec
from higgs_pipe.planning import model_types
from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.user_files import UnfitFileError

CODEC_FOLDER = "audio_tokenizer"  # of a base that has its codec beside its weights


@dataclass(frozen=True)
class Bundle:
    """A codec among the weights of a base."""

    prefix: str  # of the names of its tensors
    config: HiggsAudioV2TokenizerConfig


# By the model_type of a base: the codec's config, from that of the base.
CONFIGS = {model_types.V3: v3_codec.codec_config}


def bundle_of(codec: Pretrained) -> Bundle | None:
    """Return the codec in a bundle; None if the checkpoint is a codec alone."""
    config = config_json(codec)
    model_type = config.get("model_type")
    if model_type not in CONFIGS:
        return None
    return Bundle(model_types.BUNDLED_CODECS[model_type], CONFIGS[model_type](config))


def codec_config(codec: Pretrained) -> HiggsAudioV2TokenizerConfig:
    """Return the config of a codec.

    Raises:
        UserError: It cannot be found, reached or read.
    """
    if bundle := bundle_of(codec):
        return bundle.config
    return load_pretrained(HiggsAudioV2TokenizerConfig, codec)


def codec_model(codec: Pretrained) -> HiggsAudioV2TokenizerModel:
    """Load a codec in float32.

    Raises:
        UserError: As :func:`codec_config`, or some of its weights are missing.
    """
    bundle = bundle_of(codec)
    if bundle is None:
        return load_weights(HiggsAudioV2TokenizerModel, codec, dtype=torch.float32)
    with Shards(all_files(codec)) as shards:
        weights = {
            name.removeprefix(bundle.prefix): shards[name].float()
            for name in shards.shapes
            if name.startswith(bundle.prefix)
        }
    return load_weights(HiggsAudioV2TokenizerModel, codec, config=bundle.config, state_dict=weights)


def codec_of_base(base: Pretrained, codec_revision: str | None = None) -> Pretrained:
    """Return the codec of a base: in its bundle or its folder, or the one its processor names.

    ``processor_config.json`` names a directory or a Hub id; the folder of a merged checkpoint may
    have moved since.

    Args:
        base: The base.
        codec_revision: The revision of a codec of the Hub; a bundle has that of the base.

    Raises:
        UserError: It names none.
    """
    if bundle_of(base):
        return Pretrained("codec", base.name, base.revision)
    beside = Path(base.name) / CODEC_FOLDER
    if (beside / "config.json").is_file():
        return Pretrained("codec", str(beside))
    try:
        path = small_files(base) / "processor_config.json"
        codec = read_object(path)["audio_tokenizer"]["audio_tokenizer_name_or_path"]
        if not isinstance(codec, str):
            raise TypeError(type(codec))
    except (OSError, UnfitFileError, KeyError, TypeError):
        raise UserError(
            f"{base.setting} {base.name!r} names no codec (audio_tokenizer in "
            "processor_config.json); name one."
        ) from None
    return Pretrained("codec", codec, codec_revision)


def num_codec_bytes(codec: Pretrained) -> int:
    """Return the size of the files that :func:`write_codec` writes."""
    if bundle_of(codec):
        with torch.device("meta"):
            weights = HiggsAudioV2TokenizerModel(codec_config(codec)).state_dict().values()
        num_values: int = sum(weight.numel() for weight in weights)
        return num_values * torch.float32.itemsize
    return sum(path.stat().st_size for path in _files(codec))


def write_codec(codec: Pretrained, folder: Path) -> None:
    """Write a codec as a separate checkpoint: a copy, or extracted from a bundle."""
    if bundle_of(codec):
        codec_model(codec).save_pretrained(folder)
        return
    folder.mkdir()
    for path in _files(codec):
        shutil.copyfile(path, folder / path.name)


def _files(codec: Pretrained) -> list[Path]:
    folder = checkpoint_dir(codec)
    return [*side_files(folder, ()), *weight_files(folder)]
