"""The listening table: a line per prompt, with a player per voice and its measures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from higgs_pipe.data.tables import read_table
from higgs_pipe.data.units import number
from higgs_pipe.errors import UserError
from higgs_pipe.listening.spoken import (
    ADAPTER,
    BASE,
    CODEC,
    GENERATED,
    RECORDING,
    temperatures_of,
)
from higgs_pipe.reporting.audio import Player, read_player

RULE = GENERATED.made_by
LABELS = {RECORDING: "Recording", CODEC: "Codec", BASE: "Base"}
SORT_KEYS = {
    "stop": "not stopped",
    "length": "farthest from the recording's length",
    "silence": "longest silence",
    "words": "word error rate",
    "voice": "least like the recording's voice",
}

Row = dict[str, Any]  # of GENERATED


@dataclass(frozen=True)
class Fact:
    """A measure beside a player; the tone is a class of the page's style."""

    label: str
    value: str
    tone: str = ""


@dataclass(frozen=True)
class PlayedTake:
    """Speech of one voice for a prompt."""

    label: str
    player: Player
    facts: list[Fact]


@dataclass(frozen=True)
class PromptLine:
    """A prompt and all its takes; ``rank`` is its place, worst first."""

    text: str
    who: str
    reference: Player | None
    takes: list[PlayedTake]
    sort_values: dict[str, float]
    rank: int


@dataclass(frozen=True)
class SpeechFiles:
    """The files of an evaluation with its generated speech."""

    base: tuple[str, str]  # the base model and its revision
    table: Path  # generation.parquet
    samples: Path  # the WAVs

    @classmethod
    def of(cls, base: tuple[str, str], experiment_dir: Path) -> Self:
        """Return the files of an experiment, on held-out clips."""
        table = experiment_dir / "eval" / "generation.parquet"
        return cls(base, table, experiment_dir / "samples")

    @classmethod
    def of_other(cls, base: tuple[str, str], experiment_dir: Path) -> Self:
        """Return the files of an experiment, on ``eval.other_manifest``."""
        folder = experiment_dir / "eval" / "other"
        return cls(base, folder / "generation.parquet", folder / "samples")


@dataclass(frozen=True)
class Listening:
    """The listening table: its prompts, their temperature, and the keys to sort by."""

    prompts: list[PromptLine]
    temperature: float | None
    sort_keys: dict[str, str]


def read_listening(spoken: dict[str, SpeechFiles]) -> Listening:
    """Read the speech of the experiments at their first temperature.

    Recordings, codec round trips and the base's takes are from the first experiment; takes of
    another base model are shown beside its adapter's.

    Args:
        spoken: The files by experiment name.

    Raises:
        UserError: A file is missing, or the experiments spoke different prompts.
    """
    tables: dict[str, dict[str, dict[str, Row]]] = {}
    temperature = None
    for name, files in spoken.items():
        table = read_table(files.table, GENERATED)
        rows = table.to_pylist()
        temperature = next(iter(temperatures_of(rows)), None)
        tables[name] = _by_prompt(rows, temperature)
    first = next(iter(tables))
    for name, prompts in tables.items():
        if prompts.keys() != tables[first].keys():
            raise UserError(
                f"{spoken[name].table}: other prompts than those of "
                f"experiment {first!r}; run: snakemake --forcerun {RULE}"
            )
    ranks = _ranks(tables)
    own_bases = [name for name in tables if spoken[name].base != spoken[first].base]
    lines = []
    for clip_id, voices in tables[first].items():
        adapters = {name: prompts[clip_id][ADAPTER] for name, prompts in tables.items()}
        bases = {name: tables[name][clip_id][BASE] for name in own_bases}
        lines.append(_line(voices, bases, adapters, spoken, ranks[clip_id]))
    keys = {key for line in lines for key in line.sort_values}
    return Listening(lines, temperature, {k: SORT_KEYS[k] for k in SORT_KEYS if k in keys})


def _by_prompt(rows: Sequence[Row], temperature: float | None) -> dict[str, dict[str, Row]]:
    """Group the rows by clip id, then by voice."""
    prompts: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["temperature"] in (None, temperature):
            prompts.setdefault(row["clip_id"], {})[row["voice"]] = row
    return prompts


def _line(
    voices: dict[str, Row],
    bases: dict[str, Row],
    adapters: dict[str, Row],
    spoken: dict[str, SpeechFiles],
    rank: int,
) -> PromptLine:
    recording = voices[RECORDING]
    first = next(iter(spoken.values()))
    rows = [(LABELS[voice], first, voices[voice]) for voice in LABELS]
    for name, row in adapters.items():
        if name in bases:
            rows.append((f"Base of {name}", spoken[name], bases[name]))
        rows.append((name, spoken[name], row))
    longest = max(row["duration_seconds"] for _, _, row in rows)
    takes = [
        PlayedTake(label, _player(files, row["sample"], longest), _facts(row, recording))
        for label, files, row in rows
    ]
    reference = recording["reference"]
    who = [recording["speaker"], recording["language"], recording["task"].replace("_", " ")]
    return PromptLine(
        text=recording["text"],
        who=" · ".join(part for part in who if part),
        reference=_player(first, reference, None) if reference else None,
        takes=takes,
        sort_values=_sort_values(list(adapters.values()), recording),
        rank=rank,
    )


def _player(files: SpeechFiles, sample: str, longest: float | None) -> Player:
    return read_player(files.samples / sample, longest, RULE)


def _facts(row: Row, recording: Row) -> list[Fact]:
    """List the measures of a take, leaving those not measured to the table of measures."""
    seconds = row["duration_seconds"]
    facts = [Fact("length", f"{seconds:.1f} s")]
    if row["has_stopped"] is not None:
        ratio = seconds / recording["duration_seconds"]
        facts[0] = Fact("length", f"{seconds:.1f} s ({number(ratio, 2)} ×)")
        stopped = Fact("stopped", "yes") if row["has_stopped"] else Fact("stopped", "no", "worse")
        facts.append(stopped)
    facts.append(
        Fact(
            "silence",
            f"{100 * row['silence_share']:.0f} % ({row['longest_silence_seconds']:.1f} s)",
        )
    )
    if row["repeated_frame_share"]:
        facts.append(Fact("repeated frames", f"{100 * row['repeated_frame_share']:.0f} %"))
    if row["num_words"]:
        facts.append(Fact("word errors", f"{row['num_word_errors']} of {row['num_words']}"))
    if row["transcript"] is not None:
        facts.append(Fact("heard", row["transcript"]))
    if row["similarity_to_recording"] is not None and row is not recording:
        facts.append(Fact("voice", f"{row['similarity_to_recording']:.2f}"))
    if row["dnsmos"] is not None:
        facts.append(Fact("DNSMOS", f"{row['dnsmos']:.1f}"))
    return facts


def _sort_values(adapters: Sequence[Row], recording: Row) -> dict[str, float]:
    """Return the sort keys of the adapters' takes of a prompt; more is worse."""
    values = {
        "stop": float(sum(not row["has_stopped"] for row in adapters)),
        "length": max(_octaves(row, recording) for row in adapters),
        "silence": max(row["longest_silence_seconds"] for row in adapters),
    }
    if all(row["num_words"] for row in adapters):
        values["words"] = max(row["num_word_errors"] / row["num_words"] for row in adapters)
    similarities = [row["similarity_to_recording"] for row in adapters]
    if None not in similarities:
        values["voice"] = 1 - min(similarities)
    return {key: round(value, 4) for key, value in values.items()}


def _octaves(row: Row, recording: Row) -> float:
    """Return the distance from the recording's length: 1 is twice or half as long."""
    shortest = 1e-2
    ratio = max(row["duration_seconds"], shortest) / max(recording["duration_seconds"], shortest)
    return abs(math.log2(ratio))


def _ranks(tables: dict[str, dict[str, dict[str, Row]]]) -> dict[str, int]:
    """Rank the prompts, worst first: not stopped, then word errors, then the length."""
    first = next(iter(tables.values()))

    def badness(clip_id: str) -> tuple[float, ...]:
        adapters = [prompts[clip_id][ADAPTER] for prompts in tables.values()]
        values = _sort_values(adapters, first[clip_id][RECORDING])
        return values["stop"], values.get("words", 0.0), values["length"]

    ordered = sorted(first, key=badness, reverse=True)
    return {clip_id: rank for rank, clip_id in enumerate(ordered, start=1)}
