"""The conversation of a planned sample: scene, references, target."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from higgs_pipe.data.conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    ClipId,
    Conversation,
    Turn,
    speech_conversation,
)
from higgs_pipe.data.packing.clips import ClipRow, Clips
from higgs_pipe.data.packing.planner import CONVERSATION, SamplePlan


class Recording(NamedTuple):
    """Clips joined in time, each by its row in the table of clips."""

    clips: tuple[int, ...]


def conversation_of(
    plan: SamplePlan,
    rows: Mapping[int, ClipRow],
    clips: Clips,
    system_prompt: str,
    clean: Callable[[str], str],
) -> Conversation[Recording]:
    """Return the conversation of a sample, the scene and the references before its target.

    A dialogue is one target: what each speaker says on a line of its own, speakers numbered by
    first appearance, and the turns' recordings joined in time.

    Args:
        plan: The sample.
        rows: The texts of its clips, from :meth:`Clips.rows`.
        clips: The table of clips.
        system_prompt: The system message; a conversation may have its own.
        clean: Cleans the texts that targets speak, and not the transcripts of references.
    """
    if plan.drawn_task == CONVERSATION:
        system: Turn[Recording] = Turn(SYSTEM, (system_prompt,))
        written = _conversation(rows[plan.targets[0]], clips, clean)
        has_system = written.turns[0].role == SYSTEM
        return written if has_system else Conversation((system, *written.turns))
    speakers = dict.fromkeys(int(clips.speaker[clip]) for clip in plan.targets)
    tags = dict.fromkeys(speakers, "")
    if plan.is_dialogue:
        tags = {speaker: f"[SPEAKER{number}] " for number, speaker in enumerate(speakers)}
    scenes = dict.fromkeys(s for clip in plan.targets if (s := rows[clip]["scene"]))
    lines = [tags[int(clips.speaker[clip])] + rows[clip]["text"] for clip in plan.targets]
    return speech_conversation(
        system_prompt,
        scenes if plan.has_scene else (),
        [(tags[s] + rows[clip]["text"], Recording((clip,))) for s, clip in plan.references],
        "\n".join(lines),
        Recording(plan.targets),
        clean,
    )


def _conversation(
    row: ClipRow, clips: Clips, clean: Callable[[str], str]
) -> Conversation[Recording]:
    """The row's own conversation; its recordings are the row's clip and references."""

    def joined(named: ClipId) -> Recording:
        is_own = named.clip_id == row["clip_id"]
        return Recording((row["clip"] if is_own else clips.by_id(named.clip_id),))

    written = Conversation.from_json(row["conversation"], ClipId.of).map_recordings(joined)
    turns: list[Turn[Recording]] = []
    answered_by_target = False
    for turn in reversed(written.turns):
        if turn.role == ASSISTANT:
            answered_by_target = turn.is_target
        is_cleaned = turn.role == USER and answered_by_target
        turns.insert(0, turn.map_texts(clean) if is_cleaned else turn)
    return Conversation(tuple(turns))
