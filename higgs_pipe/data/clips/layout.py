"""Conversations whose layout no prompt at inference has."""

from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.conversation import ASSISTANT, USER, Conversation
from higgs_pipe.data.spans import Span
from higgs_pipe.data.text import is_blank


def layout_fault(conversation: Conversation[Span]) -> Fault | None:
    """Return why a conversation is unlike any prompt at inference, or None.

    At inference a turn has text, or is an assistant turn with one recording of the text of the user
    turn before it, and the last turn is an assistant's.
    """
    for number, turn in enumerate(conversation.turns, start=1):
        num_recordings = len(turn.recordings)
        if num_recordings and turn.role != ASSISTANT:
            fact = f"turn {number} ({turn.role}) holds a recording"
        elif num_recordings > 1:
            fact = f"turn {number} holds {num_recordings} recordings"
        elif num_recordings and not is_blank(turn.text):
            fact = f"turn {number} has another text with its recording than the user turn before it"
        else:
            continue
        return Fault(Reason.CONVERSATION_LAYOUT, fact)
    if conversation.turns[-1].role == USER:
        fact = f"turn {len(conversation.turns)} is a user's, without an answer"
        return Fault(Reason.CONVERSATION_LAYOUT, fact)
    for heard in conversation.utterances():
        if is_blank(heard.text):
            fact = f"the recording of turn {heard.turn_number} has no text"
            return Fault(Reason.TEXT_EMPTY, fact)
    return None
