"""Clips that adapters are trained on, and rows of another manifest that overlap with them.

Such rows of ``eval.other_manifest`` are rejected: what was trained on cannot have been forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.candidates import Candidate, Clip
from higgs_pipe.data.clips.overlap import others_of
from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.clips.splits import Key, OtherRecording, keys_of
from higgs_pipe.data.specs import CLIPS, REFERENCE, TRAIN
from higgs_pipe.data.tables import open_table

# Names of dialogues and speakers may mean something else in another manifest.
COMPARED = ("audio", "text", "recording")
COLUMNS = (
    *("clip_id", "manifest", "line", "text", "speaker", "dialogue_id", "split"),
    *("audio_path", "start_seconds", "end_seconds", "pcm_sha256", "audio_sha256"),
    *("reference_id", "conversation"),
)


@dataclass(frozen=True)
class TrainedClips:
    """The training split: rows of CLIPS, and the other recordings that each is trained with."""

    clips: tuple[Clip, ...]
    others: tuple[Sequence[OtherRecording], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``clips.parquet`` of the manifest that adapters are trained on."""
        rows = open_table(path, CLIPS)[0].read(columns=list(COLUMNS)).to_pylist()
        references = {row["clip_id"]: row for row in rows if row["split"] == REFERENCE}
        trained = [row for row in rows if row["split"] == TRAIN]
        return cls(tuple(trained), tuple(_heard(clip, references) for clip in trained))

    def faults(self, candidates: Sequence[Candidate], data: DataConfig) -> dict[str, Fault]:
        """Return the rows that have audio or text of the training split, by clip id.

        Args:
            candidates: Sound rows of another manifest.
            data: The settings of the split: texts count with ``keep_text_together``, other segments
                of a file with ``split_by: recording``.
        """
        clips = [*self.clips, *(candidate.clip for candidate in candidates)]
        others = [*self.others, *(candidate.others for candidate in candidates)]
        keys = keys_of(clips, data, others)
        num_trained = len(self.clips)
        trained: dict[Key, Clip] = {}
        for clip, own in zip(self.clips, keys[:num_trained], strict=True):
            for key in own:
                trained.setdefault(key, clip)
        faults = {}
        for candidate, own in zip(candidates, keys[num_trained:], strict=True):
            shared = next((key for key in own if key.kind in COMPARED and key in trained), None)
            if shared is not None:
                place = f"{trained[shared]['manifest']}:{trained[shared]['line']}"
                fact = f"training has the same {shared.kind}, at {place}"
                faults[candidate.row.clip_id] = Fault(Reason.ALSO_IN_TRAINING, fact)
        return faults


def _heard(clip: Clip, references: Mapping[str, Clip]) -> list[OtherRecording]:
    """Return the other recordings of a trained clip, references too, as if they were targets."""
    heard = [other.columns for other in others_of(clip, references)]
    if clip["reference_id"] is not None:
        heard.append(references[clip["reference_id"]])
    return [OtherRecording(columns, is_target=True) for columns in heard]
