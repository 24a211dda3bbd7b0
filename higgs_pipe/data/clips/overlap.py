"""Overlap of the splits, found in the finished table of clips, independently of how it was made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.splits import OtherRecording
from higgs_pipe.data.conversation import ClipId, Conversation
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, REFERENCE, TRAIN
from higgs_pipe.data.text import bare_words

# A row of CLIPS.
Clip = Mapping[str, Any]


def overlap(clips: Sequence[Clip], data: DataConfig) -> dict[str, int]:
    """Count what both splits share.

    Args:
        clips: Rows of CLIPS, with their splits and references.
        data: The settings of the split.

    Returns:
        The number of ``audio`` (equal samples, and overlapping segments), ``texts`` and
        ``dialogues`` that are targets in both splits; of ``speakers`` or ``recordings`` too, if
        the split is by these; and of ``context``: targets of one split that are heard in
        conversations of the other. All are 0, except ``texts`` without ``data.keep_text_together``
        and ``context`` without ``data.keep_context_together``.
    """
    references = {clip["clip_id"]: clip for clip in clips if clip["split"] == REFERENCE}
    targets: dict[str, list[Clip]] = {}
    heard: dict[str, list[Clip]] = {}
    for split in (TRAIN, EVAL):
        own = [clip for clip in clips if clip["split"] == split]
        others = [other for clip in own for other in others_of(clip, references)]
        targets[split] = own + [other.columns for other in others if other.is_target]
        heard[split] = [other.columns for other in others if not other.is_target]

    def num_shared(value_of: Callable[[Clip], Any]) -> int:
        in_train, in_eval = ({value_of(clip) for clip in targets[s]} for s in (TRAIN, EVAL))
        return len((in_train & in_eval) - {None, ""})

    found = {
        "audio": _num_shared_audio(targets[TRAIN], targets[EVAL]),
        "texts": num_shared(lambda clip: bare_words(clip["text"])),
        "dialogues": num_shared(lambda clip: clip["dialogue_id"]),
        "context": _num_shared_audio(targets[TRAIN], heard[EVAL])
        + _num_shared_audio(heard[TRAIN], targets[EVAL]),
    }
    if data.split_by == "speaker":
        found["speakers"] = num_shared(lambda clip: clip["speaker"])
    if data.split_by == "recording":
        found["recordings"] = num_shared(lambda clip: clip["audio_sha256"])
    return found


def others_of(clip: Clip, references: Mapping[str, Clip]) -> list[OtherRecording]:
    """Return the recordings in a clip's conversation, other than its own.

    Args:
        clip: A row of CLIPS.
        references: The rows whose split is REFERENCE, by clip id.
    """
    if clip["conversation"] is None:
        return []
    conversation = Conversation.from_json(clip["conversation"], ClipId.of)
    return [
        OtherRecording(references[heard.recording.clip_id], heard.is_target)
        for heard in conversation.utterances()
        if heard.recording.clip_id in references
    ]


def _num_shared_audio(train: Sequence[Clip], held_out: Sequence[Clip]) -> int:
    """Return the number of equal samples, and of overlapping segments, in both splits."""
    train_hashes, held_out_hashes = ({clip["pcm_sha256"] for clip in s} for s in (train, held_out))
    return len(train_hashes & held_out_hashes) + _num_overlapping(train, held_out)


def _num_overlapping(train: Sequence[Clip], held_out: Sequence[Clip]) -> int:
    """Return the number of segments that begin within a segment of the other split."""
    spans = sorted(
        (clip["audio_sha256"], *Span.in_file(clip).bounds_seconds, side)
        for side, clips in enumerate((train, held_out))
        for clip in clips
    )
    num_overlapping = 0
    reach = [("", 0.0), ("", 0.0)]  # the farthest end so far, by side
    for path, start, end, side in spans:
        if (path, start) < reach[1 - side]:
            num_overlapping += 1
        reach[side] = max(reach[side], (path, end))
    return num_overlapping
