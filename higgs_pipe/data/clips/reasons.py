"""Reasons for rejecting a row: a code and a remedy, the same wherever the fault is found."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from higgs_pipe.data.manifests.row import Row


class Reason(StrEnum):
    """A reason code with its remedy."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> Self:
        """Return the code as text that carries its remedy."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.remedy = remedy
        return reason

    AUDIO_MISSING = (
        "audio_missing",
        "put the file there, or fix `audio` (a path relative to the manifest)",
    )
    AUDIO_UNREADABLE = "audio_unreadable", "export it again as WAV or FLAC, or drop the row"
    AUDIO_NON_FINITE = (
        "audio_non_finite",
        "export it again, preferably as 16-bit WAV, or drop the row",
    )
    AUDIO_OUT_OF_RANGE = (
        "audio_out_of_range",
        "export it again with samples between -1 and 1, preferably as 16-bit WAV, or drop the row",
    )
    SEGMENT_OUTSIDE = (
        "segment_outside",
        "fix `start_seconds` and `end_seconds` (a Kaldi segment, an offset, a cut), or the file",
    )
    TEXT_EMPTY = "text_empty", "write down what is said, or drop the row"
    CONTROL_TOKEN = "control_token", "remove it: the model would read it as a command"
    UNKNOWN_TAG = "unknown_tag", "use a known tag, or remove it: it would be read aloud"
    FOREIGN_MARK = (
        "foreign_mark",
        "remove it, or train only base models that know it (base_model, experiments)",
    )
    NO_SCENES = (
        "no_scenes",
        "leave out `scene`, or train only base models whose prompts have scenes",
    )
    NO_SYSTEM_MESSAGE = (
        "no_system_message",
        "leave it out, or train only base models whose prompts have one",
    )
    SHORT_REFERENCE = (
        "short_reference",
        "name a longer recording, or train only base models that take a short one",
    )
    CHANNELS_CANCEL = (
        "channels_cancel",
        "invert one channel, or set validate.cancelling_channels to loudest",
    )
    SILENT = "silent", "record it again, or drop the row"
    TOO_SHORT = "too_short", "drop the row, or lower validate.min_clip_seconds"
    TOO_LONG = "too_long", "cut it into utterances, or raise validate.max_clip_seconds"
    HIGH_SAMPLE_RATE = (
        "high_sample_rate",
        "export it again at 48,000 Hz, or raise validate.max_sample_rate_hz",
    )
    REFERENCE_MISSING = (
        "reference_missing",
        "put the file there, or fix `ref_audio` (a path relative to the manifest)",
    )
    REFERENCE_UNREADABLE = (
        "reference_unreadable",
        "name another recording as `ref_audio`, or leave out `ref_audio` and `ref_text`",
    )
    REFERENCE_IS_TARGET = (
        "reference_is_target",
        "name another recording as `ref_audio`, or leave out `ref_audio` and `ref_text`",
    )
    DURATION_MISMATCH = (
        "duration_mismatch",
        "fix or remove the manifest's duration, or provide the right file",
    )
    SAMPLE_RATE_MISMATCH = (
        "sample_rate_mismatch",
        "fix or remove the manifest's sample rate, or provide the right file",
    )
    CONVERSATION_LAYOUT = (
        "conversation_layout",
        "give each reference as a user turn with its text and an assistant turn with its "
        "recording, then the text to speak and its recording",
    )
    # Filters.
    CLIPPED = "clipped", "use an original with more headroom, or drop the row"
    MOSTLY_SILENT = "mostly_silent", "cut the pauses out, or drop the row"
    LEADING_SILENCE = "leading_silence", "trim it, or give `start_seconds`"
    TRAILING_SILENCE = "trailing_silence", "trim it, or give `end_seconds`"
    NARROW_BAND = "narrow_band", "use an original that was never downsampled, or drop the row"
    DC_OFFSET = "dc_offset", "subtract the mean sample from it, or drop the row"
    NOISY = "noisy", "use a cleaner recording, or drop the row"
    QUIET = "quiet", "amplify it, unless it is only noise, or drop the row"
    LOW_SAMPLE_RATE = "low_sample_rate", "use an original with a higher rate, or drop the row"
    FEW_CHARACTERS_PER_SECOND = (
        "few_characters_per_second",
        "complete the transcript, or cut the pauses out",
    )
    MANY_CHARACTERS_PER_SECOND = (
        "many_characters_per_second",
        "remove what the recording does not say",
    )
    FEW_WORDS_PER_SECOND = "few_words_per_second", "complete the transcript, or cut the pauses out"
    MANY_WORDS_PER_SECOND = "many_words_per_second", "remove what the recording does not say"
    WRONG_SCRIPT = "wrong_script", "fix `language` (sr-Latn names a script), or the text"
    # Speech models.
    WORD_ERROR_RATE = "word_error_rate", "write down what is said, or drop the row"
    LOW_STOI = "low_stoi", "use a cleaner recording, or drop the row"
    LOW_PESQ = "low_pesq", "use a cleaner recording, or drop the row"
    LOW_SI_SDR = "low_si_sdr", "use a cleaner recording, or drop the row"
    # What a row shares with others.
    SPLIT_CONFLICT = (
        "split_conflict",
        "give rows that share audio, text or dialogue (or a speaker, if data.split_by is "
        "speaker) the same `split`; for texts alone, data.keep_text_together can be false",
    )
    ALSO_IN_TRAINING = (
        "also_in_training",
        "drop the row from eval.other_manifest, or from training (data.keep_text_together: false "
        "allows equal texts)",
    )
    DIALOGUE_INCOMPLETE = (
        "dialogue_incomplete",
        "fix or add that turn, or remove `dialogue_id` and `turn` from its rows",
    )


@dataclass(frozen=True)
class Fault:
    """A fault of a recording or a row."""

    reason: Reason
    fact: str


@dataclass(frozen=True)
class Rejection:
    """A rejected row; its length is known if its file could be opened."""

    row: Row
    fault: Fault
    duration_seconds: float | None

    @property
    def message(self) -> str:
        """The fact and the remedy, in a sentence."""
        return f"{self.fault.fact}; {self.fault.reason.remedy}"

    def __str__(self) -> str:
        return f"{self.row.place}: {self.fault.reason}: {self.message}"
