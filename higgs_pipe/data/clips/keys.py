"""Keys: what clips may share, and the groups of clips that share some, as numbers in columns.

N clips, O other recordings in their conversations, C columns of keys. A text or a hash is looked at
once and left as a number, so that 10^6 clips take little memory.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.text import bare_words

Kind: TypeAlias = Literal["audio", "text", "dialogue", "speaker", "recording"]
Numbers: TypeAlias = npt.NDArray[np.int32]

TEXTS_AT_ONCE = 2_000
# Returns a column of a table, a value per clip, by its name.
ColumnOf: TypeAlias = Callable[[str], pa.ChunkedArray]


class OtherRecording(NamedTuple):
    """A recording in a clip's conversation, other than the clip's own."""

    clip: int  # the place of that clip among all clips
    columns: Mapping[str, Any]  # of CLIPS: those of its file, text, speaker and dialogue_id
    is_target: bool


@dataclass(frozen=True)
class Keys:
    """Properties that clips may share; all clips with the same key are in one split.

    ``numbers`` has a row per clip, then one per other recording of their conversations, and a
    column per kind; -1 is none. No number is in two columns. A clip's first key names it.
    """

    kinds: tuple[Kind, ...]  # (C,)
    ends: Numbers  # (C,), above the numbers of each column
    numbers: Numbers  # (N + O, C)
    owners: Numbers  # (N + O,), the clip of each row
    num_clips: int
    names: pa.Array  # the values of first keys, by their numbers

    @property
    def first(self) -> Numbers:
        """The first key of each clip: (N,)."""
        own = self.numbers[: self.num_clips]
        first: Numbers = own[np.arange(self.num_clips), (own >= 0).argmax(axis=1)]
        return first

    def of(self, clip: int) -> list[int]:
        """Return the keys of a clip, those of its own recording first."""
        others = self.owners[self.num_clips :]
        first, last = self.num_clips + np.searchsorted(others, (clip, clip + 1))
        rows = (self.numbers[clip], *self.numbers[first:last])
        return [key for row in rows for key in row.tolist() if key >= 0]

    def kind(self, key: int) -> Kind:
        """Return the kind of property that a key stands for."""
        return self.kinds[int(np.searchsorted(self.ends, key, side="right"))]

    def first_owners(self, chosen: npt.NDArray[np.bool_]) -> Numbers:
        """Return for each key the first of the chosen clips (N,) that has it, or N."""
        found = np.full(self.ends[-1], self.num_clips, np.int32)
        for column in self.numbers.T:
            has_key = chosen[self.owners] & (column >= 0)
            np.minimum.at(found, column[has_key], self.owners[has_key])
        return found


def keys_of(column_of: ColumnOf, data: DataConfig, others: Sequence[OtherRecording] = ()) -> Keys:
    """Return the keys of each clip: what it may share with others of its split.

    Keys are audio (equal samples in any file, and overlapping segments of one file), dialogue and,
    with ``data.keep_text_together``, text; speaker or recording if ``data.split_by`` says so. All
    targets of a conversation count; other recordings in it count if they are a target elsewhere
    and ``data.keep_context_together`` is set. A clip's first key names it in :func:`groups_of`:
    its speaker or recording if the split is by these, else its samples.

    Args:
        column_of: Returns a column of the clips, rows of CLIPS, by its name.
        data: The settings of the split.
        others: The other recordings in the conversations of the clips, in the clips' order.
    """

    def values(name: str) -> pa.ChunkedArray:
        return with_others(column_of(name), name, others)

    names: list[tuple[Kind, pa.DictionaryArray]] = []
    if data.split_by == "speaker":
        names.append(("speaker", numbered(values("speaker"))))
    if data.split_by == "recording":
        names.append(("recording", numbered(values("audio_sha256"))))
    names.append(("audio", numbered(values("pcm_sha256"))))
    columns = [(kind, numbers_of(encoded)) for kind, encoded in names]
    columns.append(("audio", _span_numbers(values)))
    columns.append(("dialogue", numbers_of(numbered(values("dialogue_id")))))
    if data.keep_text_together:
        columns.append(("text", numbers_of(numbered(words_of(values("text"))))))
    num_clips = len(columns[0][1]) - len(others)
    kinds, found = zip(*columns, strict=True)
    ends = np.cumsum([column.max(initial=-1) + 1 for column in found], dtype=np.int32)
    numbers = np.stack(found, axis=1)
    for column, start in zip(numbers.T[1:], ends, strict=False):
        column[column >= 0] += start
    owners = np.append(np.arange(num_clips), [other.clip for other in others])
    is_target = np.append(np.ones(num_clips), [other.is_target for other in others]) > 0
    if not is_target.all():
        _remove_context_keys(numbers, is_target, kinds, data.keep_context_together)
    return Keys(
        kinds=kinds,
        ends=ends,
        numbers=numbers,
        owners=owners.astype(np.int32),
        num_clips=num_clips,
        names=pa.concat_arrays([encoded.dictionary for _, encoded in names]),
    )


def groups_of(keys: Keys) -> pa.DictionaryArray:
    """Return the group of each clip; clips that share a key, also through others, have one group.

    Returns:
        (N,), each group by its name: the smallest value among the first keys of its clips.
    """
    parent = array("i", range(keys.ends[-1]))

    def root(key: int) -> int:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    first = keys.first
    for column in keys.numbers.T:
        # A key of a single recording links nothing; most are.
        times = np.bincount(column[column >= 0], minlength=keys.ends[-1])
        is_link = (column >= 0) & (times[column] > 1)
        owners = first[keys.owners[is_link]]
        for key, name in zip(column[is_link].data, owners.data, strict=True):
            parent[root(key)] = root(name)
    roots = np.fromiter(map(root, first.data), np.int32, keys.num_clips)
    found, groups = np.unique(roots, return_inverse=True)
    order = pc.array_sort_indices(keys.names).to_numpy()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    smallest = np.full(len(found), len(order), order.dtype)
    np.minimum.at(smallest, groups, rank[first])
    names = keys.names.take(pa.array(order[smallest]))
    return pa.DictionaryArray.from_arrays(pa.array(groups, pa.int32()), names)


def with_others(
    column: pa.ChunkedArray, name: str, others: Iterable[OtherRecording]
) -> pa.ChunkedArray:
    """Return a column of clips, and below it that of other recordings."""
    more = pa.array([other.columns[name] for other in others], column.type)
    return pa.chunked_array([*column.chunks, more])


def words_of(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the bare words of texts, None for none."""
    parts = pa.table([texts], ["text"]).to_batches(TEXTS_AT_ONCE)
    words = ([bare_words(text) or None for text in part["text"].to_pylist()] for part in parts)
    return pa.chunked_array([pa.array(part, pa.string()) for part in words], pa.string())


def numbered(values: pa.ChunkedArray) -> pa.DictionaryArray:
    """Number the distinct texts, in the order of their first appearance."""
    return values.dictionary_encode().combine_chunks()


def numbers_of(values: pa.DictionaryArray) -> Numbers:
    """Return the number of each value, -1 for None: (n,)."""
    numbers: Numbers = values.indices.fill_null(-1).to_numpy()
    return numbers


def may_repeat(texts: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Return for each text whether another one has its hash, as all equal texts have: (n,)."""
    hashes = np.fromiter(map(hash, texts), np.int64)
    _, places, times = np.unique(hashes, return_inverse=True, return_counts=True)
    repeats: npt.NDArray[np.bool_] = times[places] > 1
    return repeats


def _span_numbers(values: ColumnOf) -> Numbers:
    """Return a number per recording; spans that overlap, also through others, have equal ones."""
    files = numbers_of(numbered(values("audio_sha256")))  # copies and links are one file
    starts = values("start_seconds").fill_null(0.0).to_numpy()
    ends = values("end_seconds").fill_null(math.inf).to_numpy()
    order = np.lexsort((ends, starts, files))
    found = np.empty(len(order), np.int32)
    number, file, first, reach = -1, -1, -math.inf, -math.inf
    rows = zip(*(column[order].data for column in (files, starts, ends)), strict=True)
    for index, (own_file, start, end) in zip(order.data, rows, strict=True):
        if own_file != file:
            file, first, reach = own_file, -math.inf, -math.inf
        if start >= reach and start != first:
            number, first = number + 1, start
        found[index] = number
        reach = max(reach, end)
    return found


def _remove_context_keys(
    numbers: Numbers, is_target: npt.NDArray[np.bool_], kinds: Sequence[Kind], keeps_context: bool
) -> None:
    """Remove the keys of context recordings, except audio that is a target elsewhere."""
    targets = numbers[is_target]
    is_learned = np.isin(numbers, targets[targets >= 0])
    is_audio = np.array([kind == "audio" for kind in kinds])
    is_kept = is_target[:, np.newaxis] | (is_learned & is_audio & keeps_context)
    numbers[~is_kept] = -1
