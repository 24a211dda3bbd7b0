"""Loading pretrained checkpoints, with refusals where Transformers only reports."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError

if not sys.stderr.isatty():  # bars are for a terminal, a log wants lines
    transformers_logging.disable_progress_bar()


def load_pretrained(
    auto_class: Any, setting: str, name: str, revision: str | None, **options: Any
) -> Any:
    """``auto_class.from_pretrained`` with errors that a person can act on.

    Args:
        auto_class: The Transformers class.
        setting: The key of the config that names the checkpoint, for messages.
        name: A directory or a Hub id.
        revision: A Hub revision, or None.
        options: Passed on.

    Raises:
        UserError: The checkpoint cannot be found, reached or read.
    """
    try:
        return auto_class.from_pretrained(name, revision=revision, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting} {name!r} cannot be loaded: {error}\n"
            "Give a checkpoint directory or a Hub id that this machine can reach."
        ) from None


def load_weights(
    model_class: Any, setting: str, name: str, revision: str | None, **options: Any
) -> Any:
    """As :func:`load_pretrained`, and no weight may be left to chance.

    Raises:
        UserError: As there; or weights are missing or of another shape, which Transformers would
            fill at random.
    """
    model, loading = load_pretrained(
        model_class, setting, name, revision, output_loading_info=True, **options
    )
    lacking = sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"])
    if lacking:
        raise UserError(
            f"{setting} {name!r}: {len(lacking)} weights are missing or of another shape and would "
            f"be random, for example {lacking[0]}; use a complete checkpoint in the native "
            "Transformers format."
        )
    return model


def weight_fingerprint(name: str, revision: str | None) -> str:
    """SHA-256 over the names and hashes of a checkpoint's weight files, in hexadecimal.

    It does not depend on where the files lie, nor on the type they are loaded in.

    Raises:
        UserError: There is no weight file.
    """
    directory = checkpoint_dir(name, revision)
    paths = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin"))
    if not paths:
        raise UserError(f"{directory}: no weight file (.safetensors or .bin)")
    lines = [f"{sha256_of_file(path)}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_dir(name: str, revision: str | None) -> Path:
    """Where a checkpoint that was loaded before lies: its directory, or its Hub snapshot."""
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, revision=revision, local_files_only=True))
