"""Checkpoints of safetensors files, read and written one tensor at a time.

The library writes a file from tensors that are all in memory. Here the header is written first,
because names, shapes and dtypes are known, and each tensor is written as soon as it is made
(`format <https://github.com/huggingface/safetensors#format>`_: length of the header in 8 bytes, the
header as JSON, the tensors in its order).
"""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from higgs_pipe.data.files import write_json
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.loading_errors import checkpoint_json
from higgs_pipe.higgs.pretrained import weight_files

MAX_SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


class Shards:
    """The tensors of a checkpoint's safetensors files, each read on access."""

    def __init__(self, folder: Path) -> None:
        paths = weight_files(folder)
        if paths[0].suffix != ".safetensors":
            raise UserError(f"{folder}: weights are not in safetensors files; convert them.")
        if (folder / INDEX).is_file():  # other files in the folder are not the checkpoint's
            places = checkpoint_json(folder / INDEX).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{folder / INDEX} has no weight_map; copy the checkpoint again")
            indexed = set(map(str, places.values()))
            paths = [path for path in paths if path.name in indexed]
        self._files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        self._file_of: dict[str, Any] = {name: f for f in self._files for name in f.offset_keys()}

    def __enter__(self) -> Self:
        for file in self._files:
            file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.__exit__(kind, error, traceback)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by name."""
        return {n: tuple(f.get_slice(n).get_shape()) for n, f in self._file_of.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds the values of every tensor."""
        return functools.reduce(torch.promote_types, {self[name].dtype for name in self._file_of})

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor; it is a view of the file and must not be changed."""
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    make: Callable[[str], Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint's tensors into files of at most ``max_shard_bytes``, and their index.

    Args:
        folder: Where the files go.
        shapes: The tensors by name, in the order of the files.
        dtype: Dtype of all tensors.
        make: Returns a tensor of the given name, with the announced shape and dtype.
        max_shard_bytes: A larger tensor gets a file of its own.
    """
    shards: list[list[str]] = [[]]
    num_bytes = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and num_bytes + size > max_shard_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append(name)
        num_bytes += size
    file_names = [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, 1 + len(shards))
    ]
    if len(shards) == 1:
        file_names = ["model.safetensors"]
    for file_name, names in zip(file_names, shards, strict=True):
        _write_file(folder / file_name, {name: shapes[name] for name in names}, dtype, make)
    if len(shards) > 1:
        weight_map = {
            n: file for file, names in zip(file_names, shards, strict=True) for n in names
        }
        total = sum(map(math.prod, shapes.values())) * dtype.itemsize
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    make: Callable[[str], Tensor],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = make(name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype}, not as announced")
            stream.write(tensor.contiguous().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
