"""Pre-flight checks of the data: frames, labels and ids of the packed rows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from higgs_pipe.higgs.batch import PackedRow, is_placeholder
from higgs_pipe.higgs.codes import IGNORED, delay, num_delayed_frames, target_labels, undelay
from higgs_pipe.higgs.family import family_of_model
from higgs_pipe.higgs.shape import BaseShape

REPACK = "run: snakemake --forcerun pack_rows"
NUM_PROBLEMS_SHOWN = 3

Array = npt.NDArray[Any]
Status = Literal["passed", "failed", "no evidence"]


@dataclass(frozen=True)
class Check:
    """The findings of one check; if it failed, also their meaning and the next step."""

    name: str
    status: Status
    found: str


def samples_of(row: PackedRow, config: BaseShape) -> list[PackedRow]:
    """Split a packed row into its samples, each a row of its own.

    Each sample gets as many frames as it has placeholders; the last sample gets the rest.
    """
    is_audio = is_placeholder(row.input_ids, config)
    ends = np.cumsum(row.sample_lengths)
    frame_ends = np.cumsum(is_audio)[ends - 1]
    frame_ends[-1] = len(row.audio_input_ids)
    positions = np.split(np.arange(len(row.input_ids)), ends[:-1])
    frames = np.split(np.arange(len(row.audio_input_ids)), frame_ends[:-1])
    return [
        replace(
            row,
            input_ids=row.input_ids[p],
            labels=row.labels[p],
            audio_input_ids=row.audio_input_ids[f],
            audio_labels=row.audio_labels[f],
            sample_ids=(sample_id,),
            sample_lengths=np.array([len(p)], row.sample_lengths.dtype),
        )
        for sample_id, p, f in zip(row.sample_ids, positions, frames, strict=True)
    ]


def audio_turns(sample: PackedRow, config: BaseShape) -> list[slice]:
    """Find the positions of each unbroken run of placeholders."""
    is_audio = is_placeholder(sample.input_ids, config).astype(np.int8)
    edges = np.flatnonzero(np.diff(is_audio, prepend=0, append=0))
    return [slice(*edge) for edge in edges.reshape(-1, 2).tolist()]


def _turn_frames(sample: PackedRow, config: BaseShape) -> list[slice]:
    """Find the frames of each audio turn, by its placeholders."""
    lengths = [turn.stop - turn.start for turn in audio_turns(sample, config)]
    ends = np.cumsum([0, *lengths]).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def with_text_of(sample: PackedRow, other: PackedRow, config: BaseShape) -> PackedRow:
    """Put a sample's audio turns into the text of another with equally many turns."""
    ids, labels, other_start = [], [], 0
    turns = audio_turns(sample, config)
    for turn, other_turn in zip(turns, audio_turns(other, config), strict=True):
        ids += [other.input_ids[other_start : other_turn.start], sample.input_ids[turn]]
        labels += [other.labels[other_start : other_turn.start], sample.labels[turn]]
        other_start = other_turn.stop
    input_ids = np.concatenate([*ids, other.input_ids[other_start:]])
    return replace(
        sample,
        input_ids=input_ids,
        labels=np.concatenate([*labels, other.labels[other_start:]]),
        sample_lengths=np.array([len(input_ids)], sample.sample_lengths.dtype),
    )


def check_index_ranges(rows: Sequence[PackedRow], native: Any) -> Check:
    """Check that every id of the rows has an embedding and an output."""
    family = family_of_model(native)
    config = family.shape_of(native.config)
    num_text, num_audio = family.num_ids(native)
    problems = []
    for row in rows:
        name = row.sample_ids[0]
        if row.audio_input_ids.shape[1] != config.num_codebooks:
            problems.append(f"row of {name}: {row.audio_input_ids.shape[1]} codebooks")
        for what, ids, size in (
            ("text id", row.input_ids[~is_placeholder(row.input_ids, config)], num_text),
            ("text label", row.labels[row.labels != IGNORED], num_text),
            ("audio id", row.audio_input_ids, num_audio),
            ("audio label", row.audio_labels[row.audio_labels != IGNORED], num_audio),
        ):
            if ids.size and not 0 <= ids.min() <= ids.max() < size:
                problems.append(f"row of {name}: {what}s from {ids.min()} to {ids.max()}")
    return verdict(
        "index range",
        problems,
        f"{len(rows)} rows: text ids below {num_text:,}, audio ids below {num_audio:,}",
        f"the base model has {num_text:,} text ids and {config.num_codebooks} codebooks of "
        f"{num_audio:,}; these rows were packed for another base_model. {REPACK}",
    )


def check_placeholders(samples: Sequence[PackedRow], config: BaseShape) -> Check:
    """Check that each audio turn has the delayed frames of one whole recording, BOS to EOS."""
    problems, num_frames = [], 0
    for sample in samples:
        for turn, frames in zip(
            audio_turns(sample, config), _turn_frames(sample, config), strict=True
        ):
            num_placeholders = turn.stop - turn.start
            found = sample.audio_input_ids[frames]
            num_frames += len(found)
            if not _is_delayed(found, config):
                problems.append(
                    f"{sample.sample_ids[0]}: the {num_placeholders} placeholders from position "
                    f"{turn.start} on do not have the frames of one recording"
                )
        if len(sample.audio_input_ids) != is_placeholder(sample.input_ids, config).sum():
            problems.append(
                f"{sample.sample_ids[0]}: {is_placeholder(sample.input_ids, config).sum()} "
                f"placeholders for {len(sample.audio_input_ids)} frames"
            )
    return verdict(
        "audio placeholders",
        problems,
        f"{num_frames:,} in {len(samples):,} samples, each with its frame",
        "A recording starts with stream BOS, ends with stream EOS, and codebook k is k frames "
        f"late. Here frames are missing or belong to another sample. {REPACK}",
    )


def _is_delayed(frames: Array, config: BaseShape) -> bool:
    margin = config.num_margin_frames
    if len(frames) <= num_delayed_frames(0, frames.shape[1], margin):
        return False
    codes = undelay(frames, margin)
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    return np.array_equal(delay([codes], bos, eos, margin), frames)


def check_labels(samples: Sequence[PackedRow], config: BaseShape) -> Check:
    """Check that labels equal their tokens or codes, complete in targets, absent in references."""
    problems = []
    num_targets = num_text = num_codes = num_eos = 0
    for sample in samples:
        targets = [
            frames
            for frames in _turn_frames(sample, config)
            if (sample.audio_labels[frames] != IGNORED).any()
        ]
        eos_labels = int((sample.audio_labels == config.audio_stream_eos_id).sum())
        problem = _label_problem(sample, targets, config)
        if problem:
            problems.append(f"{sample.sample_ids[0]}: {problem}")
        num_targets += len(targets)
        num_text += int((sample.labels != IGNORED).sum())
        num_codes += int((sample.audio_labels != IGNORED).sum()) - eos_labels
        num_eos += eos_labels
    return verdict(
        "labels",
        problems,
        f"{len(samples):,} samples with {num_targets:,} targets: "
        + (f"{num_text:,} text, " if config.has_text_loss else "")
        + f"{num_codes:,} code and {num_eos:,} EOS labels, {config.num_stop_labels} EOS labels per "
        "target",
        "Such labels do not teach the next token of the target. " + REPACK,
    )


def _label_problem(sample: PackedRow, targets: Sequence[slice], config: BaseShape) -> str | None:
    text, audio = sample.labels != IGNORED, sample.audio_labels != IGNORED
    if not targets:
        return "no audio label"
    if text.any() != config.has_text_loss:
        return "a text label" if text.any() else "no text label"
    if (sample.labels != sample.input_ids)[text].any():
        return "text labels differ from the tokens at their positions"
    if (text & is_placeholder(sample.input_ids, config)).any():
        return "a placeholder has a text label"
    if (sample.audio_labels != sample.audio_input_ids)[audio].any():
        return "audio labels differ from the codes at their positions: one of the two is shifted"
    for frames in targets:
        labels = sample.audio_labels[frames]
        num_eos = int((labels == config.audio_stream_eos_id).sum())
        if num_eos != config.num_stop_labels:
            return f"{num_eos} EOS labels in a target, which needs {config.num_stop_labels}"
        margin = config.num_margin_frames
        if len(labels) <= num_delayed_frames(0, config.num_codebooks, margin):
            return f"{len(labels)} frames in a target, too few for its BOS, delay and EOS"
        codes = undelay(sample.audio_input_ids[frames], margin)
        expected = target_labels(
            [codes],
            config.audio_stream_eos_id,
            margin=margin,
            num_eos=config.num_eos_labels,
        )
        if not np.array_equal(labels, expected):
            return "codes of the target have no label, or stream BOS has one"
    return None


def verdict(name: str, problems: Sequence[str], passed: str, failed: str) -> Check:
    """Return a check that failed if there are problems; it shows the first 3."""
    if not problems:
        return Check(name, "passed", passed)
    shown = "; ".join(problems[:NUM_PROBLEMS_SHOWN])
    num_more = len(problems) - NUM_PROBLEMS_SHOWN
    more = f"; and {num_more:,} more" if num_more > 0 else ""
    return Check(name, "failed", f"{shown}{more}. {failed}")
