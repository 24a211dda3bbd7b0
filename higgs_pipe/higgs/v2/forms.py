"""Full checkpoints of Higgs Audio v2.

::

    merged/NAME/                     native names: Transformers, and servers that read its format
        audio_tokenizer/             the codec
        config.json, generation_config.json, model-00001-of-00003.safetensors, …
        processor_config.json, tokenizer.json, chat_template.jinja, …
    original/NAME/                   Boson AI's own names, without a codec, for its own code
        config.json, generation_config.json, model-00001-of-00003.safetensors, …
        tokenizer.json, …
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import HiggsAudioV2Config, HiggsAudioV2TokenizerModel

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.files import write_json
from higgs_pipe.higgs.codec_checkpoint import CODEC_FOLDER, bundle_of, write_codec
from higgs_pipe.higgs.forms import (
    CONFIG,
    LICENCES,
    NOT_COPIED,
    FullForm,
    copy_side_files,
    name_of,
    side_files,
)
from higgs_pipe.higgs.loading_errors import checkpoint_json
from higgs_pipe.higgs.pretrained import checkpoint_dir, load_pretrained
from higgs_pipe.higgs.tokenizer import load_tokenizer
from higgs_pipe.higgs.v2.original_form import original_config, original_name

GENERATION, PROCESSOR = "generation_config.json", "processor_config.json"
TOKENIZER_FILES = ("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens")


def write_merged_files(
    folder: Path, base: Pretrained, codec: Pretrained, dtype: torch.dtype
) -> None:
    """Write the files that a merged model needs beside its weights.

    Transformers takes the codec that ``processor_config.json`` names as a Hub id or a path, never
    relative to the file. So only a codec from the Hub is named there; for one in a folder or a
    bundle, the user loads the processor with the codec from ``audio_tokenizer/``.

    Args:
        folder: Where the files go.
        base: The base.
        codec: The codec, which is copied.
        dtype: The dtype of the weights.
    """
    copy_side_files(folder, base, dtype, left_out=[PROCESSOR])
    write_codec(codec, folder / CODEC_FOLDER)
    processor = checkpoint_json(checkpoint_dir(base) / PROCESSOR)
    processor.pop("audio_tokenizer", None)
    if not Path(codec.name).is_dir() and bundle_of(codec) is None:
        processor["audio_tokenizer"] = {
            "audio_tokenizer_class": HiggsAudioV2TokenizerModel.__name__,
            "audio_tokenizer_name_or_path": codec.name,
        }
    write_json(folder / PROCESSOR, processor)


def write_original_files(folder: Path, base: Pretrained, _: Pretrained, dtype: torch.dtype) -> None:
    """Write the files that Boson AI's code needs beside the weights: config and tokenizer.

    Args:
        folder: Where the files go.
        base: The base.
        dtype: The dtype of the weights.
    """
    for path in side_files(checkpoint_dir(base), (*NOT_COPIED, PROCESSOR)):
        if path.name.startswith((*TOKENIZER_FILES, *LICENCES)):
            shutil.copyfile(path, folder / path.name)
    config = load_pretrained(HiggsAudioV2Config, base)
    tokenizer = load_tokenizer(base)
    write_json(folder / CONFIG, original_config(config, tokenizer, name_of(dtype)))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    write_json(folder / GENERATION, {**ends, "pad_token_id": config.pad_token_id})


def _native(model: Iterable[str], _: Iterable[str]) -> dict[str, str]:
    return {name: name for name in model}


def _original(model: Iterable[str], _: Iterable[str]) -> dict[str, str]:
    return {original_name(name): name for name in model}


FORMS = {
    "merged": FullForm(_native, write_merged_files, "usage/v2_merged.md.j2", copies_codec=True),
    "original": FullForm(
        _original, write_original_files, "usage/v2_original.md.j2", is_native=False
    ),
}
