"""A model ready to speak texts: a base, perhaps with an adapter, and the codec.

::

    speaker = Speaker.load(adapter="results/adapters/default")
    voice = speaker.voice("ada.wav", "What Ada says in that recording.")
    (spoken,) = speaker.speak([SpeechPrompt("The sun rises in the east.", (voice,))])
    spoken.write("out.wav")
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT, Device, Dtype, Sampling
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.audio import AudioError, decode
from higgs_pipe.data.channels import channel_to_take, to_mono
from higgs_pipe.data.quality import MAX_PEAK, SILENT_PEAK, peak
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.data.text import is_blank
from higgs_pipe.data.units import number
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec import encode, load_codec, to_codec_input
from higgs_pipe.higgs.codec_checkpoint import codec_of_base
from higgs_pipe.higgs.devices import pick_device, pick_dtype
from higgs_pipe.higgs.generation import DEFAULT_BATCH_SIZE, Spoken, speak
from higgs_pipe.higgs.lora import load_adapter
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.origin import adapter_origin
from higgs_pipe.higgs.pretrained import weight_fingerprint
from higgs_pipe.higgs.prompts import ModelPrompt, PromptRenderer
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.higgs.speech_prompts import (
    SpeechPrompt,
    Voice,
    check_prompts,
    model_prompt,
)

logger = logging.getLogger("higgs_pipe")

DEFAULT_MAX_PIECE_LENGTH = 300  # letters: some 20 s
MIN_REFERENCE_SECONDS = 0.3  # the default of validate.min_clip_seconds


class Speaker:
    """Speaks texts with a loaded model.

    Args:
        model: The native model, or a ``PeftModel`` of it; ``disable_adapter`` is heeded.
        renderer: Renders the base's prompts.
        codec: The codec.
        info: The identity of the codec.
        system_prompt: The system message of training.
        clean: Whether texts are cleaned, as in training.
    """

    def __init__(
        self,
        model: nn.Module,
        renderer: PromptRenderer,
        codec: HiggsAudioV2TokenizerModel,
        info: CodecInfo,
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
        clean: bool = True,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.codec = codec
        self.codec_info = info
        self.system_prompt = system_prompt
        self._clean = renderer.clean if clean else str

    @classmethod
    def load(
        cls,
        base: str | None = None,
        adapter: str | Path | None = None,
        codec: str | None = None,
        *,
        base_revision: str | None = None,
        codec_revision: str | None = None,
        system_prompt: str | None = None,
        clean: bool | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
    ) -> Self:
        """Load a base, an adapter on it, and the codec.

        Arguments that are left out come from the adapter: its base, and from its
        ``provenance.json`` the codec, system message and text cleaning of training. A base names
        its codec itself.

        Args:
            base: A directory or a Hub id.
            adapter: The directory of a PEFT adapter.
            codec: A directory or a Hub id.
            base_revision: A Hub revision of ``base``.
            codec_revision: A Hub revision of ``codec``.
            system_prompt: The system message.
            clean: Whether texts are cleaned.
            device: The device of model and codec.
            dtype: The dtype of the base.

        Raises:
            UserError: Neither base nor adapter is given, something cannot be loaded, the base has
                no system message, the codec does not fit the base, or the base or codec that the
                adapter names has other weights than in its training. If given by name, other ones
                only cause a warning.
        """
        origin = adapter_origin(Path(adapter)) if adapter is not None else None
        if base is not None:
            named_base = Pretrained("base", base, base_revision)
        elif origin is not None:
            named_base = Pretrained("base", origin.base, base_revision or origin.base_revision)
        else:
            raise UserError("no model is named: give an adapter, a base, or both.")
        where = pick_device(device)
        renderer = renderer_of(named_base)
        refused = renderer.rules.system_message_fault("system_prompt", system_prompt or "")
        if system_prompt is not None and refused:
            raise UserError(f"{refused.fact}; leave it out.")
        model: Any = load_base(named_base, pick_dtype(dtype, where))
        if adapter is not None:
            model = load_adapter(model, Path(adapter))
        if codec is not None:
            named_codec = Pretrained("codec", codec, codec_revision)
        elif origin is not None and origin.codec is not None:
            named_codec = Pretrained("codec", origin.codec, origin.codec_revision)
        else:
            named_codec = codec_of_base(named_base, codec_revision)
        loaded_codec, info = load_codec(named_codec, where)
        if info.num_codebooks != renderer.shape.num_codebooks:
            raise UserError(
                f"codec {info.codec!r} has {info.num_codebooks} codebooks, not the "
                f"{renderer.shape.num_codebooks} of base {named_base.name!r}; give its codec."
            )
        if origin is not None:
            if origin.base_fingerprint is not None:
                found = weight_fingerprint(named_base)
                _check_weights(named_base, found, origin.base_fingerprint, base is not None)
            if origin.codec_fingerprint is not None:
                expected = origin.codec_fingerprint
                _check_weights(named_codec, info.fingerprint, expected, codec is not None)
            system_prompt = origin.system_prompt if system_prompt is None else system_prompt
            clean = origin.clean_text if clean is None else clean
        return cls(
            model.to(where).eval(),
            renderer,
            loaded_codec,
            info,
            DEFAULT_SYSTEM_PROMPT if system_prompt is None else system_prompt,
            clean is not False,
        )

    def voice(self, audio: str | Path, text: str) -> Voice:
        """Encode a reference recording as training does: mono, resampled, in whole frames.

        A recording that is shorter than the base's shortest reference is padded with silence.

        Args:
            audio: A file of any format, rate and number of channels that ``validate`` takes.
            text: What it says.

        Raises:
            UserError: The file cannot be used, or the text is empty.
        """
        path = Path(audio)
        if is_blank(text):
            raise UserError(f"reference {path} has no transcript; give the text that it says.")
        try:
            recording = decode(path)
        except AudioError as error:
            raise UserError(f"reference {error}; name another recording.") from None
        highest = peak(recording.samples)
        if not SILENT_PEAK <= highest <= MAX_PEAK:
            raise UserError(
                f"reference {path} has a peak of {number(highest)} times full scale, not between "
                f"{SILENT_PEAK:.0e} and {MAX_PEAK:g}; name another recording."
            )
        if recording.duration_seconds < MIN_REFERENCE_SECONDS:
            raise UserError(
                f"reference {path} lasts {recording.duration_seconds:.3f} s, less than "
                f"{MIN_REFERENCE_SECONDS:g} s; name a longer recording."
            )
        mono = to_mono(recording.samples, channel_to_take(recording.samples))
        waveform = to_codec_input(mono, recording.sample_rate_hz, self.codec_info)
        min_samples = self.renderer.rules.min_reference_seconds * self.codec_info.sample_rate_hz
        lacking = max(0, round(min_samples) - waveform.shape[-1])
        waveform = torch.nn.functional.pad(waveform, (0, lacking))
        return Voice(text, encode(self.codec, waveform[None], self.codec_info)[0])

    def prompt(self, prompt: SpeechPrompt) -> ModelPrompt:
        """Return the prompt as the model reads it, as training would write it.

        Raises:
            UserError: The prompt cannot be rendered in full.
        """
        return model_prompt(self.renderer, prompt, self.system_prompt, self._clean)

    def speak(
        self,
        prompts: Iterable[SpeechPrompt | str],
        sampling: Sampling | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_piece_length: int = DEFAULT_MAX_PIECE_LENGTH,
    ) -> list[Spoken]:
        """Speak texts, in their order; a plain string is a prompt without a voice.

        A longer text is split at sentences, its pieces are spoken one by one and joined. Without a
        voice of its own, the first piece is the voice of the others.

        Args:
            prompts: The texts, each with its voices and scene.
            sampling: How codes are drawn; ``max_seconds`` holds for a piece.
            batch_size: Prompts generated at once.
            max_piece_length: Longest text that is not split, in letters; wide characters count
                as four.

        Raises:
            UserError: A text is empty or holds what the base does not know, or a prompt has several
                voices and no speaker tags.
        """
        sampling = sampling or Sampling()
        asked = [SpeechPrompt(p) if isinstance(p, str) else p for p in prompts]
        rules = self.renderer.rules
        check_prompts(asked, rules)
        pieces = [prompt.pieces(max_piece_length, rules.delivery_tags) for prompt in asked]
        # A text without a voice begins alone; the rest of it follows in its voice.
        first = [p if p[0].voices else p[:1] for p in pieces]
        spoken = self._speak_all(first, sampling, batch_size)
        rest = []
        for of_prompt, heard in zip(pieces, spoken, strict=True):
            voices = of_prompt[0].voices
            min_seconds = rules.min_reference_seconds
            if not voices and len(heard[0].codes) and heard[0].duration_seconds >= min_seconds:
                voices = (Voice(of_prompt[0].text, heard[0].codes),)
            rest.append([replace(piece, voices=voices) for piece in of_prompt[len(heard) :]])
        following = self._speak_all(rest, sampling, batch_size)
        return [joined([*a, *b]) for a, b in zip(spoken, following, strict=True)]

    def _speak_all(
        self, pieces: Sequence[Sequence[SpeechPrompt]], sampling: Sampling, batch_size: int
    ) -> list[list[Spoken]]:
        prompts = [self.prompt(piece) for of_prompt in pieces for piece in of_prompt]
        spoken = iter(speak(self.model, self.codec, self.codec_info, prompts, sampling, batch_size))
        return [[next(spoken) for _ in of_prompt] for of_prompt in pieces]


def _check_weights(named: Pretrained, found: str, trained_with: str, is_chosen: bool) -> None:
    if found == trained_with:
        return
    fact = f"{named.setting} {named.name!r} has other weights than the adapter was trained with"
    if not is_chosen:
        raise UserError(f"{fact}; give the right one, or this one by name, as --{named.setting}.")
    logger.warning("%s", fact)


def joined(pieces: Sequence[Spoken]) -> Spoken:
    """Join the pieces of a text in time; it has stopped if each piece has."""
    return Spoken(
        np.concatenate([piece.samples for piece in pieces]),
        pieces[0].sample_rate_hz,
        np.concatenate([piece.codes for piece in pieces]),
        all(piece.has_stopped for piece in pieces),
    )
