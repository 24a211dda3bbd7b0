"""Clips to listen to: a random sample, outliers of each speaker, and rejected rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import soxr

from higgs_pipe.data.audio import AudioError, decode
from higgs_pipe.data.channels import to_mono
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.data.units import in_words, with_unit
from higgs_pipe.reporting.audio import Player, make_player

PLAYER_RATE_HZ = 24_000  # Opus has no 44,100 Hz
MAX_PLAYED_SECONDS = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class HeardClip:
    """A clip of the page; ``player`` is None if the recording cannot be played."""

    clip_id: str
    text: str
    speaker: str | None
    seconds: float | None
    player: Player | None
    heading: str  # why it is listed, in a word or two
    fact: str


def in_splits(clips: pa.Table) -> pa.Table:
    """Return the clips that are trained on or held out, without those used only as references."""
    return clips.filter(pc.is_in(clips["split"], pa.array([TRAIN, EVAL])))


def random_sample(clips: pa.Table, number: int) -> list[HeardClip]:
    """Return ``number`` clips, drawn by their ids: the same in every run."""
    ids = clips["clip_id"].to_pylist()
    drawn = sorted(range(len(ids)), key=lambda index: unit_hash("listen", ids[index]))[:number]
    return [
        _of_clip(clip, "", "")
        for clip in clips.take(pa.array(sorted(drawn), pa.int64())).to_pylist()
    ]


def unlike_their_speaker(
    clips: pa.Table, validation: ValidationSummary, number: int
) -> list[HeardClip]:
    """Return clips whose measure is far from the median of their speaker.

    The farthest clip of each speaker and measure comes first, then the second farthest, and so on.
    """
    groups = [
        [
            (
                clip_id,
                in_words(measure),
                f"{with_unit(measure, value)}; median of {speaker}: "
                f"{with_unit(measure, found.median)}",
            )
            for clip_id, value in found.clips.items()
        ]
        for speaker, by_measure in validation.outliers.items()
        for measure, found in by_measure.items()
    ]
    picked = _in_turn(groups)[:number]
    table = clips.filter(pc.is_in(clips["clip_id"], pa.array([p[0] for p in picked], pa.string())))
    by_id = {clip["clip_id"]: clip for clip in table.to_pylist()}
    return [_of_clip(by_id[clip_id], measure, fact) for clip_id, measure, fact in picked]


def examples_of_rejected(
    rejections: Sequence[Mapping[str, Any]], rows: Iterable[Row], number: int
) -> list[HeardClip]:
    """Return rejected rows; the first of each reason come first, then the second ones, and so on.

    Args:
        rejections: Rows of REJECTED.
        rows: The same rows from the manifests.
        number: Number of rows.
    """
    by_id = {row.clip_id: row for row in rows}
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for rejection in rejections:
        by_reason.setdefault(rejection["reason"], []).append(rejection)
    return [
        HeardClip(
            clip_id=rejection["clip_id"],
            text=by_id[rejection["clip_id"]].text,
            speaker=rejection["speaker"],
            seconds=rejection["duration_seconds"],
            player=_player(by_id[rejection["clip_id"]].span, None),
            heading=rejection["reason"],
            fact=rejection["message"],
        )
        for rejection in _in_turn(by_reason.values())[:number]
    ]


def _in_turn(groups: Iterable[Sequence[T]]) -> list[T]:
    """Return the first of each group, then the second ones, and so on."""
    ranked = [(rank, item) for group in groups for rank, item in enumerate(group)]
    return [item for _, item in sorted(ranked, key=itemgetter(0))]


def _of_clip(clip: Mapping[str, Any], heading: str, fact: str) -> HeardClip:
    return HeardClip(
        clip_id=clip["clip_id"],
        text=clip["text"],
        speaker=clip["speaker"],
        seconds=clip["duration_seconds"],
        player=_player(Span.of(clip), clip["channel"]),
        heading=heading,
        fact=fact,
    )


def _player(span: Span, channel: int | None) -> Player | None:
    """Return the player of at most MAX_PLAYED_SECONDS, or None if the file cannot be read."""
    start, end = span.bounds_seconds
    until = min(end, start + MAX_PLAYED_SECONDS)
    path = Path(span.audio_path)
    try:
        audio = decode(path, span.start_seconds, until)
    except AudioError:  # it may be shorter
        try:
            audio = decode(path, span.start_seconds, span.end_seconds)
        except AudioError:
            return None  # the reason stands beside it
    mono = to_mono(audio.samples, channel)[:, 0]
    heard = soxr.resample(mono, audio.sample_rate_hz, PLAYER_RATE_HZ)
    num_samples = round(MAX_PLAYED_SECONDS * PLAYER_RATE_HZ)
    return make_player(heard[:num_samples], PLAYER_RATE_HZ, None)
