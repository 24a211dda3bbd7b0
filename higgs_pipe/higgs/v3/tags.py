"""The control tags of Higgs TTS 3: tokens such as ``<|emotion:anger|>`` inside a text.

Names are those of the checkpoint's tokenizer and of the SGLang-Omni cookbook, which also says where
they go: tags of delivery stand before the first word and hold for the whole text, a pause stands
where it falls, a sound before its written form (``<|sfx:laughter|>Haha``). A tag that the tokenizer
does not have is ordinary text, and the model reads it aloud.
"""

import re
from difflib import SequenceMatcher

NAME = "Higgs TTS 3"

# Tokens that make a prompt, or that the tokenizer has from the model that it began as.
PROMPT_TOKENS = frozenset(
    f"<|{name}|>"
    for name in (
        "tts", "text", "text_end", "audio", "audio_end", "eoc", "ref_text", "ref_audio",
        "chatml", "im_start", "im_end", "endoftext",
    )
)  # fmt: skip

# By category, in the order of the tokens' ids.
EMOTIONS = (
    "elation", "amusement", "enthusiasm", "determination", "pride", "contentment", "affection",
    "relief", "contemplation", "confusion", "surprise", "awe", "longing", "arousal", "anger",
    "fear", "disgust", "bitterness", "sadness", "shame", "helplessness",
)  # fmt: skip
ENVIRONMENTS = ("music", "noise")  # in the tokenizer; documented nowhere
STYLES = ("singing", "shouting", "whispering")
SOUNDS = (
    "cough", "laughter", "crying", "screaming", "burping", "humming", "sigh", "sniff", "sneeze",
)  # fmt: skip
SPEEDS_AND_PITCHES = (
    "speed_very_slow", "speed_slow", "speed_fast", "speed_very_fast", "pitch_low", "pitch_high",
)  # fmt: skip
PAUSES = ("pause", "long_pause")
EXPRESSIVENESS = ("expressive_high", "expressive_low")
CHATML = "<|chatml|>"


def _named(category: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"<|{category}:{value}|>" for value in values)


# As their ids follow each other in the tokenizer, among them one that is no tag.
TOKENS = (
    *_named("emotion", EMOTIONS), *_named("env", ENVIRONMENTS), *_named("style", STYLES),
    *_named("sfx", SOUNDS), *_named("prosody", SPEEDS_AND_PITCHES), *_named("prosody", PAUSES),
    CHATML, *_named("prosody", EXPRESSIVENESS),
)  # fmt: skip
TAGS = frozenset(TOKENS) - {CHATML}
# They stand where they fall; all others hold for a whole text and stand before its first word.
PLACED_TAGS = frozenset(
    (*_named("env", ENVIRONMENTS), *_named("sfx", SOUNDS), *_named("prosody", PAUSES))
)
DELIVERY_TAGS = TAGS - PLACED_TAGS

SAME_CATEGORY = 0.25  # what the right category weighs beside the spelling of the value, up to 1


def nearest_tag(written: str) -> str:
    """Return the tag that somebody may have meant, by its spelling.

    Args:
        written: Any text, such as ``<|emotion:angry|>``, ``[laugh]`` or ``<SE>[Cough]</SE>``.
    """
    words = re.sub(r"<[^|<>]*>", "", written).casefold()  # without <SE>
    category, _, value = words.strip("<|>[] ").replace(" ", "_").rpartition(":")

    def closeness(tag: str) -> tuple[float, str]:
        of_tag, named = tag.strip("<|>").split(":")
        in_category = SAME_CATEGORY if of_tag == category else 0.0
        return SequenceMatcher(None, value, named).ratio() + in_category, tag

    return max(TAGS, key=closeness)
