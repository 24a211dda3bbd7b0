"""Names, dtypes and shapes of the tensors in a safetensors file, from its header alone."""

import json
import math
from typing import IO, Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt

DTYPE_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2},
    **{"I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}
MAX_HEADER_BYTES = 10_000_000  # that of the 3B model has 0.2 million


class NotSafetensorsError(Exception):
    """A file that is not valid safetensors; the message says why."""


class _Tensor(BaseModel):
    """A tensor as the header declares it."""

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


def read_shapes(stream: IO[bytes], num_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor.

    Args:
        stream: The file, at its beginning.
        num_bytes: Its size.

    Raises:
        NotSafetensorsError: Header and size do not describe the same file.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, num_bytes - 8):
        raise NotSafetensorsError("no safetensors header")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError):
        raise NotSafetensorsError("a header that is not JSON") from None
    if not isinstance(header, dict):
        raise NotSafetensorsError("a header that is not an object")
    header.pop("__metadata__", None)
    shapes, spans = {}, []
    for name, tensor in header.items():
        shapes[name], span = _shape_and_span(name, tensor)
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise NotSafetensorsError("tensors that overlap, or bytes that belong to none")
        end = last
    if 8 + length + end != num_bytes:
        raise NotSafetensorsError(f"{8 + length + end:,} bytes in its header, {num_bytes:,} in all")
    return shapes


def _shape_and_span(name: str, tensor: Any) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return the shape of a tensor and where its bytes begin and end."""
    try:
        declared = _Tensor.model_validate(tensor, strict=True)
        begin, end = declared.data_offsets
        if end - begin != math.prod(declared.shape) * DTYPE_BYTES[declared.dtype]:
            raise ValueError(end - begin)
    except (ValueError, KeyError):
        raise NotSafetensorsError(
            f"tensor {name!r} without a valid dtype, shape and place"
        ) from None
    return tuple(declared.shape), (begin, end)
