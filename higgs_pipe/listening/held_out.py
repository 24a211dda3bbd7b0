"""Held-out samples: the text of each target, and its recordings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from higgs_pipe.data.conversation import ClipId, Conversation
from higgs_pipe.data.specs import CLIPS, EVAL, REFERENCE
from higgs_pipe.data.tables import read_table
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.generation import RecordedSample, recorded_samples

SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]\s*")
COLUMNS = (
    "clip_id", "audio_path", "start_seconds", "end_seconds", "channel", "duration_seconds",
    "text", "speaker", "language", "dialogue_id", "turn", "conversation", "split",
)  # fmt: skip

Clip = Mapping[str, Any]  # COLUMNS of a row of CLIPS


@dataclass(frozen=True, eq=False)
class HeldOutSample:
    """A packed sample, the clip that it is named after, and the text of its first target."""

    sample: RecordedSample
    clip: Clip
    task: str  # speech, cloning, dialogue, dialogue_cloning or conversation
    text: str  # a line per turn, which begins with [SPEAKER0], ... in a dialogue
    recordings: tuple[Clip, ...]  # of the target, in time

    @property
    def words(self) -> str:
        """The text without the speakers' tags."""
        return SPEAKER_TAG.sub("", self.text)

    @property
    def has_one_voice(self) -> bool:
        """Return whether at most one speaker is named in the text."""
        return len(set(SPEAKER_TAG.findall(self.text))) <= 1

    @property
    def speakers(self) -> str | None:
        """The speakers of the recordings, joined by commas; None: unknown."""
        names = dict.fromkeys(clip["speaker"] for clip in self.recordings)
        return ", ".join(name for name in names if name is not None) or None

    @property
    def duration_seconds(self) -> float:
        """Length of the recordings."""
        return float(sum(clip["duration_seconds"] for clip in self.recordings))


class HeldOutClips:
    """The clips of the held-out split and their references, by id and by dialogue."""

    def __init__(self, rows: Sequence[Clip]) -> None:
        self._by_id = {row["clip_id"]: row for row in rows}
        self._turns: dict[str, list[Clip]] = {}
        for row in rows:
            if row["dialogue_id"] is not None:
                self._turns.setdefault(row["dialogue_id"], []).append(row)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``clips.parquet``."""
        table = read_table(path, CLIPS, COLUMNS)
        return cls([row for row in table.to_pylist() if row["split"] in (EVAL, REFERENCE)])

    def sample(self, packed: RecordedSample, frame_rate_hz: float) -> HeldOutSample:
        """Return a packed sample with its clip and text."""
        clip = self._by_id[packed.sample_id]
        task = task_of(packed, clip, frame_rate_hz)
        text: str = clip["text"]
        recordings: tuple[Clip, ...] = (clip,)
        if task in ("dialogue", "dialogue_cloning"):
            recordings = tuple(sorted(self._turns[clip["dialogue_id"]], key=lambda c: c["turn"]))
            text = _dialogue_text(recordings)
        elif task == "conversation":
            text, recordings = self._first_target(clip)
        return HeldOutSample(packed, clip, task, text, recordings)

    def _first_target(self, clip: Clip) -> tuple[str, tuple[Clip, ...]]:
        conversation = Conversation.from_json(clip["conversation"], ClipId.of)
        first = next(heard for heard in conversation.utterances() if heard.is_target)
        return first.text, (self._by_id[first.recording.clip_id],)


def _dialogue_text(turns: Sequence[Clip]) -> str:
    """Render the turns as packing does: speakers are numbered by first appearance."""
    numbers: dict[str, int] = {}
    return "\n".join(
        f"[SPEAKER{numbers.setdefault(turn['speaker'], len(numbers))}] {turn['text']}"
        for turn in turns
    )


def task_of(sample: RecordedSample, clip: Clip, frame_rate_hz: float) -> str:
    """Name the kind of a packed sample: speech, cloning, dialogue, ..., or conversation.

    A target that is longer than the clip that it is named after is a whole dialogue.
    """
    if clip["conversation"] is not None:
        return "conversation"
    max_frames = np.ceil(clip["duration_seconds"] * frame_rate_hz) + 1
    is_dialogue = clip["dialogue_id"] is not None and len(sample.codes) > max_frames
    has_reference = len(sample.prompt.audio_input_ids) > 0
    if is_dialogue:
        return "dialogue_cloning" if has_reference else "dialogue"
    return "cloning" if has_reference else "speech"


def read_samples(rows: PackedRows, clips: HeldOutClips, config: Any) -> list[HeldOutSample]:
    """Read the held-out samples, in the order of their ids.

    Args:
        rows: The packed held-out rows.
        clips: The clips that the rows are made of.
        config: The model's.
    """
    rate_hz = rows.codec_info.frame_rate_hz
    found = [
        clips.sample(packed, rate_hz)
        for index in range(len(rows))
        for packed in recorded_samples(rows[index], config)
    ]
    return sorted(found, key=lambda each: each.sample.sample_id)
