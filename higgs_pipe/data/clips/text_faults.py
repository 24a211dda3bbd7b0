"""Faults in a row's texts: empty ones, and marks that the prompts of a base model cannot have."""

from collections.abc import Iterator

from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.conversation import SCENE, SYSTEM
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.data.text import find_control_token, is_blank


def text_fault(row: Row, rules: PromptRules) -> Fault | None:
    """Return the first fault of the texts of a row, those of its conversation first.

    Args:
        row: The row.
        rules: Those of a family of base models.
    """
    return next(filter(None, _faults(row, rules)), None)


def _faults(row: Row, rules: PromptRules) -> Iterator[Fault | None]:
    turns = row.conversation.turns if row.conversation else ()
    for number, turn in enumerate(turns, start=1):
        place = f"turn {number}"
        yield rules.text_fault(place, turn.texts)
        if is_blank(turn.text) and (turn.texts or not turn.recordings):
            yield Fault(Reason.TEXT_EMPTY, f"the text of {place} is empty")
        if turn.role == SYSTEM:
            yield rules.system_message_fault(place, turn.text)
        if turn.role == SCENE:
            yield rules.scene_fault(place)
    for key in ("text", "scene", "ref_text", "speaker"):
        text = getattr(row, key)
        if text is not None and is_blank(text):
            yield Fault(Reason.TEXT_EMPTY, f"`{key}` is empty")
    for key in ("text", "scene", "ref_text"):
        text = getattr(row, key)
        if text is not None:
            yield rules.text_fault(f"`{key}`", [text])
    if row.scene is not None:
        yield rules.scene_fault("`scene`")
    if row.speaker is not None and (token := find_control_token([row.speaker])):
        yield Fault(Reason.CONTROL_TOKEN, f"`speaker` contains {token:.60}")
