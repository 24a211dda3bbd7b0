"""The verdict on an adapter: better, worse or no evidence, per measure and overall.

The rules are written out for users in docs/verdict.md::

    verdict = judge(differences, audio_loss=..., num_entries=1026, text_use=..., clustered_by=...)
    verdict.write(path)
    verdict.require("not_worse")  # raises UserError, after everything is written
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.errors import UserError
from higgs_pipe.listening.intervals import LEVEL, Difference

Outcome = Literal["better", "worse", "no evidence", "not measured"]

MIN_CLIPS = 8
MIN_LOSS_DIFFERENCE = 0.001  # nats; less is what rounding in bfloat16 can make


@dataclass(frozen=True)
class Measure:
    """A measure by which an adapter and its base are compared."""

    name: str  # key of the differences
    words: str
    unit: str  # empty: a share, or a number without a unit
    better: Literal["lower", "higher"]
    leads: bool = False  # can make the overall verdict
    negligible: float = 0.0  # differences up to this much count as none
    only_where_trained: bool = False  # left out for a base that has no such loss


@dataclass(frozen=True)
class Headlines:
    """The overall verdict in words."""

    better: str
    worse: str
    no_evidence: str
    shows_audio_loss: bool = False  # without evidence too: how much could be forgotten at most


# By the setting that names the recordings: those that the adapter is for, and others.
HEADLINES = {
    "manifest": Headlines(
        better="Better than the base.",
        worse="Worse than the base.",
        no_evidence="No evidence that the adapter is better or worse than the base.",
    ),
    "eval.other_manifest": Headlines(
        better="Nothing forgotten: better than the base on the other recordings too.",
        worse="Worse than the base on the other recordings: the adapter has forgotten something.",
        no_evidence="No evidence that the adapter has forgotten anything.",
        shows_audio_loss=True,
    ),
}

NOT_CALLED_BETTER = "So the adapter is not called better, although some measures are."

NATS = "nats per label"
MEASURES = (
    Measure("audio_loss", "audio loss", NATS, "lower", True, MIN_LOSS_DIFFERENCE),
    Measure("stop_loss", "stop loss", NATS, "lower", True, MIN_LOSS_DIFFERENCE),
    Measure(
        "text_loss",
        "text loss",
        NATS,
        "lower",
        negligible=MIN_LOSS_DIFFERENCE,
        only_where_trained=True,
    ),
    Measure("text_use", "use of the text", NATS, "higher", False, MIN_LOSS_DIFFERENCE),
    Measure("stop_rate", "share of prompts that stop", "", "higher", True),
    Measure("runaway_rate", "share of prompts that run away", "", "lower", True),
    Measure("duration_error", "error of the length", "octaves", "lower", True),
    Measure("silence_error", "error of the share of silence", "", "lower"),
    Measure("longest_silence_excess", "longest silence beyond the recording's", "s", "lower"),
    Measure("repeated_frame_excess", "repeated frames beyond the recording's", "", "lower"),
    Measure("code_distance", "distance of the codes from the recordings'", "", "lower"),
    Measure("word_error_rate", "word error rate", "", "lower", True),
    Measure("character_error_rate", "character error rate", "", "lower"),
    Measure("speaker_similarity", "similarity to the recording's voice", "cosine", "higher", True),
    Measure(
        "speaker_similarity_to_reference", "similarity to the reference's voice", "cosine", "higher"
    ),
    Measure(
        "speaker_similarity_to_others",
        "similarity to the speaker's other clips",
        "cosine",
        "higher",
    ),
    Measure("quality_shortfall", "quality below the recording's", "DNSMOS", "lower", True),
)


class MeasureVerdict(ResultPart):
    """Verdict of one measure on the adapter."""

    name: str
    outcome: Outcome
    leads: bool
    difference: Difference | None  # adapter minus base; None: not measured
    sentence: str


class Verdict(Result):
    """``verdict.json``."""

    made_by: ClassVar[str] = "eval_adapter"

    overall: Literal["better", "worse", "no evidence"]
    sentences: list[str]  # in words: the verdict, then its reasons
    clustered_by: Literal["speaker", "recording", "clip"]
    measures: list[MeasureVerdict]

    def require(self, wanted: Literal["not_worse", "better"]) -> None:
        """Raise an error if the adapter must not be packaged.

        Raises:
            UserError: The adapter is worse, or with ``better``, anything but better.
        """
        if self.overall == "better" or (wanted == "not_worse" and self.overall != "worse"):
            return
        raise UserError(
            f"eval.require is {wanted}, but the verdict is {self.overall}:\n"
            + "\n".join(self.sentences)
            + "\nTrain another adapter, or set eval.require to null to ship this one."
        )


def judge(
    differences: Mapping[str, Difference | None],
    *,
    audio_loss: float,
    num_entries: int,
    text_use: Difference | None,
    clustered_by: Literal["speaker", "recording", "clip"],
    clips_of: str = "manifest",
) -> Verdict:
    """Judge an adapter by its differences to the base.

    Args:
        differences: Adapter minus base, by the names of :data:`MEASURES`; None or missing means
            not measured.
        audio_loss: The adapter's, nats per label.
        num_entries: V, entries of a codebook: a blind guess has a loss of ln V.
        text_use: The adapter's audio loss with other clips' texts minus that with the right ones;
            None if not measured.
        clustered_by: The unit by which the intervals are clustered.
        clips_of: The setting that names the recordings, a key of :data:`HEADLINES`.

    Raises:
        KeyError: A difference has the name of no measure.
    """
    unknown = differences.keys() - {measure.name for measure in MEASURES}
    if unknown:
        raise KeyError(f"not in MEASURES: {sorted(unknown)}")
    measures = [
        judge_measure(measure, differences.get(measure.name))
        for measure in MEASURES
        if measure.name in differences or not measure.only_where_trained
    ]
    leading = [measure for measure in measures if measure.leads]
    surely = _after_correction(leading)
    surely_worse = [m for m in surely if m.outcome == "worse"]
    surely_better = [m for m in surely if m.outcome == "better"]
    doubts = _doubts(audio_loss, num_entries, text_use)
    perhaps_worse = [m.sentence for m in leading if m.outcome == "worse" and m not in surely]
    headlines = HEADLINES[clips_of]

    overall: Literal["better", "worse", "no evidence"]
    if surely_worse:
        overall, reasons = "worse", surely_worse
        headline = headlines.worse
    elif surely_better and not doubts and not perhaps_worse:
        overall, reasons = "better", surely_better
        headline = headlines.better
    else:
        overall, reasons = "no evidence", surely_better
        headline = headlines.no_evidence
    sentences = [headline, *(m.sentence for m in reasons), *perhaps_worse, *doubts]
    if overall == "no evidence" and surely_better:
        sentences.append(NOT_CALLED_BETTER)
    if overall == "no evidence" and headlines.shows_audio_loss:
        sentences.append(next(m.sentence for m in measures if m.name == "audio_loss"))
    for text in measures:
        if text.name == "text_loss" and text.outcome == "better" and not surely_better:
            sentences.append(f"{text.sentence} Text loss alone does not decide.")
    return Verdict(
        overall=overall, sentences=sentences, clustered_by=clustered_by, measures=measures
    )


def judge_measure(measure: Measure, difference: Difference | None) -> MeasureVerdict:
    """Judge one measure by its interval, whatever the others say."""
    outcome, sentence = _outcome(measure, difference)
    return MeasureVerdict(
        name=measure.name,
        outcome=outcome,
        leads=measure.leads,
        difference=difference,
        sentence=f"{measure.words[0].upper()}{measure.words[1:]}: {sentence}.",
    )


def _outcome(measure: Measure, difference: Difference | None) -> tuple[Outcome, str]:
    if difference is None:
        return "not measured", "not measured"
    if difference.num_clips < MIN_CLIPS:
        return (
            "no evidence",
            f"no evidence with {difference.num_clips} clips, at least {MIN_CLIPS} are needed",
        )
    if difference.low is None or difference.high is None:
        return "no evidence", f"no evidence with {difference.num_clusters} independent clips"
    gain_low, gain_high = difference.low, difference.high
    if measure.better == "lower":
        gain_low, gain_high = -difference.high, -difference.low
    if gain_low > measure.negligible:
        outcome: Outcome = "better"
    elif gain_high < -measure.negligible:
        outcome = "worse"
    else:
        outcome = "no evidence"
    return outcome, f"{outcome}, {with_interval(difference, measure.unit)}"


def with_interval(difference: Difference, unit: str) -> str:
    """Render a difference: ``-0.25 nats per label (95 % interval -0.4 to -0.1)``."""
    text = f"{signed(difference.value)} {unit}".rstrip()
    if difference.low is None or difference.high is None:
        return text
    bounds = f"{signed(difference.low)} to {signed(difference.high)}"
    return f"{text} ({100 * LEVEL:g} % interval {bounds})"


def signed(value: float) -> str:
    """Render a difference: ``+0.25``, ``-3``, ``0``."""
    return f"{value:+.3g}" if value else "0"


def _after_correction(leading: list[MeasureVerdict]) -> list[MeasureVerdict]:
    """Return the measures that are better or worse even after correction (Holm, 1979).

    Without it, at least one of eight independent measures would differ by chance in one evaluation
    of three.
    """
    tested = sorted(
        (measure.difference.p_value, measure.name, measure)
        for measure in leading
        if measure.difference is not None
        and measure.difference.p_value is not None
        and measure.difference.num_clips >= MIN_CLIPS
    )
    found = []
    for rank, (p_value, _, measure) in enumerate(tested):
        if p_value > (1 - LEVEL) / (len(tested) - rank):
            break
        found.append(measure)
    return [measure for measure in leading if measure in found]


def _doubts(audio_loss: float, num_entries: int, text_use: Difference | None) -> list[str]:
    """Return the reasons, apart from worse measures, not to call an adapter better."""
    doubts = []
    blind_guess = math.log(num_entries)
    if audio_loss > blind_guess:
        doubts.append(
            f"The adapter has not learned to speak: its audio loss, {audio_loss:.2f}, is above a "
            f"blind guess, ln {num_entries} = {blind_guess:.2f}."
        )
    if text_use is not None and (text_use.low is None or text_use.low <= 0):
        doubts.append(
            "Nothing shows that the adapter follows its text: with the text of another clip, its "
            f"audio loss differs by {with_interval(text_use, NATS)}."
        )
    return doubts
