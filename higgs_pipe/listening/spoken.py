"""Results of speaking held-out prompts: ``generation.parquet`` and ``generation.json``."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal

import pyarrow as pa

from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.data.specs import Column, TableSpec
from higgs_pipe.listening.comparison import ListenedMeasures
from higgs_pipe.listening.intervals import Difference, Estimate
from higgs_pipe.listening.measures import SoundMeasures

Voice = Literal["recording", "codec", "base", "adapter"]
RECORDING: Voice = "recording"
CODEC: Voice = "codec"
BASE: Voice = "base"
ADAPTER: Voice = "adapter"

ARROW_TYPES: dict[Any, pa.DataType] = {
    float: pa.float64(),
    float | None: pa.float64(),
    int | None: pa.int32(),
    str | None: pa.string(),
}

GENERATED = TableSpec(
    name="generated speech",
    version=1,
    made_by="eval_adapter",
    columns=(
        Column("clip_id", pa.string(), "The held-out clip whose text is spoken."),
        Column("voice", pa.string(), "recording, codec (the recording through it), base, adapter."),
        Column("temperature", pa.float64(), "Of the draw; missing: not drawn.", nullable=True),
        Column("text", pa.string(), "The text to speak."),
        Column("speaker", pa.string(), "Speaker; missing: unknown.", nullable=True),
        Column("language", pa.string(), "Language code; missing: unknown.", nullable=True),
        Column("task", pa.string(), "Kind of the packed sample, such as speech or cloning."),
        Column("sample", pa.string(), "The WAV, relative to samples/."),
        Column("reference", pa.string(), "The reference's WAV; missing: none.", nullable=True),
        Column("has_stopped", pa.bool_(), "Stopped before the cap; missing: recorded.", True),
        *(
            Column(
                measure.name,
                ARROW_TYPES[measure.type],
                measure.metadata["description"],
                nullable=measure.type is not float,
            )
            for measures in (SoundMeasures, ListenedMeasures)
            for measure in fields(measures)
        ),
    ),
)


class VoiceTotals(ResultPart):
    """Measures of a voice over all prompts; None: not measured."""

    voice: Voice
    temperature: float | None
    measures: dict[str, Estimate | None]


class VoiceDifferences(ResultPart):
    """Measures of the adapter minus those of the base, at one temperature."""

    temperature: float
    measures: dict[str, Difference | None]


class Generation(Result):
    """``generation.json``; the verdict and the listening table use the first temperature."""

    made_by: ClassVar[str] = "eval_adapter"

    num_prompts: int
    num_too_long: int  # held-out samples that are longer than max_seconds, and so not spoken
    max_seconds: float
    seed: int
    speech_models: dict[str, str | None]
    voices: list[VoiceTotals]
    differences: list[VoiceDifferences]

    def totals(self, voice: Voice, temperature: float | None = None) -> dict[str, Estimate | None]:
        """Return the measures of a voice, of base and adapter at a temperature; None: the first."""
        of_voice = (each for each in self.voices if each.voice == voice)
        return next((v.measures for v in of_voice if temperature in (None, v.temperature)), {})


def temperatures_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Return the temperatures of the rows of :data:`GENERATED`, the first one first."""
    return list(dict.fromkeys(t for row in rows if (t := row["temperature"]) is not None))
