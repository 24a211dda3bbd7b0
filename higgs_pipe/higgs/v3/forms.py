"""Full checkpoints of Higgs TTS 3: the published bundle with an adapter merged in.

::

    merged/NAME/    the contents of the published checkpoint, under its own names
        config.json, model-00001-of-00002.safetensors, …, model.safetensors.index.json
        tokenizer.json, …

The codec is in the bundle, as in the base. Servers read the heads or the embeddings, which are one
matrix each: both are written from the merged one.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.forms import FullForm, copy_side_files
from higgs_pipe.higgs.v3.native import AUDIO_EMBEDDING, AUDIO_HEAD, TEXT_EMBEDDING, TEXT_HEAD

COPIES = {TEXT_HEAD: TEXT_EMBEDDING, AUDIO_HEAD: AUDIO_EMBEDDING}


def sources(model: Iterable[str], base: Iterable[str]) -> dict[str, str]:
    """Return the name in the base for each name: the model's, the codec's and the copied heads'."""
    return {name: COPIES.get(name, name) for name in (*model, *base)}


def write_side_files(folder: Path, base: Pretrained, _: Pretrained, dtype: torch.dtype) -> None:
    """Copy config and tokenizer; the codec is among the weights."""
    copy_side_files(folder, base, dtype)


FORMS = {"merged": FullForm(sources, write_side_files, "usage/v3_merged.md.j2")}
