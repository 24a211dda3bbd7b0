"""From a clip to one training sample: the prompt of inference, and labels on the target alone.

The conversation is rendered by the checkpoint's own chat template, so that a model is trained on
exactly the prompt that it will see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import AutoConfig, AutoTokenizer

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.checkpoint import load_pretrained
from higgs_pipe.higgs.codes import IGNORED, Codes, delay, num_delayed_frames, target_labels

Message = dict[str, Any]
TokenIds = npt.NDArray[np.int32]

AUDIO_TURN: Message = {"role": "assistant", "content": [{"type": "audio"}]}

LATIN_PUNCTUATION = str.maketrans(
    {
        "，": ", ",
        "。": ". ",
        "、": ", ",
        "：": ": ",
        "；": "; ",
        "？": "? ",
        "！": "! ",
        "（": " ",
        "）": " ",
        "(": " ",
        ")": " ",
        "【": "[",
        "】": "]",
        "《": "'",
        "》": "'",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "—": "-",
        "…": "...",
    }
)
SPELLED_OUT = {
    "°F": " degrees Fahrenheit",
    "°C": " degrees Celsius",
    "[laugh]": "<SE>[Laughter]</SE>",
    "[humming start]": "<SE_s>[Humming]</SE_s>",
    "[humming end]": "<SE_e>[Humming]</SE_e>",
    "[music start]": "<SE_s>[Music]</SE_s>",
    "[music end]": "<SE_e>[Music]</SE_e>",
    "[music]": "<SE>[Music]</SE>",
    "[sing start]": "<SE_s>[Singing]</SE_s>",
    "[sing end]": "<SE_e>[Singing]</SE_e>",
    "[applause]": "<SE>[Applause]</SE>",
    "[cheering]": "<SE>[Cheering]</SE>",
    "[cough]": "<SE>[Cough]</SE>",
}
SENTENCE_ENDS = (".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>")


def clean_text(text: str) -> str:
    """Clean a transcript as Higgs Audio's inference cleans its text.

    Chinese punctuation becomes Latin, parentheses become spaces, degrees are spelled out, sound
    events become tags, white space is folded, and a text that ends bare gets a full stop.
    """
    text = text.translate(LATIN_PUNCTUATION)
    for written, spoken in SPELLED_OUT.items():
        text = text.replace(written, spoken)
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return text if text.endswith(SENTENCE_ENDS) else text + "."


def conversation(
    text: str,
    system_prompt: str,
    scene: str | None = None,
    reference_text: str | None = None,
) -> list[Message]:
    """The messages of one sample; the last is the target's audio turn.

    Args:
        text: What the target says.
        system_prompt: The system message, which the template demands.
        scene: Where and how it is said.
        reference_text: What the reference recording says; its turns come before the target's.
    """
    messages: list[Message] = [_text_message("system", system_prompt)]
    if scene:
        messages.append(_text_message("scene", scene))
    if reference_text is not None:
        messages += [_text_message("user", reference_text), AUDIO_TURN]
    return [*messages, _text_message("user", text), AUDIO_TURN]


def _text_message(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


@dataclass(frozen=True)
class HiggsTokens:
    """The ids that a sample is built from, read from the checkpoint."""

    audio: int
    audio_bos: int
    audio_eos: int
    audio_delay: int
    end_of_turn: int
    stream_bos: int
    stream_eos: int
    num_codebooks: int


@dataclass(frozen=True)
class Sample:
    """One conversation as the model reads it, with its labels."""

    input_ids: TokenIds  # (S,)
    labels: TokenIds  # (S,)
    audio_input_ids: Codes  # (F, K), all audio turns in order
    audio_labels: Codes  # (F, K)


class PromptRenderer:
    """Renders conversations with a checkpoint's template and builds samples from them.

    Raises:
        UserError: The checkpoint cannot be loaded, or lacks a template or a token.
    """

    def __init__(self, base_model: str, revision: str | None = None) -> None:
        config = load_pretrained(AutoConfig, "base_model", base_model, revision)
        self.tokenizer = load_pretrained(AutoTokenizer, "base_model", base_model, revision)
        if self.tokenizer.chat_template is None:
            raise UserError(f"base_model {base_model!r} has no chat template; use a complete one.")
        self.tokens = HiggsTokens(
            audio=config.audio_token_id,
            audio_bos=config.audio_bos_token_id,
            audio_eos=self._token_id("<|audio_eos|>"),
            audio_delay=config.audio_delay_token_id,
            end_of_turn=self._token_id("<|eot_id|>"),
            stream_bos=config.audio_stream_bos_id,
            stream_eos=config.audio_stream_eos_id,
            num_codebooks=config.num_codebooks,
        )

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise UserError(
                f"the base model's tokenizer has no {token}; use a complete checkpoint."
            )
        return int(token_id)

    def prompt_ids(self, conversations: Sequence[Sequence[Message]]) -> list[TokenIds]:
        """Token ids of each conversation, one audio placeholder for each audio turn."""
        texts = [
            self.tokenizer.apply_chat_template(list(messages), tokenize=False)
            for messages in conversations
        ]
        # The template writes the beginning of the text itself.
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [np.asarray(ids, np.int32) for ids in encoded]

    def sample_length(self, prompt_ids: TokenIds, num_frames: Sequence[int]) -> int:
        """S of the sample that :meth:`sample` builds from audio turns of these T."""
        delayed = (num_delayed_frames(n, self.tokens.num_codebooks) for n in num_frames)
        return len(prompt_ids) - len(num_frames) + sum(delayed)

    def sample(self, prompt_ids: TokenIds, codes: Sequence[Codes]) -> Sample:
        """Expand the placeholders of a prompt and label its last audio turn.

        Text labels are the target turn's ``<|audio_out_bos|>``, ``<|audio_eos|>`` and
        ``<|eot_id|>``; audio labels are the target's (:func:`codes.target_labels`). All else is
        ``IGNORED``: the prompt, the reference audio and the placeholders.

        Args:
            prompt_ids: One conversation of :meth:`prompt_ids`.
            codes: (T, K) for each audio turn, in order; the last is the target.
        """
        tokens = self.tokens
        placeholders = np.flatnonzero(prompt_ids == tokens.audio)
        if len(placeholders) != len(codes):
            raise UserError(
                f"the chat template gave {len(placeholders)} audio placeholders for {len(codes)} "
                "audio turns; use the base model's published chat template."
            )
        delayed = [delay(c, tokens.stream_bos, tokens.stream_eos) for c in codes]
        pieces = np.split(prompt_ids, np.sort(np.concatenate([placeholders, placeholders + 1])))
        for turn, frames in enumerate(delayed):
            pieces[2 * turn + 1] = self._placeholders(len(frames))
        input_ids = np.concatenate(pieces)

        labels = np.full_like(input_ids, IGNORED)
        tail = pieces[-1]
        target_start = len(input_ids) - len(tail) - len(delayed[-1])
        supervised = [target_start - 1, len(input_ids) - len(tail), len(input_ids) - len(tail) + 1]
        expected = [tokens.audio_bos, tokens.audio_eos, tokens.end_of_turn]
        if len(tail) < 2 or input_ids[supervised].tolist() != expected:
            raise UserError(
                "the chat template does not put <|audio_out_bos|> before the audio and "
                "<|audio_eos|><|eot_id|> after it; use the base model's published chat template."
            )
        labels[supervised] = expected

        audio_labels = [np.full_like(frames, IGNORED) for frames in delayed[:-1]]
        return Sample(
            input_ids=input_ids,
            labels=labels,
            audio_input_ids=np.concatenate(delayed),
            audio_labels=np.concatenate([*audio_labels, target_labels(delayed[-1])]),
        )

    def _placeholders(self, num_delayed: int) -> TokenIds:
        ids = np.full(num_delayed, self.tokens.audio, np.int32)
        ids[num_delayed - (self.tokens.num_codebooks - 1) :] = self.tokens.audio_delay
        return ids
