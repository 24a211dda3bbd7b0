"""Overlap of the splits, found in the finished table of clips, independently of how it was made."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.keys import (
    ColumnOf,
    Numbers,
    OtherRecording,
    numbered,
    numbers_of,
    with_others,
    words_of,
)
from higgs_pipe.data.conversation import ClipId, Conversation
from higgs_pipe.data.specs import EVAL, REFERENCE, TRAIN
from higgs_pipe.data.table_rows import TableRows

Flags = npt.NDArray[np.bool_]
REFERENCE_COLUMNS = (
    "clip_id", "start_seconds", "end_seconds", "pcm_sha256", "audio_sha256",
    "text", "speaker", "dialogue_id",
)  # fmt: skip


def overlap(column_of: ColumnOf, data: DataConfig) -> dict[str, int]:
    """Count what both splits share.

    Args:
        column_of: Returns a column of CLIPS, with splits and references, by its name.
        data: The settings of the split.

    Returns:
        The number of ``audio`` (equal samples, and overlapping segments), ``texts`` and
        ``dialogues`` that are targets in both splits; of ``speakers`` or ``recordings`` too, if
        the split is by these; and of ``context``: targets of one split that are utterance in
        conversations of the other. All are 0, except ``texts`` without ``data.keep_text_together``
        and ``context`` without ``data.keep_context_together``.
    """
    others = list(others_of(column_of))
    splits = column_of("split")
    owners = pa.array([other.clip for other in others], pa.int64())
    splits = pa.chunked_array([*splits.chunks, *splits.take(owners).chunks])
    in_train, in_eval = (pc.equal(splits, split).to_numpy() for split in (TRAIN, EVAL))
    num_clips = len(splits) - len(others)
    is_target = np.array([True] * num_clips + [other.is_target for other in others])

    def values(name: str) -> pa.ChunkedArray:
        return with_others(column_of(name), name, others)

    def num_shared(texts: pa.ChunkedArray) -> int:
        return _num_shared(numbers_of(numbered(texts)), in_train & is_target, in_eval & is_target)

    samples, files = (numbers_of(numbered(values(n))) for n in ("pcm_sha256", "audio_sha256"))
    starts = values("start_seconds").fill_null(0.0).to_numpy()
    bounds = np.stack([starts, values("end_seconds").fill_null(math.inf).to_numpy()])

    def num_shared_audio(train: Flags, held_out: Flags) -> int:
        num_overlapping = _num_overlapping(files, bounds, train, held_out)
        return _num_shared(samples, train, held_out) + num_overlapping

    found = {
        "audio": num_shared_audio(in_train & is_target, in_eval & is_target),
        "texts": num_shared(words_of(values("text"))),
        "dialogues": num_shared(values("dialogue_id")),
        "context": num_shared_audio(in_train & is_target, in_eval & ~is_target)
        + num_shared_audio(in_train & ~is_target, in_eval & is_target),
    }
    if data.split_by == "speaker":
        found["speakers"] = num_shared(values("speaker"))
    if data.split_by == "recording":
        found["recordings"] = num_shared(values("audio_sha256"))
    return found


def references_of(column_of: ColumnOf) -> dict[str, Mapping[str, Any]]:
    """Return the rows of CLIPS whose split is REFERENCE, by clip id."""
    is_reference = pc.equal(column_of("split"), REFERENCE)
    columns = {name: column_of(name).filter(is_reference) for name in REFERENCE_COLUMNS}
    return {row["clip_id"]: row for row in TableRows(pa.table(columns))}


def others_of(column_of: ColumnOf) -> Iterator[OtherRecording]:
    """Yield the recordings in the conversations of clips, other than their own."""
    conversations = column_of("conversation")
    if conversations.null_count == len(conversations):
        return
    references = references_of(column_of)
    for place in np.flatnonzero(conversations.is_valid()).tolist():
        text = conversations[place].as_py()
        for utterance in Conversation.from_json(text, ClipId.of).utterances():
            if utterance.recording.clip_id in references:
                columns = references[utterance.recording.clip_id]
                yield OtherRecording(place, columns, utterance.is_target)


def _num_shared(numbers: Numbers, train: Flags, held_out: Flags) -> int:
    """Return how many numbers are in both splits; -1 is none."""
    shared = np.intersect1d(numbers[train], numbers[held_out])
    return int(np.count_nonzero(shared >= 0))


def _num_overlapping(
    files: Numbers, bounds: npt.NDArray[np.float64], train: Flags, held_out: Flags
) -> int:
    """Return the number of segments that begin within a segment of the other split."""
    chosen = np.concatenate([np.flatnonzero(train), np.flatnonzero(held_out)])
    sides = np.repeat([0, 1], [train.sum(), held_out.sum()])
    starts, ends = bounds[:, chosen]
    order = np.lexsort((sides, ends, starts, files[chosen]))
    num_overlapping = 0
    reach = [(-1, 0.0), (-1, 0.0)]  # the farthest end so far, by side
    columns = (column[order].data for column in (files[chosen], starts, ends, sides))
    for file, start, end, side in zip(*columns, strict=True):
        if (file, start) < reach[1 - side]:
            num_overlapping += 1
        reach[side] = max(reach[side], (file, end))
    return num_overlapping
