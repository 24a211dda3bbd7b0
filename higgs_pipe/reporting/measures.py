"""The table of measures: recording, codec, base and adapter side by side, with the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from higgs_pipe.listening.intervals import Difference, Estimate
from higgs_pipe.listening.spoken import (
    ADAPTER,
    BASE,
    CODEC,
    RECORDING,
    Generation,
    VoiceDifferences,
)
from higgs_pipe.listening.verdict import MeasureVerdict, Verdict
from higgs_pipe.training.results import CODEBOOK_ACCURACY, CODEBOOK_LOSS, EvalMetrics

TONES = {"better": "better", "worse": "worse", "passed": "better", "failed": "worse"}


def tone(word: str) -> str:
    """Return the style class of an outcome or status."""
    return TONES.get(word, "caution" if word == "no evidence" else "soft")


@dataclass(frozen=True)
class MeasureLine:
    """A line of the table, its numbers as text."""

    label: str
    base: str
    adapter: str
    difference: str
    recording: str = ""
    codec: str = ""
    interval: str = ""
    outcome: str = ""
    note: str = ""
    leads: bool = False
    is_detail: bool = False

    @property
    def tone(self) -> str:
        """The style class of the outcome."""
        return tone(self.outcome) if self.outcome else ""


@dataclass(frozen=True)
class SpeechMeasure:
    """A total of generated speech, and the measure by which the verdict compares it."""

    name: str
    label: str
    compared_as: str
    unit: str = ""
    needs: str = ""  # the setting without which it is not measured

    @property
    def note(self) -> str:
        """Name the quantity of the difference, if it is not that of the totals beside it."""
        return DIFFERENCE_NOTES.get(self.compared_as, "")


DIFFERENCE_NOTES = {
    "duration_error": "difference in distance from the recording's length, in octaves",
    "silence_error": "difference in distance from the recording's share",
    "longest_silence_excess": "difference in excess over the recording's",
    "repeated_frame_excess": "difference in excess over the recording's",
    "quality_shortfall": "difference in shortfall from the recording's",
}


SPEECH_MEASURES = (
    SpeechMeasure("stop_rate", "Stops by itself", "stop_rate", "%"),
    SpeechMeasure(
        "runaway_rate", "Runs away (to the cap, or over twice as long)", "runaway_rate", "%"
    ),
    SpeechMeasure("duration_ratio", "Length relative to the recording", "duration_error", "×"),
    SpeechMeasure("silence_share", "Silence", "silence_error", "%"),
    SpeechMeasure("longest_silence_seconds", "Longest silence", "longest_silence_excess", "s"),
    SpeechMeasure("repeated_frame_share", "Repeated frames", "repeated_frame_excess", "%"),
    SpeechMeasure("code_distance", "Distance of the codes from the recordings'", "code_distance"),
    SpeechMeasure("word_error_rate", "Word error rate", "word_error_rate", "%", "asr"),
    SpeechMeasure(
        "character_error_rate", "Character error rate", "character_error_rate", "%", "asr"
    ),
    SpeechMeasure(
        "speaker_similarity",
        "Similarity to the recording's voice",
        "speaker_similarity",
        "",
        "speaker",
    ),
    SpeechMeasure(
        "speaker_similarity_to_reference",
        "Similarity to the reference's voice",
        "speaker_similarity_to_reference",
        "",
        "speaker",
    ),
    SpeechMeasure(
        "speaker_similarity_to_others",
        "Similarity to the speaker's other clips",
        "speaker_similarity_to_others",
        "",
        "speaker",
    ),
    SpeechMeasure("dnsmos", "Quality (DNSMOS)", "quality_shortfall", "", "dnsmos"),
)


def line_groups(
    metrics: EvalMetrics, verdict: Verdict, generation: Generation
) -> list[tuple[str, list[MeasureLine]]]:
    """Return the lines of the table under their headings."""
    judged = {measure.name: measure for measure in verdict.measures}
    groups = [
        ("Loss in nats per label; lower is better", _loss_lines(metrics, judged)),
        ("Accuracy in % of the labels; higher is better", _accuracy_lines(metrics)),
    ]
    if generation.num_prompts:
        groups.insert(1, ("Speech", _speech_lines(generation, judged)))
    return groups


def _loss_lines(metrics: EvalMetrics, judged: Mapping[str, MeasureVerdict]) -> list[MeasureLine]:
    def line(label: str, key: str, name: str = "", is_detail: bool = False) -> MeasureLine:
        base, adapter = getattr(metrics.base, key), getattr(metrics.adapter, key)
        measure = judged.get(name)
        return MeasureLine(
            label,
            f"{base:.3f}",
            f"{adapter:.3f}",
            signed(adapter - base),
            interval=interval(measure.difference) if measure else "",
            outcome=measure.outcome if measure else "",
            leads=measure.leads if measure else False,
            is_detail=is_detail,
        )

    has_text = metrics.base.eval_text_loss is not None
    lines = [
        line("Total", "eval_loss"),
        *([line("Text", "eval_text_loss", "text_loss")] if has_text else []),
        line("Stop", "eval_stop_loss", "stop_loss"),
        line("Audio", "eval_audio_loss", "audio_loss"),
    ]
    lines += [
        line(f"codebook {k}", f"{CODEBOOK_LOSS}{k}", is_detail=True)
        for k in range(metrics.base.num_codebooks)
    ]
    text_use = judged.get("text_use")
    if text_use and text_use.difference:
        lines.append(
            MeasureLine(
                "Use of the text: audio loss with another clip’s text minus that with its own",
                "",
                "",
                signed(text_use.difference.value),
                interval=interval(text_use.difference),
                outcome=text_use.outcome,
                leads=text_use.leads,
            )
        )
    return lines


def _accuracy_lines(metrics: EvalMetrics) -> list[MeasureLine]:
    has_text = metrics.base.eval_text_accuracy is not None
    keys = ({"Text": "eval_text_accuracy"} if has_text else {}) | {
        f"codebook {k}": f"{CODEBOOK_ACCURACY}{k}" for k in range(metrics.base.num_codebooks)
    }
    lines = []
    for label, key in keys.items():
        base, adapter = getattr(metrics.base, key), getattr(metrics.adapter, key)
        percent = (f"{100 * base:.1f}", f"{100 * adapter:.1f}", signed(100 * (adapter - base), 1))
        lines.append(MeasureLine(label, *percent, is_detail=label != "Text"))
    return lines


def _speech_lines(
    generation: Generation, judged: Mapping[str, MeasureVerdict]
) -> list[MeasureLine]:
    lines = []
    for measure in SPEECH_MEASURES:
        judgement = judged[measure.compared_as]
        recording, codec, base, adapter = (
            _estimate(generation.totals(voice).get(measure.name), measure.unit)
            for voice in (RECORDING, CODEC, BASE, ADAPTER)
        )
        line = MeasureLine(
            measure.label, base, adapter, "", recording, codec, outcome=judgement.outcome
        )
        if judgement.difference is None:
            is_off = measure.needs and generation.speech_models[measure.needs] is None
            note = f"eval.speech_models.{measure.needs} is null" if is_off else ""
            lines.append(replace(line, note=note))
            continue
        scale, num_decimals = (100, 1) if measure.unit == "%" else (1, 2)
        lines.append(
            replace(
                line,
                note=measure.note,
                difference=signed(scale * judgement.difference.value, num_decimals),
                interval=interval(judgement.difference, scale, num_decimals),
                leads=judgement.leads,
            )
        )
    return lines


STOPPING = {"stop_rate": "Stops by itself", "runaway_rate": "Runs away"}


def stopping_by_temperature(generation: Generation) -> list[tuple[str, list[MeasureLine]]]:
    """Return how often base and adapter stop and run away, a line per temperature.

    There are none if they spoke at only one temperature, which the table of measures shows.
    """
    if len(generation.differences) < 2:
        return []
    return [
        (heading, [_stopping_line(generation, each, name) for each in generation.differences])
        for name, heading in STOPPING.items()
    ]


def _stopping_line(generation: Generation, at: VoiceDifferences, name: str) -> MeasureLine:
    base, adapter = (
        _estimate(generation.totals(voice, at.temperature).get(name), "%")
        for voice in (BASE, ADAPTER)
    )
    difference = at.measures.get(name)
    return MeasureLine(
        f"{at.temperature:g}",
        base,
        adapter,
        signed(100 * difference.value, 1) if difference else "",
        interval=interval(difference, 100, 1),
    )


def _estimate(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return ""
    value = 100 * estimate.value if unit == "%" else estimate.value
    return f"{value:.1f} %" if unit == "%" else f"{value:.2f} {unit}".rstrip()


def signed(value: float, num_decimals: int = 3) -> str:
    """Render a number with its sign, and 0 without."""
    text = f"{abs(value):.{num_decimals}f}"
    if not float(text):
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+") + text


def interval(difference: Difference | None, scale: float = 1, num_decimals: int = 3) -> str:
    """Render the bounds of an interval, or nothing if there is none."""
    if difference is None or difference.low is None or difference.high is None:
        return ""
    low, high = (signed(scale * bound, num_decimals) for bound in (difference.low, difference.high))
    return f"{low} to {high}"
