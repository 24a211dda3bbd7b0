"""JSON results of full checkpoints: how they were merged and verified."""

from typing import ClassVar

from higgs_pipe.data.results import Result, ResultPart


class MergeRecord(Result):
    """``merge.json`` of a full checkpoint: what was merged, and the effect of rounding."""

    made_by: ClassVar[str] = "merge_adapter"

    form: str
    dtype: str
    base: str  # a Hub id, or the name of a folder
    base_revision: str | None
    base_fingerprint: str
    codec: str
    codec_revision: str | None
    codec_fingerprint: str
    adapter_sha256: str
    num_weights: int
    num_changed: int
    max_rounding_error: float
    relative_rounding_error: float  # RMS, relative to the weights that were rounded
    rounding_error_of_change: float  # RMS, relative to the changes
    higgs_pipe: str  # version
    git_commit: str | None


class FirstSecond(ResultPart):
    """The first second that adapter and checkpoint speak greedily after one prompt."""

    sample_id: str
    num_frames: int  # delayed frames that hold the codes of the second
    num_equal_frames: int  # before the first difference
    margin: float | None  # between the logits of the two codes there
    largest_margin_of_a_tie: float


class FormProof(Result):
    """``proof.json`` of a full checkpoint, by a process that loaded it afresh."""

    made_by: ClassVar[str] = "merge_adapter"

    form: str
    num_tensors_of_equal_bits: int | None  # original: against native names, merged once more
    # Of a tensor's weights, against PEFT's own merge.
    largest_share_rounded_otherwise: float
    logit_difference: float  # RMS, relative to the adapter's logits
    logit_difference_bound: float
    max_logit_difference: float
    logit_change: float  # RMS of adapter minus base, relative likewise
    eval_loss: float
    eval_loss_of_adapter: float
    first_seconds: list[FirstSecond]
