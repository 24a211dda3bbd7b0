"""Fuzz targets: readers of files from others, with valid seed files.

A reader may refuse bytes with its own error; anything else is a bug.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
from data.test_fuzz import ENCODINGS, check, examples, read, recording
from helpers import ROOT, config_of_base
from safetensors.numpy import save, save_file

from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.manifests.formats import READERS
from higgs_pipe.data.specs import MEASURED
from higgs_pipe.data.tables import open_table, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.planning.config_check import config_path_or_exit
from higgs_pipe.planning.model_types import V2
from higgs_pipe.planning.models import folder_fault
from higgs_pipe.publishing.checking import check_package
from higgs_pipe.publishing.sealing import seal, write_zip

TENSORS = ("model.embed_tokens.weight", "text_lm_head.weight")
Target = Callable[[Path, bytes], None]

# The files of a base model that the plan of a run looks at.
CHECKPOINT = {
    "config.json": json.dumps(config_of_base(V2)).encode(),
    "model.safetensors": save({name: np.zeros(1, np.float32) for name in TENSORS}),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}
    ).encode(),
}


def read_manifest(name: str, folder: Path, content: bytes) -> None:
    """Read bytes as every file of a format."""
    for file in examples(name):
        (folder / file).write_bytes(content)
    read(folder, name)


def read_recording(name: str, folder: Path, content: bytes) -> None:
    """Measure bytes as a recording."""
    (folder / name).write_bytes(content)
    check(folder / name)


def read_table(folder: Path, content: bytes) -> None:
    """Read bytes as a table of ours."""
    (folder / "t.parquet").write_bytes(content)
    refused(lambda: open_table(folder / "t.parquet", MEASURED).read())


def read_result(folder: Path, content: bytes) -> None:
    """Read bytes as a JSON result."""
    (folder / "validation.json").write_bytes(content)
    refused(lambda: ValidationSummary.read(folder / "validation.json"))


def read_package(folder: Path, content: bytes) -> None:
    """Check bytes as a package."""
    (folder / "p.zip").write_bytes(content)
    refused(lambda: check_package(folder / "p.zip"))


def read_checkpoint(name: str, folder: Path, content: bytes) -> None:
    """Check bytes as a file of a base model, as planning does."""
    for file, whole in CHECKPOINT.items():
        (folder / file).write_bytes(content if file == name else whole)
    folder_fault("base_model", str(folder))


def read_config(folder: Path, content: bytes) -> None:
    """Read bytes as a ``config.yaml``."""
    own, shipped = folder / "config.yaml", ROOT / "config.yaml"
    own.write_bytes(content)
    with suppress(SystemExit), redirect_stderr(StringIO()):
        config_path_or_exit(own, shipped)


def refused(reading: Callable[[], object]) -> None:
    """Let a reader refuse what it reads."""
    try:
        reading()
    except UserError as error:
        str(error).encode()


TARGETS: list[Target] = [
    *(partial(read_manifest, name) for name in READERS),
    *(partial(read_recording, name) for name in ENCODINGS),
    read_table,
    read_result,
    read_package,
    *(partial(read_checkpoint, name) for name in CHECKPOINT),
    read_config,
]
NAMES = [*READERS, *ENCODINGS, "table", "result", "package", *CHECKPOINT, "config.yaml"]


def seeds() -> Iterator[bytes]:
    """Yield inputs of :func:`run`: a target's number, then what it reads without a fault."""
    for number, name in enumerate(READERS):
        for content in examples(name).values():
            yield bytes([number]) + content
    for number, name in enumerate(ENCODINGS, start=len(READERS)):
        yield bytes([number]) + recording(name)
    with tempfile.TemporaryDirectory() as name:
        write_table(Path(name) / "t.parquet", MEASURED, [])
        files = [(Path(name) / "t.parquet").read_bytes(), b"{}", package(Path(name))]
    files += [*CHECKPOINT.values(), (ROOT / "examples/demo/settings.yaml").read_bytes()]
    for number, content in enumerate(files, start=len(TARGETS) - len(files)):
        yield bytes([number]) + content


def package(folder: Path) -> bytes:
    """The ZIP of a package of a few bytes."""
    staged = folder / "ada"
    staged.mkdir()
    save_file({"a": np.zeros((2, 2), np.float32)}, staged / ADAPTER_WEIGHTS)
    for file in (ADAPTER_CONFIG, "provenance.json", "README.md"):
        (staged / file).write_text("{}\n")
    base = PinnedModel(
        setting="base_model",
        name="org/base",
        revision=None,
        fingerprint="f" * 64,
        config_fingerprint="c" * 64,
    )
    base.write(staged / BASE_FILE)
    seal(staged)
    write_zip(staged, folder / "ada.zip")
    return (folder / "ada.zip").read_bytes()


def run(data: bytes) -> None:
    """Give bytes to the target that the first of them names."""
    if not data:
        return
    with tempfile.TemporaryDirectory() as folder:
        TARGETS[data[0] % len(TARGETS)](Path(folder), data[1:])
