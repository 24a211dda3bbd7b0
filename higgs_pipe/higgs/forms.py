"""The folders of full checkpoints: what lies beside the weights, and where servers look for it.

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
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoTokenizer,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerModel,
)

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.files import read_json, write_json
from higgs_pipe.higgs.origin import CODEC_FOLDER
from higgs_pipe.higgs.pretrained import (
    CONFIG_SUFFIXES,
    checkpoint_dir,
    load_pretrained,
    weight_files,
)
from higgs_pipe.higgs.shards import INDEX
from higgs_pipe.higgs.v2.original_form import original_config, original_name

Form = Literal["merged", "original"]

CONFIG, GENERATION, PROCESSOR = "config.json", "generation_config.json", "processor_config.json"
# Written anew, or of another kind of checkpoint.
NOT_COPIED = (CONFIG, PROCESSOR, INDEX, "audio_tokenizer_config.json", "adapter_config.json")
LICENCES = ("LICENSE", "LICENCE", "NOTICE")
TOKENIZER_FILES = ("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens")


def model_shapes(config: HiggsAudioV2Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the native model, text head included, by name."""
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def name_in(form: Form, native: str) -> str:
    """Return the name that a tensor has in a form."""
    return original_name(native) if form == "original" else native


def codec_files(codec: Pretrained) -> list[Path]:
    """Return the files of the codec that go beside a merged model."""
    folder = checkpoint_dir(codec)
    return [*_side_files(folder, ()), *weight_files(folder)]


def write_merged_files(
    folder: Path, base: Pretrained, codec: Pretrained, dtype: torch.dtype
) -> None:
    """Write what a merged model needs beside its weights.

    Transformers takes the codec that ``processor_config.json`` names for a Hub id or a path, never
    relative to the file. So a codec of the Hub is named, and one in a folder is not: whoever loads
    the processor hands it the codec of ``audio_tokenizer/``, wherever that lies by then.

    Args:
        folder: Where the files go.
        base: The base.
        codec: The codec, which is copied.
        dtype: The dtype of the weights.
    """
    source = checkpoint_dir(base)
    for path in _side_files(source, NOT_COPIED):
        shutil.copyfile(path, folder / path.name)
    config = read_json(source / CONFIG)
    config.pop("torch_dtype", None)  # the key of older versions
    write_json(folder / CONFIG, config | {"dtype": _name_of(dtype)})
    (folder / CODEC_FOLDER).mkdir()
    for path in codec_files(codec):
        shutil.copyfile(path, folder / CODEC_FOLDER / path.name)
    processor = read_json(source / PROCESSOR)
    processor.pop("audio_tokenizer", None)
    if not Path(codec.name).is_dir():
        processor["audio_tokenizer"] = {
            "audio_tokenizer_class": HiggsAudioV2TokenizerModel.__name__,
            "audio_tokenizer_name_or_path": codec.name,
        }
    write_json(folder / PROCESSOR, processor)


def write_original_files(folder: Path, base: Pretrained, dtype: torch.dtype) -> None:
    """Write what Boson AI's code needs beside the weights: its config and the tokenizer.

    Args:
        folder: Where the files go.
        base: The base.
        dtype: The dtype of the weights.
    """
    source = checkpoint_dir(base)
    for path in _side_files(source, NOT_COPIED):
        if path.name.startswith((*TOKENIZER_FILES, *LICENCES)):
            shutil.copyfile(path, folder / path.name)
    config = load_pretrained(HiggsAudioV2Config, base)
    tokenizer = load_pretrained(AutoTokenizer, base)
    write_json(folder / CONFIG, original_config(config, tokenizer, _name_of(dtype)))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    write_json(folder / GENERATION, {**ends, "pad_token_id": config.pad_token_id})


def _side_files(folder: Path, left_out: tuple[str, ...]) -> list[Path]:
    """Return the files of a checkpoint's folder that are not its weights, nor texts about it."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name not in left_out
        if path.suffix in CONFIG_SUFFIXES or path.name.startswith(LICENCES)
        if not path.name.endswith(".index.json")
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
