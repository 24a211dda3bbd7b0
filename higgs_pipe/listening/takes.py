"""Takes of the prompts: recording, codec round trip, base and adapter, written and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import HiggsAudioV2TokenizerModel

from higgs_pipe.data.audio import AudioError
from higgs_pipe.data.audio import decode as decode_file
from higgs_pipe.data.channels import to_mono
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec import decode, to_codec_input
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.generation import Spoken, write_wav
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.comparison import MeasuredTake, differences, totals
from higgs_pipe.listening.held_out import HeldOutSample
from higgs_pipe.listening.intervals import Difference
from higgs_pipe.listening.listener import Impression, Listener, compare_impression
from higgs_pipe.listening.measures import measure_speech
from higgs_pipe.listening.spoken import (
    ADAPTER,
    BASE,
    CODEC,
    RECORDING,
    Voice,
    VoiceDifferences,
    VoiceTotals,
)

Samples = npt.NDArray[np.float32]  # (N,) mono at the codec's rate
Drawn = tuple[Voice, float | None]  # a voice, and the temperature if its takes are drawn


@dataclass(frozen=True, eq=False)
class Take:
    """Speech of one voice for a prompt."""

    samples: Samples
    codes: Codes | None
    has_stopped: bool | None = None  # None: a recording


@dataclass(frozen=True, eq=False)
class Takes:
    """All takes of the prompts, as samples and as measured."""

    prompts: list[HeldOutSample]
    info: CodecInfo
    takes: dict[Drawn, list[Take]]  # one per prompt
    references: list[list[Samples]]  # recordings before the target of each prompt
    heard: dict[Drawn, list[MeasuredTake]] = field(default_factory=dict)

    @classmethod
    def collect(
        cls,
        prompts: list[HeldOutSample],
        spoken: Mapping[Voice, Mapping[float, Sequence[Spoken]]],
        codec: HiggsAudioV2TokenizerModel,
        info: CodecInfo,
    ) -> "Takes":
        """Collect recordings, round trips and generated speech side by side.

        Args:
            prompts: The prompts.
            spoken: The speech, by voice (base, adapter) and temperature.
            codec: The codec.
            info: What identifies it.

        Raises:
            UserError: A recording can no longer be read.
        """
        takes: dict[Drawn, list[Take]] = {
            (RECORDING, None): [
                Take(recording_of(each.recordings, info), each.sample.codes) for each in prompts
            ],
            (CODEC, None): [
                Take(decode(codec, each.sample.codes, info), each.sample.codes) for each in prompts
            ],
        }
        for temperature in spoken[BASE]:
            for voice in (BASE, ADAPTER):
                takes[voice, temperature] = [
                    Take(each.samples, each.codes, each.has_stopped)
                    for each in spoken[voice][temperature]
                ]
        references = [references_of(each, codec, info) for each in prompts]
        return cls(prompts, info, takes, references)

    def listen(self, listener: Listener) -> None:
        """Measure every take."""
        rate_hz = self.info.sample_rate_hz
        impressions = {
            voice: [listener.hear(take.samples, rate_hz) for take in takes]
            for voice, takes in self.takes.items()
        }
        recorded = impressions[RECORDING, None]
        # Of several, each may be another speaker's.
        references = [
            listener.hear(each[0], rate_hz) if len(each) == 1 else None for each in self.references
        ]
        for voice, takes in self.takes.items():
            self.heard[voice] = [
                MeasuredTake(
                    sound=measure_speech(take.samples, rate_hz, take.codes),
                    has_stopped=take.has_stopped,
                    codes=take.codes,
                    listened=compare_impression(
                        impression,
                        prompt.words,
                        prompt.clip["language"],
                        recorded[number],
                        references[number],
                        self._others(number, recorded),
                    ),
                )
                for number, (prompt, take, impression) in enumerate(
                    zip(self.prompts, takes, impressions[voice], strict=True)
                )
            ]

    def _others(self, number: int, recorded: Sequence[Impression]) -> list[Impression]:
        """Return the other recordings of a prompt's speaker, if it has one speaker."""
        speakers = [each.speakers if each.has_one_voice else None for each in self.prompts]
        return [
            recorded[other]
            for other, speaker in enumerate(speakers)
            if speaker is not None and speaker == speakers[number] and other != number
        ]

    def totals(self, clusters: Clusters) -> list[VoiceTotals]:
        """Total the measures of every voice."""
        recordings = self.heard[RECORDING, None]
        return [
            VoiceTotals(
                voice=voice,
                temperature=temperature,
                measures=totals(heard, recordings, clusters, self.info.codebook_size),
            )
            for (voice, temperature), heard in self.heard.items()
        ]

    def differences(self, clusters: Clusters) -> list[VoiceDifferences]:
        """Compare adapter and base at every temperature."""
        return [
            VoiceDifferences(
                temperature=temperature,
                measures=self._differences(temperature, clusters),
            )
            for voice, temperature in self.heard
            if voice == ADAPTER and temperature is not None
        ]

    def _differences(self, temperature: float, clusters: Clusters) -> dict[str, Difference | None]:
        return differences(
            self.heard[ADAPTER, temperature],
            self.heard[BASE, temperature],
            self.heard[RECORDING, None],
            clusters,
            self.info.codebook_size,
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``generation.parquet``, by prompt and voice."""
        return [
            {
                "clip_id": prompt.sample.sample_id,
                "voice": voice,
                "temperature": temperature,
                "text": prompt.text,
                "speaker": prompt.speakers,
                "language": prompt.clip["language"],
                "task": prompt.task,
                "sample": sample_name(number, voice, temperature),
                "reference": sample_name(number, "reference", None) if references else None,
                **self.heard[voice, temperature][number].measures,
            }
            for number, (prompt, references) in enumerate(
                zip(self.prompts, self.references, strict=True)
            )
            for voice, temperature in self.heard
        ]

    def write(self, samples_dir: Path) -> None:
        """Write the WAVs to a folder."""
        for (voice, temperature), takes in self.takes.items():
            for number, take in enumerate(takes):
                name = sample_name(number, voice, temperature)
                write_wav(samples_dir / name, take.samples, self.info.sample_rate_hz)
        for number, references in enumerate(self.references):
            if references:
                name = sample_name(number, "reference", None)
                joined = np.concatenate(references)
                write_wav(samples_dir / name, joined, self.info.sample_rate_hz)


def recording_of(clips: Sequence[Mapping[str, Any]], info: CodecInfo) -> Samples:
    """Read clips as the codec gets them, joined in time: mono at the codec's rate.

    Raises:
        UserError: A file can no longer be read.
    """
    parts = []
    for clip in clips:
        try:
            audio = decode_file(
                Path(clip["audio_path"]), clip["start_seconds"], clip["end_seconds"]
            )
        except AudioError as error:
            raise UserError(f"{error}; run: snakemake --forcerun list_rows") from None
        mono = to_mono(audio.samples, clip["channel"])
        parts.append(to_codec_input(mono, audio.sample_rate_hz, info).numpy())
    # Each part is padded to whole frames, as its codes are; the last one's padding is cut off.
    num_padded = len(parts[-1]) - round(audio.duration_seconds * info.sample_rate_hz)
    joined: Samples = np.concatenate(parts)
    return joined[: len(joined) - num_padded]


def references_of(
    prompt: HeldOutSample, codec: HiggsAudioV2TokenizerModel, info: CodecInfo
) -> list[Samples]:
    """Decode the recordings in a prompt."""
    return [decode(codec, codes, info) for codes in prompt.sample.references]


def sample_name(number: int, voice: str, temperature: float | None) -> str:
    """Name the WAV of a take: ``01-adapter-t0.8.wav``."""
    suffix = "" if temperature is None else f"-t{temperature:g}"
    return f"{number + 1:02d}-{voice}{suffix}.wav"
