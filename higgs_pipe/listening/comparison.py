"""Several voices compared over prompts: totals, and adapter against base.

One :class:`MeasuredTake` per prompt and voice (recording, codec round trip, base, adapter); the
lists of all voices have the same prompts in the same order::

    totals(adapter, recordings, clusters, num_entries)           # a column of the table
    differences(adapter, base, recordings, clusters, num_entries)  # for the verdict

A measure that is missing is None, never 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from higgs_pipe.listening import intervals
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.intervals import Difference, Estimate
from higgs_pipe.listening.measures import Codes, SoundMeasures, code_distance, code_histogram

RUNAWAY_RATIO = 2.0  # lasting more than this times the recording is a runaway
MAX_OCTAVES = 3.0  # of a duration's error: what lasts no time at all is off by this much

Array = npt.NDArray[np.float64]


def _measure(description: str) -> Any:
    return field(default=None, metadata={"description": description})


@dataclass(frozen=True)
class ListenedMeasures:
    """Results of speech models for a waveform; None where a model is missing."""

    transcript: str | None = _measure("What the recogniser understood.")
    num_word_errors: int | None = _measure("Words put in, left out or changed.")
    num_words: int | None = _measure("Words of the text, normalised.")
    num_character_errors: int | None = _measure("Characters put in, left out or changed.")
    num_characters: int | None = _measure("Characters of the text, normalised.")
    similarity_to_recording: float | None = _measure("Cosine with the clip's own recording.")
    similarity_to_reference: float | None = _measure("Cosine with the prompt's reference.")
    similarity_to_others: float | None = _measure(
        "Cosine with the mean voice of the speaker's other held-out clips."
    )
    dnsmos: float | None = _measure("DNSMOS P.835 overall quality, 1 to 5.")


@dataclass(frozen=True, eq=False)
class MeasuredTake:
    """One waveform of a prompt, with its measures."""

    sound: SoundMeasures
    has_stopped: bool | None = None  # before the cap; None: a recording
    codes: Codes | None = None  # (T, K); None: unknown
    listened: ListenedMeasures = ListenedMeasures()

    @property
    def measures(self) -> dict[str, Any]:
        """All measures by name, as in a row of ``generation.parquet``."""
        return {"has_stopped": self.has_stopped, **vars(self.sound), **vars(self.listened)}


Term = tuple[float, float] | None  # a sum and what it is over; None: not measured


def total_terms(heard: MeasuredTake, recording: MeasuredTake) -> dict[str, Term]:
    """Return the terms that a prompt adds to the totals of its voice."""
    sound, listened = heard.sound, heard.listened
    seconds, share = sound.duration_seconds, sound.repeated_frame_share
    num_pairs = 0 if heard.codes is None else max(len(heard.codes) - 1, 0)
    return _shared_terms(heard, recording) | {
        "duration_ratio": (seconds, recording.sound.duration_seconds),
        "silence_share": (sound.silence_share * seconds, seconds),
        "longest_silence_seconds": (sound.longest_silence_seconds, 1),
        "repeated_frame_share": None if share is None else (share * num_pairs, num_pairs),
        "dnsmos": _one(listened.dnsmos),
    }


def compared_terms(heard: MeasuredTake, recording: MeasuredTake) -> dict[str, Term]:
    """Return the terms that a prompt adds to the measures that compare adapter and base."""
    sound, recorded = heard.sound, recording.sound
    ratio = sound.duration_seconds / recorded.duration_seconds
    octaves = abs(math.log2(min(max(ratio, 2**-MAX_OCTAVES), 2**MAX_OCTAVES)))
    return _shared_terms(heard, recording) | {
        "duration_error": (octaves, 1),
        "silence_error": (abs(sound.silence_share - recorded.silence_share), 1),
        "longest_silence_excess": _excess(
            sound.longest_silence_seconds, recorded.longest_silence_seconds
        ),
        "repeated_frame_excess": _excess(sound.repeated_frame_share, recorded.repeated_frame_share),
        "quality_shortfall": _excess(recording.listened.dnsmos, heard.listened.dnsmos),
    }


def _shared_terms(heard: MeasuredTake, recording: MeasuredTake) -> dict[str, Term]:
    listened = heard.listened
    is_runaway = None
    if heard.has_stopped is not None:
        longest = RUNAWAY_RATIO * recording.sound.duration_seconds
        is_runaway = not heard.has_stopped or heard.sound.duration_seconds > longest
    return {
        "stop_rate": _one(heard.has_stopped),
        "runaway_rate": _one(is_runaway),
        "word_error_rate": _over(listened.num_word_errors, listened.num_words),
        "character_error_rate": _over(listened.num_character_errors, listened.num_characters),
        "speaker_similarity": _one(listened.similarity_to_recording),
        "speaker_similarity_to_reference": _one(listened.similarity_to_reference),
        "speaker_similarity_to_others": _one(listened.similarity_to_others),
    }


def _one(value: float | None) -> Term:
    return None if value is None else (float(value), 1)


def _over(value: float | None, count: float | None) -> Term:
    return None if value is None or count is None else (value, count)


def _excess(value: float | None, limit: float | None) -> Term:
    return None if value is None or limit is None else (max(value - limit, 0.0), 1)


YES_OR_NO = ("stop_rate", "runaway_rate")
CODE_DISTANCE = "code_distance"


def totals(
    voice: Sequence[MeasuredTake],
    recordings: Sequence[MeasuredTake],
    clusters: Clusters,
    num_entries: int,
) -> dict[str, Estimate | None]:
    """Total every measure of one voice over the prompts.

    Args:
        voice: The takes of the voice as heard, one per prompt (N,).
        recordings: The recordings of the same prompts.
        clusters: The clusters of the prompts.
        num_entries: V, codes of a codebook, without stream BOS and EOS.

    Returns:
        By the keys of :func:`total_terms`, and the code distance from the recordings; None: not
        measured of any prompt.
    """
    terms = [total_terms(*pair) for pair in zip(voice, recordings, strict=True)]
    found: dict[str, Estimate | None] = {}
    for name in terms[0]:
        ([sums, counts],), rows = _columns([[of_prompt[name] for of_prompt in terms]])
        found[name] = None
        if counts.sum() > 0:
            found[name] = intervals.mean_estimate(
                sums, counts, clusters.take(rows), yes_or_no=name in YES_OR_NO
            )
    columns, sizes, rows = _histograms([voice, recordings], num_entries)
    found[CODE_DISTANCE] = None
    if len(rows):

        def distance(total: Array) -> Array:
            heard, recorded = np.split(total, 2, axis=-1)
            return _distance(heard, recorded, num_entries)

        found[CODE_DISTANCE] = intervals.estimate(
            distance, columns, sizes, clusters.take(rows), bounds=(0, 1)
        )
    return found


def differences(
    adapter: Sequence[MeasuredTake],
    base: Sequence[MeasuredTake],
    recordings: Sequence[MeasuredTake],
    clusters: Clusters,
    num_entries: int,
) -> dict[str, Difference | None]:
    """Compare adapter and base on the prompts that were measured for both.

    Args:
        adapter: The adapter's takes as heard, one per prompt (N,).
        base: The same for the base.
        recordings: The recordings of the same prompts.
        clusters: The clusters of the prompts.
        num_entries: V, codes of a codebook, without stream BOS and EOS.

    Returns:
        Adapter minus base, by the keys of :func:`compared_terms`, and the code distance, all names
        of :data:`higgs_pipe.listening.verdict.MEASURES`. None: not measured.
    """
    terms = [
        [compared_terms(*pair) for pair in zip(voice, recordings, strict=True)]
        for voice in (adapter, base)
    ]
    found: dict[str, Difference | None] = {}
    for name in terms[0][0]:
        (first, second), rows = _columns(
            [[of_prompt[name] for of_prompt in of_voice] for of_voice in terms]
        )
        found[name] = None
        if first[1].sum() > 0 and second[1].sum() > 0:
            found[name] = intervals.mean_difference(
                sums=(first[0], second[0]),
                counts=(first[1], second[1]),
                clusters=clusters.take(rows),
                yes_or_no=name in YES_OR_NO,
            )
    columns, sizes, rows = _histograms([adapter, base, recordings], num_entries)
    found[CODE_DISTANCE] = None
    if len(rows):

        def difference(total: Array) -> Array:
            first, second, recorded = np.split(total, 3, axis=-1)
            of_adapter = _distance(first, recorded, num_entries)
            return of_adapter - _distance(second, recorded, num_entries)

        found[CODE_DISTANCE] = intervals.difference(
            difference, columns, sizes, clusters.take(rows), bounds=(-1, 1)
        )
    return found


def _columns(voices: Sequence[Sequence[Term]]) -> tuple[list[Array], npt.NDArray[np.intp]]:
    """Return sums and counts (2, n) of each voice on the prompts that all were measured on."""
    rows = [i for i, of_prompt in enumerate(zip(*voices, strict=True)) if None not in of_prompt]
    arrays = [np.array([terms[row] for row in rows], np.float64) for terms in voices]
    return [array.reshape(-1, 2).T for array in arrays], np.array(rows, np.intp)


def _histograms(
    voices: Sequence[Sequence[MeasuredTake]], num_entries: int
) -> tuple[Array, Array, npt.NDArray[np.intp]]:
    """Return flat histograms, voices side by side, of the prompts whose codes are all known.

    Returns:
        (n, voices * K * V); (n,) frames of the last voice; (n,) the prompts.
    """
    rows, histograms, num_frames = [], [], []
    for row, of_prompt in enumerate(zip(*voices, strict=True)):
        codes = [heard.codes for heard in of_prompt if heard.codes is not None and len(heard.codes)]
        if len(codes) == len(voices):
            rows.append(row)
            flat = [code_histogram(of_voice, num_entries).reshape(-1) for of_voice in codes]
            histograms.append(np.concatenate(flat))
            num_frames.append(len(codes[-1]))
    return np.array(histograms), np.array(num_frames, np.float64), np.array(rows, np.intp)


def _distance(first: Array, second: Array, num_entries: int) -> Array:
    """(..., K * V) -> (...)."""
    shape = (*first.shape[:-1], -1, num_entries)
    return code_distance(first.reshape(shape), second.reshape(shape))
