"""Full checkpoints of base and adapter: the parts common to all families.

A family names its forms in :mod:`higgs_pipe.higgs.family`; ``v2/forms.py`` and ``v3/forms.py`` show
their folders.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.files import write_json
from higgs_pipe.higgs.loading_errors import checkpoint_json
from higgs_pipe.higgs.pretrained import CONFIG_SUFFIXES, checkpoint_dir
from higgs_pipe.higgs.shards import INDEX

CONFIG = "config.json"
# Written anew, or of another kind of checkpoint.
NOT_COPIED = (CONFIG, INDEX, "audio_tokenizer_config.json", "adapter_config.json")
LICENCES = ("LICENSE", "LICENCE", "NOTICE")


@dataclass(frozen=True)
class FullForm:
    """A form of full checkpoints.

    Attributes:
        sources: Takes the names of the native model's tensors and of all that the base holds;
            returns the name in the base for each name in the form.
        write_side_files: Writes the files beside the weights, given the folder, the base, the codec
            and the dtype of the weights.
        usage: The template of the card's section on loading it.
        copies_codec: Whether there is a copy of the codec beside the weights.
        is_native: Whether it loads as a base does.
    """

    sources: Callable[[Iterable[str], Iterable[str]], dict[str, str]]
    write_side_files: Callable[[Path, Pretrained, Pretrained, torch.dtype], None]
    usage: str
    copies_codec: bool = False
    is_native: bool = True


def copy_side_files(
    folder: Path, base: Pretrained, dtype: torch.dtype, left_out: Iterable[str] = ()
) -> None:
    """Copy the files beside a base's weights; ``config.json`` gets the dtype of the new weights.

    Args:
        folder: Where the files go.
        base: The base.
        dtype: The dtype of the weights.
        left_out: Names of files not to copy.
    """
    source = checkpoint_dir(base)
    for path in side_files(source, (*NOT_COPIED, *left_out)):
        shutil.copyfile(path, folder / path.name)
    config = checkpoint_json(source / CONFIG)
    config.pop("torch_dtype", None)  # the key of older versions
    write_json(folder / CONFIG, config | {"dtype": name_of(dtype)})


def side_files(folder: Path, left_out: tuple[str, ...]) -> list[Path]:
    """Return the files of a checkpoint's folder that are not its weights, nor texts about it."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name not in left_out
        if path.suffix in CONFIG_SUFFIXES or path.name.startswith(LICENCES)
        if not path.name.endswith(".index.json")
    )


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in ``config.json``."""
    return str(dtype).removeprefix("torch.")
