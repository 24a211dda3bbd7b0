"""Loading of pretrained checkpoints; refuses what Transformers only warns about."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError

if not sys.stderr.isatty():  # a progress bar would fill a log file
    transformers_logging.disable_progress_bar()


def load_pretrained(auto_class: Any, pretrained: Pretrained, **options: Any) -> Any:
    """Call ``auto_class.from_pretrained``, with errors that a person can act on.

    Args:
        auto_class: The Transformers class.
        pretrained: The checkpoint.
        options: Passed on.

    Raises:
        UserError: The checkpoint cannot be found, reached or read.
    """
    try:
        return auto_class.from_pretrained(pretrained.name, revision=pretrained.revision, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{pretrained.setting} {pretrained.name!r} cannot be loaded: {error}\n"
            "Give a checkpoint directory or a Hub id that this machine can reach."
        ) from None


def load_weights(model_class: Any, pretrained: Pretrained, **options: Any) -> Any:
    """Load a model as :func:`load_pretrained` does; every weight must come from the checkpoint.

    Raises:
        UserError: As there; or weights are missing or of another shape, which Transformers would
            initialise at random.
    """
    model, loading = load_pretrained(model_class, pretrained, output_loading_info=True, **options)
    lacking = sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"])
    if lacking:
        raise UserError(
            f"{pretrained.setting} {pretrained.name!r}: {len(lacking)} weights are missing or of "
            f"another shape and would be random, such as {lacking[0]}; use a complete "
            "checkpoint in the native Transformers format."
        )
    return model


def weight_fingerprint(pretrained: Pretrained) -> str:
    """Return the SHA-256 over the names and hashes of a checkpoint's weight files, in hexadecimal.

    It depends neither on the folder of the files nor on the dtype that they are loaded in.

    Raises:
        UserError: There is no weight file.
    """
    directory = checkpoint_dir(pretrained)
    paths = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin"))
    if not paths:
        raise UserError(f"{directory}: no weight file (.safetensors or .bin)")
    lines = [f"{sha256_of_file(path)}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_dir(pretrained: Pretrained) -> Path:
    """Return the folder of a checkpoint that was loaded before: its own, or its Hub snapshot."""
    if Path(pretrained.name).is_dir():
        return Path(pretrained.name)
    found = snapshot_download(pretrained.name, revision=pretrained.revision, local_files_only=True)
    return Path(found)
