"""Pretrained checkpoints: pinning, and loading that refuses what Transformers only warns about.

A pinned checkpoint is the commit of a Hub branch and a fingerprint of the weights. The rule
``pin_model`` writes it once per project; tokenize and pack load exactly that and stamp it on their
tables. Later stages take the base from the packed rows::

    base = base_of_rows(train_rows, stage.pretrained_base)  # UserError if it is no longer the same
    model = load_base(base.pretrained, dtype)
    base.fingerprint  # for the identity of a run; write it beside the adapter, compare it later
    base.revision  # the commit, for adapter_config.json and the model card; None for a directory
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.results import Result
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.hub import hub_answers
from higgs_pipe.higgs.loading_errors import CONTENT_FAULTS, not_loaded
from higgs_pipe.progress import activity

CONFIG_SUFFIXES = (".json", ".jinja", ".model", ".txt")
CONFIG_PATTERNS = [f"*{suffix}" for suffix in CONFIG_SUFFIXES]


def load_pretrained(auto_class: Any, pretrained: Pretrained, **options: Any) -> Any:
    """Call ``auto_class.from_pretrained``, with errors that a user can act on.

    Args:
        auto_class: The Transformers class.
        pretrained: The checkpoint.
        options: Passed on; with a ``state_dict``, nothing else of the checkpoint is read.

    Raises:
        UserError: The checkpoint cannot be found, reached or read.
    """
    small_files(pretrained)
    if not sys.stderr.isatty():  # a progress bar would fill a log file
        from transformers.utils import logging as transformers_logging  # whoever calls has it

        transformers_logging.disable_progress_bar()
    name = None if "state_dict" in options else pretrained.name  # Transformers takes one of them
    try:
        # What is wanted is here. Transformers would ask the Hub for each file that a checkpoint may
        # have, five times where there is no network: two minutes for a tokenizer in the cache.
        return auto_class.from_pretrained(
            name, revision=pretrained.revision, local_files_only=True, **options
        )
    except (OSError, ValueError, *CONTENT_FAULTS) as error:
        raise not_loaded(pretrained, error) from None
    except Exception as error:
        if type(error) is not Exception:  # Rust's tokenizers raise nothing more particular
            raise
        raise not_loaded(pretrained, error) from None


def load_weights(model_class: Any, pretrained: Pretrained, **options: Any) -> Any:
    """Load a model as :func:`load_pretrained` does; every weight must come from the checkpoint.

    Raises:
        UserError: As there; or weights are missing or of another shape, which Transformers would
            initialise at random.
    """
    all_files(pretrained)
    with activity(f"loading {pretrained.setting} {pretrained.name}"):
        model, loading = load_pretrained(
            model_class, pretrained, output_loading_info=True, **options
        )
    lacking = sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"])
    if lacking:
        raise UserError(
            f"{pretrained.setting} {pretrained.name!r}: {len(lacking)} weights are missing or of "
            f"another shape and would be random, such as {lacking[0]}; use a complete "
            "checkpoint in the native Transformers format."
        )
    return model


class PinnedModel(Result):
    """``models/base_model.json`` and ``models/codec.json``: exactly which checkpoint is used."""

    made_by: ClassVar[str] = "pin_model"

    setting: str
    name: str
    revision: str | None  # the commit of a Hub snapshot; None for a directory
    fingerprint: str  # of the weights
    config_fingerprint: str  # of config, tokenizer and chat template

    @property
    def pretrained(self) -> Pretrained:
        """The checkpoint, of the Hub at the pinned commit."""
        return Pretrained(self.setting, self.name, self.revision)

    def as_metadata(self) -> dict[str, Any]:
        """Return the ``metadata`` for a table that was made with the checkpoint."""
        return {"pinned": {self.setting: self.model_dump()}}

    @classmethod
    def of(cls, pretrained: Pretrained) -> Self:
        """Pin a checkpoint as it is now; download it first if it is on the Hub.

        Raises:
            UserError: It cannot be found or reached, is an adapter, or has no weight file.
        """
        folder = all_files(pretrained)
        if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
            raise UserError(
                f"{pretrained.setting} {pretrained.name!r} is an adapter; name the base that it "
                "was trained on."
            )
        is_local = Path(pretrained.name).is_dir()
        return cls(
            setting=pretrained.setting,
            name=pretrained.name,
            revision=None if is_local else folder.name,
            fingerprint=_fingerprint_of(weight_files(folder)),
            config_fingerprint=_fingerprint_of(
                path for path in folder.iterdir() if path.suffix in CONFIG_SUFFIXES
            ),
        )

    def check_unchanged(self) -> None:
        """Hash the weights again: 11.5 GB take about 5 seconds once they are in memory.

        Raises:
            UserError: They differ from those that were pinned.
        """
        if weight_fingerprint(self.pretrained) != self.fingerprint:
            raise self.changed()

    def changed(self) -> UserError:
        """Return the error that the weights differ from those that were pinned."""
        return UserError(
            f"{self.setting} {self.name!r}: the weights changed since they were pinned; "
            f"{self.rerun()}"
        )


def weight_fingerprint(pretrained: Pretrained) -> str:
    """Return the SHA-256 over the names and hashes of a checkpoint's weight files, in hexadecimal.

    It depends neither on the folder of the files nor on the dtype that they are loaded in.

    Raises:
        UserError: There is no weight file.
    """
    return _fingerprint_of(weight_files(checkpoint_dir(pretrained)))


def weight_files(folder: Path) -> list[Path]:
    """Return the files with weights in a checkpoint's folder.

    Raises:
        UserError: There is none.
    """
    for suffix in (".safetensors", ".bin"):  # Transformers prefers the former
        if paths := sorted(folder.glob(f"*{suffix}")):
            return paths
    raise UserError(f"{folder}: no weight file (.safetensors or .bin)")


def checkpoint_dir(pretrained: Pretrained) -> Path:
    """Return the folder of a checkpoint already on this machine: its own, or its Hub snapshot."""
    if Path(pretrained.name).is_dir():
        return Path(pretrained.name)
    found = snapshot_download(pretrained.name, revision=pretrained.revision, local_files_only=True)
    return Path(found)


def small_files(pretrained: Pretrained) -> Path:
    """Return a folder with a checkpoint's configuration, tokenizer and index of weights.

    Raises:
        UserError: It does not exist, or is not in the cache and the Hub does not answer in seconds.
    """
    return _download(pretrained, CONFIG_PATTERNS)


def all_files(pretrained: Pretrained) -> Path:
    """Return the folder of a checkpoint; a snapshot of the Hub is named by its commit.

    Raises:
        UserError: As :func:`small_files`.
    """
    for weights in ("*.safetensors", "*.bin"):
        folder = _download(pretrained, [*CONFIG_PATTERNS, weights, "README.md"])
        if any(folder.glob(weights)):
            break
    return folder


def _download(pretrained: Pretrained, patterns: Sequence[str]) -> Path:
    """Return a checkpoint's folder, or a Hub snapshot with the files that are wanted."""
    if Path(pretrained.name).is_dir():
        return Path(pretrained.name)
    try:
        with activity(f"downloading {pretrained.setting} {pretrained.name}"):
            found = snapshot_download(
                pretrained.name,
                revision=pretrained.revision,
                allow_patterns=list(patterns),
                local_files_only=not hub_answers(),
            )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise not_loaded(pretrained, error) from None
    return Path(found)


def _fingerprint_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and hashes of files."""
    ordered = sorted(paths)
    # Hashing releases the GIL.
    with activity("hashing weights"), ThreadPoolExecutor() as threads:
        hashes = list(threads.map(sha256_of_file, ordered))
    return fingerprint_of_hashes({path.name: h for path, h in zip(ordered, hashes, strict=True)})


def fingerprint_of_hashes(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over the names of files and their SHA-256, in hexadecimal."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
