"""Errors of the libraries that load checkpoints, as messages with a cause and a remedy."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.user_files import UnfitFileError

# What Transformers and PEFT raise, beside OSError and ValueError, where a file holds something
# unexpected.
CONTENT_FAULTS = (
    AttributeError, LookupError, RecursionError, TypeError,
    re.error, StrictDataclassError, SafetensorError,
)  # fmt: skip


def checkpoint_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint.

    Raises:
        UserError: It cannot be read, is too large, or holds no JSON object.
    """
    try:
        return read_object(path)
    except OSError as error:
        fact = f"cannot be read ({error.strerror})"
    except UnfitFileError as error:
        fact = str(error)
    raise UserError(f"{path} {fact}; copy or download the checkpoint again")


def not_loaded(pretrained: Pretrained, error: Exception) -> UserError:
    """Return the error of a checkpoint, from what its loader raised."""
    fact = f"{pretrained.setting} {pretrained.name!r} cannot be loaded: "
    if Path(pretrained.name).is_dir():
        return UserError(f"{fact}{error or type(error).__name__}\nUse a complete checkpoint.")
    causes = (error, error.__cause__)  # Transformers wraps it

    def is_by(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if is_by(HFValidationError):
        return UserError(f"{fact}there is no such folder; name another one, or a Hub id.")
    if is_by(GatedRepoError):
        return UserError(
            f"{fact}accept its licence on its page on the Hub, then run: hf auth login"
        )
    if is_by(RevisionNotFoundError):
        return UserError(
            f"{fact}the Hub has no revision {pretrained.revision!r} of it; fix "
            f"{pretrained.setting}_revision, or set it to null."
        )
    if is_by(RepositoryNotFoundError):
        return UserError(
            f"{fact}there is no such folder, and the Hub has no such model, or not for you. "
            "Fix the name; for a private model: hf auth login"
        )
    if is_by(LocalEntryNotFoundError):
        return UserError(
            f"{fact}there is no such folder, and the Hub cannot be reached and nothing of it is in "
            f"this machine's cache. Where there is a network, run: hf download {pretrained.name} "
            "--local-dir FOLDER; copy FOLDER here and name it, or copy the cache (HF_HOME) and "
            "set HF_HUB_OFFLINE=1."
        )
    return UserError(
        f"{fact}there is no such folder, and the Hub does not provide it: {error}\n"
        "Name a checkpoint's folder, or a Hub id that this machine can reach."
    )
