"""Conversations as training samples: the part common to all prompt renderers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from higgs_pipe.config.settings import PackConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import SamplePlan
from higgs_pipe.data.packing.turns import Recording, conversation_of
from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.higgs.codes import Codes, delay, num_delayed_frames, target_labels
from higgs_pipe.higgs.shape import BaseShape

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as tokens, with a placeholder for each recording."""

    ids: TokenIds  # (P,)
    labels: TokenIds  # (P,), IGNORED at the placeholders and outside targets
    is_target: tuple[bool, ...]  # (A,) True for each recording in a target turn


class RenderError(Exception):
    """A conversation cannot be rendered in full; the message is the fact."""


@dataclass(frozen=True)
class NotRendered:
    """A conversation that cannot be rendered in full, and the fact."""

    fact: str


@dataclass(frozen=True)
class ModelInputs:
    """Samples one after the other as the model reads them, with their labels."""

    input_ids: TokenIds  # (S,)
    labels: TokenIds  # (S,)
    audio_input_ids: Codes  # (F, K), all recordings in order
    audio_labels: Codes  # (F, K)


@dataclass(frozen=True, eq=False)
class ModelPrompt:
    """A prompt as the model reads it, up to the token before the audio to generate."""

    input_ids: TokenIds  # (P,), with a placeholder for each delayed frame
    audio_input_ids: Codes  # (F, K), delayed; F is 0 without a reference

    def seed(self, seed: int) -> int:
        """Return a seed that depends on ``seed`` and on the prompt alone."""
        digest = hashlib.sha256(f"{seed} ".encode())
        digest.update(self.input_ids.astype("<i4").tobytes())
        digest.update(self.audio_input_ids.astype("<i2").tobytes())
        return int.from_bytes(digest.digest()[:8], "big") >> 1


@dataclass(frozen=True, eq=False)
class GeneratedCodes:
    """The codes that a model generated for a prompt."""

    codes: Codes  # (T, K)
    has_stopped: bool  # by itself, before the cap


class PromptRenderer(ABC):
    """Renders conversations for a base, and builds samples from them.

    Attributes:
        tokenizer: The base's.
        shape: The base's.
        remedy: The remedy if a plain sample cannot be rendered.
        rules: The prompt rules.
    """

    tokenizer: Any
    shape: BaseShape
    remedy: ClassVar[str]
    rules: ClassVar[PromptRules]

    @abstractmethod
    def __init__(self, base: Pretrained) -> None:
        """Load the parts of a checkpoint that prompts need."""

    @abstractmethod
    def prompt(self, conversation: Conversation[Any]) -> Prompt:
        """Render and tokenize a conversation, and label its target turns.

        Raises:
            RenderError: A part of the conversation cannot be rendered.
        """

    @abstractmethod
    def prompts(self, conversations: Sequence[Conversation[Any]]) -> list[Prompt | NotRendered]:
        """Return :meth:`prompt` of each conversation, or the fact that prevents it."""

    @abstractmethod
    def clean(self, text: str) -> str:
        """Clean a target's text as the model's own inference does."""

    def conversations(
        self, plans: Sequence[SamplePlan], clips: Clips, settings: PackConfig
    ) -> list[Conversation[Recording]]:
        """Return the conversation of each sample, its texts cleaned if the settings say so."""
        rows = clips.rows([clip for plan in plans for clip in plan.clips])
        clean = self.clean if settings.clean_text else str
        return [conversation_of(plan, rows, clips, settings.system_prompt, clean) for plan in plans]

    def sample_length(self, prompt: Prompt, num_frames: Sequence[int]) -> int:
        """Return S of the sample that :meth:`model_inputs` builds with recordings of these T."""
        shape = self.shape
        delayed = (
            num_delayed_frames(n, shape.num_codebooks, shape.num_margin_frames) for n in num_frames
        )
        return len(prompt.ids) - len(num_frames) + sum(delayed)

    def model_inputs(self, prompts: Sequence[Prompt], codes: Sequence[Codes]) -> ModelInputs:
        """Insert the recordings into prompts, with labels on those of target turns.

        Audio labels are those of :func:`codes.target_labels`; all others are ``IGNORED``.

        Args:
            prompts: Prompts from :meth:`prompts`.
            codes: (T, K) for each recording of all prompts, in order.
        """
        shape = self.shape
        bos, eos, margin = (
            shape.audio_stream_bos_id,
            shape.audio_stream_eos_id,
            shape.num_margin_frames,
        )
        num_delayed = [num_delayed_frames(len(c), c.shape[1], margin) for c in codes]
        ids = np.concatenate([prompt.ids for prompt in prompts])  # (P,), all prompts
        placeholders = np.flatnonzero(ids == shape.audio_token_id)
        repeats = np.ones(len(ids), np.int64)
        repeats[placeholders] = num_delayed
        input_ids = np.repeat(ids, repeats)  # (P,) -> (S,)
        ends = np.cumsum(repeats)[placeholders]
        last_frames = np.subtract.outer(ends, np.arange(1, shape.num_codebooks))
        input_ids[last_frames] = shape.audio_delay_token_id
        is_target = [is_target for prompt in prompts for is_target in prompt.is_target]
        return ModelInputs(
            input_ids=input_ids,
            labels=np.repeat(np.concatenate([prompt.labels for prompt in prompts]), repeats),
            audio_input_ids=delay(codes, bos, eos, margin),
            audio_labels=target_labels(codes, eos, is_target, margin, shape.num_eos_labels),
        )
