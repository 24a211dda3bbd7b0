"""Tokens of transcripts, and of the prompt around them."""

from collections.abc import Sequence
from dataclasses import dataclass

from higgs_pipe.data.conversation import speech_conversation
from higgs_pipe.data.packing.turns import Recording
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.prompts import PromptRenderer, RenderError

# Used if the tokenizer cannot be read. Llama 3's makes about one token of 4 bytes of UTF-8 in
# English, and similar ones elsewhere; headers and marks surround the messages of a sample.
TEXT_BYTES_PER_TOKEN = 4.0
SAMPLE_NUM_TOKENS = 20
REFERENCE_NUM_TOKENS = 13
NUM_TEXTS_PER_BATCH = 10_000


@dataclass(frozen=True)
class TextTokens:
    """Numbers of tokens: in all texts, around each sample, around each reference."""

    texts: int
    per_sample: float
    per_reference: float


def count_text_tokens(
    texts: Sequence[str], system_prompt: str, renderer: PromptRenderer | None
) -> TextTokens:
    """Count the tokens of the texts and of the prompt around them.

    Args:
        texts: The transcripts of the clips.
        system_prompt: The system message of each sample.
        renderer: The renderer of the base; without it the numbers are rough.
    """
    if renderer is None:
        prompt = len(system_prompt.encode()) / TEXT_BYTES_PER_TOKEN
        num_bytes = sum(len(text.encode()) for text in texts)
        return TextTokens(
            texts=round(num_bytes / TEXT_BYTES_PER_TOKEN),
            per_sample=SAMPLE_NUM_TOKENS + prompt,
            per_reference=REFERENCE_NUM_TOKENS,
        )
    num_tokens = 0
    for start in range(0, len(texts), NUM_TEXTS_PER_BATCH):
        batch = texts[start : start + NUM_TEXTS_PER_BATCH]
        encoded = renderer.tokenizer(batch, add_special_tokens=False)["input_ids"]
        num_tokens += sum(map(len, encoded))
    sample, with_reference = (
        # The placeholders of the frames, which are counted separately, have a token each.
        _num_tokens(renderer, system_prompt, num) - num - 1
        for num in (0, 1)
    )
    return TextTokens(num_tokens, sample, with_reference - sample)


def _num_tokens(renderer: PromptRenderer, system_prompt: str, num_references: int) -> int:
    """Return the number of tokens of a sample without texts."""
    recording = Recording((0,))
    references = [("", recording)] * num_references
    sample = speech_conversation(system_prompt, (), references, "", recording, clean=str)
    try:
        return len(renderer.prompt(sample).ids)
    except RenderError as error:
        raise UserError(f"{error}; {renderer.remedy}") from None
