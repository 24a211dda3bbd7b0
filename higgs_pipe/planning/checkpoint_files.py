"""The small JSON files of an untrusted checkpoint, read within bounds and checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs_pipe.planning.bounds import MAX_CHECKPOINT_JSON_BYTES
from higgs_pipe.planning.model_types import V2, V3
from higgs_pipe.planning.user_files import UnfitFileError, read_file

MAX_HEADER_BYTES = 2**26  # of a safetensors file
# The most that a number of a config may be: far above all published models. Beyond, the estimate
# would be nonsense, and memory would run out before anything is said.
LARGEST = {
    "vocab_size": 2**22,
    "num_codebooks": 64,
    "codebook_size": 2**15 - 1,  # codes have 16 bits
    "hidden_size": 2**17,
    "intermediate_size": 2**19,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
}
SIZES_OF_BODY = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
# By model_type. Without these, a default would be taken that is another model's.
NUMBERS_OF_BASE = {
    V2: (
        *SIZES_OF_BODY, "num_codebooks", "codebook_size",
        "audio_token_id", "audio_bos_token_id", "audio_delay_token_id",
        "audio_stream_bos_id", "audio_stream_eos_id",
    ),
    V3: (
        *(f"text_config.{key}" for key in SIZES_OF_BODY),
        "audio_encoder_config.num_codebooks", "audio_encoder_config.vocab_size",
    ),
}  # fmt: skip
SECTIONS = ("text_config", "audio_encoder_config")


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UnfitFileError: It is too large, or not a JSON object.
        OSError: It cannot be read.
    """
    try:
        value = json.loads(read_file(path, MAX_CHECKPOINT_JSON_BYTES))
    except (ValueError, RecursionError):
        raise UnfitFileError("is not JSON") from None
    if not isinstance(value, dict):
        raise UnfitFileError("is not a JSON object")
    return value


def read_header(path: Path) -> dict[str, Any]:
    """Return the entry of each tensor in the header of a safetensors file, by name.

    Raises:
        UnfitFileError: It has no such header, or one that is too long.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise UnfitFileError("has a header that is too long")
        try:
            header = json.loads(stream.read(num_bytes))
        except (ValueError, RecursionError):
            raise UnfitFileError("has a header that is not JSON") from None
    if not isinstance(header, dict):
        raise UnfitFileError("has a header that is not a JSON object")
    header.pop("__metadata__", None)
    return header


def size_fault(config: Mapping[str, Any]) -> str | None:
    """Return an error on an impossible size in a ``config.json``, as a predicate, or None."""
    for section in ("", *SECTIONS):
        for key, largest in LARGEST.items():
            size = _section(config, section).get(key, 1)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= largest:
                return (
                    f"has the {key} {size!r:.30} in its config.json; 1 to {largest:,} are possible"
                )
    return None


def missing_number(config: Mapping[str, Any]) -> str | None:
    """Return an error on a missing number in a base's ``config.json``, as a predicate, or None."""
    for dotted in NUMBERS_OF_BASE[config["model_type"]]:
        section, _, key = dotted.rpartition(".")
        number = _section(config, section).get(key)
        if not isinstance(number, int):
            found = "no" if number is None else "no whole number as"
            return f"has {found} {dotted} in its config.json"
    return None


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a config, or all of it for ``""``; empty if it is missing."""
    section = config.get(name) if name else config
    return section if isinstance(section, Mapping) else {}
