"""Every setting, declared once: type, default, bounds, unit and description.

``workflow/schemas/config.schema.yaml`` is generated from here
(``python -m higgs_pipe.config.schema > workflow/schemas/config.schema.yaml``); Snakemake checks the
user's ``config.yaml`` against it and passes each stage only the part that it reads.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from higgs_pipe.config.rules import (
    IS_NULL,
    IS_SET,
    IS_TRUE,
    IS_ZERO,
    EachIs,
    Forbidden,
    IsOdd,
    OneOf,
    Section,
)

Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "bfloat16", "float32", "float64"]
AutoOrBool = Literal["auto"] | bool
Quantization = Literal["8bit", "4bit"]
CodecDtype = Literal["auto", "bfloat16", "float32"]
MergedDtype = Literal["bfloat16", "float32"]
PackageForm = Literal["peft", "merged", "original"]

# With what is added to it, a name must fit into the 255 bytes of a file name. The package of an
# experiment `a` is a folder `a` and a file `a.zip`, which therefore is no name.
EXPERIMENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$(?<!\.zip)(?!\n)"
DEFAULT_SYSTEM_PROMPT = "Generate audio following instruction."

Text = Annotated[str, Field(min_length=1)]
# Checked while planning, by planning.user_files.path_fault.
IS_PATH: dict[str, Any] = {"format": "path"}
UserPath = Annotated[str, Field(min_length=1, json_schema_extra=IS_PATH)]


class Sampling(Section):
    """Sampling of codes in generation; the defaults are those of Higgs Audio's examples."""

    temperature: float = Field(
        1.0, ge=0, le=10, description="Temperature; 0 always takes the most likely code."
    )
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Draw from the smallest set of codes with this total probability.",
    )
    top_k: int = Field(50, ge=0, description="Draw from this many most likely codes; 0: all.")
    ras_win_len: int = Field(
        7,
        ge=0,
        description="Number of recent frames in which repeats of a code are counted; 0: off, as "
        "with temperature 0.",
    )
    ras_win_max_num_repeat: int = Field(
        2,
        ge=1,
        description="A code that occurs this often in them is drawn again at temperature 1.",
    )
    max_seconds: float = Field(
        30.0,
        gt=0,
        description="Longest speech per prompt; speech that does not stop is cut there.",
    )
    seed: int = Field(0, ge=0, description="Another seed gives another take.")

    def max_frames(self, frame_rate_hz: float) -> int:
        """Return the whole frames in ``max_seconds``, at least 1."""
        return max(1, math.floor(self.max_seconds * frame_rate_hz + 1e-6))


class ShardConfig(Section):
    """Number of shards."""

    num_shards: int = Field(
        8,
        ge=1,
        le=2_000,
        description="Number of shards: one job measures each, another tokenizes it; a hash of its "
        "id assigns each row to a shard.",
    )


class DataConfig(ShardConfig):
    """Shards, and the split into train and eval."""

    eval_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of the clips held out for evaluation."
    )
    split_seed: int = Field(0, ge=0, description="Another seed gives another train/eval split.")
    split_by: Literal["clip", "speaker", "recording", "given"] = Field(
        "clip",
        description="What is held out as a unit: clip, speaker, recording (all its segments); "
        "given: every row of the manifest names its split.",
    )
    keep_text_together: bool = Field(
        True,
        description="Keep clips with equal text (ignoring case and punctuation) in one split.",
    )
    keep_context_together: bool = Field(
        True,
        description="Keep a clip in the same split as the conversations that contain its audio.",
    )


class FilterConfig(Section):
    """Limits on measured sound and text; a clip outside one is rejected, null is off."""

    max_clipping_fraction: float | None = Field(
        None, ge=0, le=1, description="Largest share of samples at full scale."
    )
    max_silence_fraction: float | None = Field(
        None, ge=0, le=1, description="Largest share of silence, pauses included."
    )
    max_leading_silence_seconds: float | None = Field(
        None, ge=0, description="Longest silence before the first sound."
    )
    max_trailing_silence_seconds: float | None = Field(
        None, ge=0, description="Longest silence after the last sound."
    )
    min_bandwidth_hz: float | None = Field(
        None, ge=0, description="Lowest bandwidth; telephone speech has less than 4000 Hz."
    )
    max_dc_offset: float | None = Field(
        None, ge=0, le=1, description="Largest distance of the mean sample from 0; full scale is 1."
    )
    min_snr_db: float | None = Field(
        None, ge=0, le=100, description="Lowest estimated signal-to-noise ratio, in dB."
    )
    min_rms_dbfs: float | None = Field(
        None, ge=-100, le=0, description="Lowest level, in dB relative to full scale."
    )
    min_sample_rate_hz: int | None = Field(
        8000, ge=1, description="Lowest sample rate of the file, in Hz; telephone speech has 8000."
    )
    min_characters_per_second: float | None = Field(
        None, ge=0, description="Slowest speech, in characters per second without white space."
    )
    max_characters_per_second: float | None = Field(
        None, gt=0, description="Fastest speech, in characters per second without white space."
    )
    min_words_per_second: float | None = Field(
        None,
        ge=0,
        description="Slowest speech, in words per second (letters, in scripts without spaces).",
    )
    max_words_per_second: float | None = Field(
        None,
        gt=0,
        description="Fastest speech, in words per second (letters, in scripts without spaces).",
    )
    require_language_script: bool = Field(
        False, description="Reject text in a script that its language does not use."
    )
    max_word_error_rate: float | None = Field(
        None, ge=0, description="Largest word error rate of the transcript of speech_models.asr."
    )
    min_stoi: float | None = Field(
        None, ge=0, le=1, description="Lowest intelligibility by speech_models.quality."
    )
    min_pesq: float | None = Field(
        None, ge=-0.5, le=4.5, description="Lowest perceptual quality by speech_models.quality."
    )
    min_si_sdr_db: float | None = Field(
        None, description="Lowest signal-to-distortion ratio by speech_models.quality, in dB."
    )


class SpeechModelConfig(Section):
    """Models that listen to every recording; null is off."""

    device: Device = Field("auto", description="Device that they run on.")
    asr: UserPath | None = Field(
        None, description="Transformers speech recogniser: a directory or a Hub id."
    )
    quality: UserPath | None = Field(
        None,
        description="Weights of torchaudio's squim_objective_base: a file with its state_dict.",
    )
    speaker: UserPath | None = Field(
        None,
        description="Transformers x-vector speaker model: a directory or a Hub id.",
    )

    @property
    def is_on(self) -> bool:
        """Return whether any model is named."""
        return any((self.asr, self.quality, self.speaker))


class MeasureConfig(Section):
    """Settings that decide which recordings are decoded and how they are measured."""

    max_clip_seconds: float = Field(
        30.0, gt=0, description="Longer clips are rejected, and never decoded."
    )
    max_sample_rate_hz: int = Field(
        384_000,
        ge=1,
        description="Clips of a higher sample rate are rejected, and never decoded.",
    )
    cancelling_channels: Literal["loudest", "reject"] = Field(
        "loudest",
        description="For channels that cancel when mixed to mono, for example because one has "
        "inverted polarity: use the loudest channel, or reject the recording.",
    )
    speech_models: SpeechModelConfig = SpeechModelConfig()


# What a setting of `validate` needs of `validate.speech_models`.
NEEDED_MODELS = {
    "fill_missing_text": "asr",
    "filters.max_word_error_rate": "asr",
    "filters.min_stoi": "quality",
    "filters.min_pesq": "quality",
    "filters.min_si_sdr_db": "quality",
}


class ValidateConfig(MeasureConfig):
    """Requirements that a clip must meet."""

    forbidden = tuple(
        Forbidden(
            f"{setting} needs speech_models.{model}",
            {setting: IS_SET, f"speech_models.{model}": IS_NULL},
        )
        for setting, model in NEEDED_MODELS.items()
    )

    min_clip_seconds: float = Field(0.3, gt=0, description="Shorter clips are rejected.")
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="Stop the run if a larger share of rows is rejected."
    )
    fill_missing_text: bool = Field(
        False, description="Fill in empty texts with the transcript of speech_models.asr."
    )
    check_texts: bool = Field(
        True,
        description="Stop if the texts look like another column of the manifest: few different "
        "texts for many clips, speaker names, or texts far too short for their recordings.",
    )
    filters: FilterConfig = FilterConfig()


class TokenizeConfig(Section):
    """Encoding of audio into codes."""

    device: Device = Field("auto", description="Device that the codec runs on.")
    dtype: CodecDtype = Field(
        "float32", description="Dtype of the codec on a GPU; on a CPU it is always float32."
    )
    max_batch_seconds: float | None = Field(
        None,
        gt=0,
        description="Seconds of audio encoded at once, in clips of equal length; null: on a GPU up "
        "to 240, as memory allows; on a CPU one clip at a time.",
    )


class TaskMix(Section):
    """Relative weights of the tasks; each clip or dialogue gets one task, drawn by seed.

    A row with its own reference is always cloning, unless cloning has the weight 0.
    """

    forbidden = (
        Forbidden(
            "at least one task needs a weight above 0",
            dict.fromkeys(("speech", "cloning", "dialogue", "dialogue_cloning"), IS_ZERO),
        ),
    )

    speech: float = Field(1.0, ge=0, description="Text to speech without a reference voice.")
    cloning: float = Field(
        1.0, ge=0, description="Text to speech after a reference clip of the speaker."
    )
    dialogue: float = Field(
        1.0, ge=0, description="All turns of a dialogue, without reference voices."
    )
    dialogue_cloning: float = Field(
        1.0, ge=0, description="All turns of a dialogue, after a reference clip of each speaker."
    )


class PackConfig(Section):
    """Building of training rows from codes and text."""

    max_tokens: int = Field(
        2048,
        ge=64,
        le=131_072,
        description="Positions in a packed row: text tokens and audio frames.",
    )
    tasks: TaskMix = TaskMix()
    scene_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of samples that lose their scene."
    )
    reference_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of reference recordings that are left out."
    )
    system_prompt: str = Field(
        DEFAULT_SYSTEM_PROMPT, min_length=1, description="System message of each sample."
    )
    clean_text: bool = Field(
        True,
        description="Clean the target texts as Higgs Audio's inference code does (reference "
        "transcripts stay as they are); do the same in generation.",
    )
    seed: int = Field(0, ge=0, description="Seed of the random draws: tasks, references, dropouts.")


LoraPreset = Literal["attention", "audio", "all"]


class LoraSettings(Section):
    """The adapter, in PEFT's terms."""

    forbidden = (
        *(
            Forbidden(
                f"init olora and pissa cannot be combined with {key}",
                {"init": OneOf("olora", "pissa"), key: IS_TRUE},
            )
            for key in ("use_rslora", "use_dora")
        ),
        Forbidden("init orthogonal needs an even r", {"init": OneOf("orthogonal"), "r": IsOdd()}),
    )

    r: int = Field(16, ge=1, le=1024, description="Rank.")
    alpha: int = Field(32, ge=1, description="Scale: the update is multiplied by alpha / r.")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="Dropout on the input of the LoRA matrices."
    )
    target_modules: LoraPreset | Annotated[list[Text], Field(min_length=1)] = Field(
        "all",
        description="Layers that get LoRA: attention, audio (attention and audio FFN), all (both "
        "and the text FFN), or a list of name endings such as audio_mlp.down_proj.",
    )
    use_rslora: bool = Field(
        False, description="Scale by alpha / sqrt(r) instead (rank-stabilised LoRA)."
    )
    use_dora: bool = Field(
        False, description="Weight-decomposed LoRA (DoRA), with separate magnitudes; slower."
    )
    init: Literal["default", "gaussian", "orthogonal", "olora", "pissa"] = Field(
        "default",
        description="Initialisation, as PEFT names it; olora and pissa are saved as plain LoRA of "
        "twice the rank.",
    )
    train_in_full: list[Literal["audio_head", "audio_embeddings"]] = Field(
        [], description="Parts of the base to train in full and save with the adapter."
    )
    trainable_tokens: list[Text] = Field(
        [],
        description="Tokens of the base's tokenizer whose text embeddings are trained, for "
        "example reserved tokens that the transcripts use.",
    )


class LossWeights(Section):
    """Weights of the objective: text * T + audio * sum of c_k A_k / sum of c_k + eos * E.

    In nats per label: T is the mean text loss, A_k that of codebook k, E that of the stream EOS
    labels, which also count in A_k.
    """

    forbidden = (
        Forbidden("text or audio needs a weight above 0", {"text": IS_ZERO, "audio": IS_ZERO}),
        Forbidden("a codebook needs a weight above 0", {"codebooks": EachIs(IS_ZERO)}),
    )

    text: float = Field(1.0, ge=0, description="Weight of the mean text loss.")
    audio: float = Field(1.0, ge=0, description="Weight of the mean of the codebooks' losses.")
    eos: float = Field(
        0.0,
        ge=0,
        description="Extra weight of the mean loss of the stream EOS labels, in addition to their "
        "share in the audio loss; raise it if generation does not stop.",
    )
    codebooks: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="Weights of the codebooks' losses in their mean; null: equal weights."
    )


class TrainConfig(Section):
    """Training of the adapter."""

    forbidden = (
        Forbidden(
            "keep_best_by stop_rate and length_ratio need sample_steps",
            {"keep_best_by": OneOf("stop_rate", "length_ratio"), "sample_steps": IS_NULL},
        ),
        Forbidden(
            "lora.init olora and pissa cannot be combined with init_adapter",
            {"init_adapter": IS_SET, "lora.init": OneOf("olora", "pissa")},
        ),
        Forbidden(  # PEFT decomposes in float32
            "lora.init olora and pissa cannot be combined with dtype float64",
            {"dtype": OneOf("float64"), "lora.init": OneOf("olora", "pissa")},
        ),
        Forbidden(  # PEFT refuses weights that are not floats
            "lora.init pissa cannot be combined with quantization",
            {"quantization": IS_SET, "lora.init": OneOf("pissa")},
        ),
    )

    num_processes: int = Field(
        1, ge=1, le=1024, description="Number of processes of `accelerate launch`, one GPU each."
    )
    num_machines: int = Field(
        1, ge=1, le=1024, description="Number of machines over which `srun` spreads the processes."
    )
    main_process_ip: str | None = Field(
        None, min_length=1, description="Address of the first machine; null asks Slurm."
    )
    main_process_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of the first machine; null: 20000 + job number modulo 10000, or on a "
        "single machine any free port.",
    )
    accelerate_config: UserPath | None = Field(
        None,
        description="Your own `accelerate config` file; it replaces the four settings above.",
    )
    timeout_seconds: float = Field(
        1800.0,
        gt=0,
        description="Training ends if a process does not respond for this many seconds.",
    )
    device: Device = Field("auto", description="Device that training runs on.")
    dtype: Dtype = Field(
        "auto", description="Dtype of the frozen base; auto: bfloat16 where the device supports it."
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps the optimizer state in 8 bits (bitsandbytes, CUDA)."
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="Learning rate after the warmup: cosine or linear decay to 0, or constant.",
    )
    num_epochs: int = Field(2, ge=1, description="Passes over the packed rows.")
    max_steps: int | None = Field(
        None, ge=1, description="Optimizer steps, instead of num_epochs; null: num_epochs decides."
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many held-out losses in a row without a new best; null: off.",
    )
    rows_per_step: int = Field(
        16, ge=1, description="Packed rows per optimizer step, over all processes together."
    )
    rows_per_micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Packed rows per forward pass of a process; auto: as many as fit into memory, "
        "if that is faster.",
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps during which the rate rises from 0."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    eval_steps: int = Field(50, ge=1, description="Steps between held-out losses.")
    keep_best_by: Literal["eval_loss", "stop_rate", "length_ratio"] = Field(
        "eval_loss",
        description="Which adapter is kept: that with the lowest held-out loss, or that whose "
        "samples have the highest stop rate or a length ratio nearest to 1.",
    )
    sample_steps: int | None = Field(
        None,
        ge=1,
        description="Steps between samples: held-out prompts spoken by the adapter; null: none.",
    )
    num_samples: int = Field(4, ge=1, le=100, description="Prompts spoken at each of these steps.")
    sampling: Sampling = Sampling()
    log_steps: int = Field(
        10, ge=1, description="Steps between log lines, which also show predictions beside labels."
    )
    save_steps: int = Field(
        50, ge=1, description="Steps between checkpoints: a kill loses at most this many."
    )
    save_total_limit: int = Field(2, ge=1, description="Number of newest checkpoints to keep.")
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        "tensorboard", description="Tracker that gets the curves, in addition to metrics.jsonl."
    )
    gradient_checkpointing: Literal["auto"] | bool | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="Recompute layers in the backward pass: less memory, but slower. auto: as few "
        "as memory requires; true: every layer; n: the first n layers.",
    )
    max_logits_mb: float = Field(
        64.0,
        gt=0,
        le=1_000_000,
        description="Megabytes for logits and their gradient; labels beyond that go in chunks.",
    )
    quantization: Quantization | None = Field(
        None,
        description="Keep the frozen base's linear layers in 8 or 4 bits (CUDA, bitsandbytes).",
    )
    compile: AutoOrBool = Field(
        "auto",
        description="Compile the layers around attention: faster and with less memory on a GPU, "
        "after half a minute; auto: if it saves time.",
    )
    cuda_graphs: AutoOrBool = Field(
        "auto",
        description="Replay each micro-step as one CUDA graph, for a GPU that waits for the host; "
        "auto: if it saves time, in runs of one process.",
    )
    tf32: bool = Field(True, description="Allow TF32 in float32 matrix products on CUDA.")
    preflight: bool = Field(
        True, description="Check data, objective and gradients before the first step."
    )
    stop_on_alarm: bool = Field(
        False, description="Save a checkpoint and stop at an alarm; otherwise it is a warning."
    )
    seed: int = Field(0, ge=0, description="Seed of row order, LoRA initialisation and dropout.")
    init_adapter: UserPath | None = Field(
        None,
        description="Folder of an adapter or package to continue from, with the same base and the "
        "same lora settings; null: a new adapter.",
    )
    loss_weights: LossWeights = LossWeights()
    lora: LoraSettings = LoraSettings()


class EvalSpeechModelConfig(Section):
    """Models that listen to generated speech; null is off: their measures are "not measured"."""

    asr: UserPath | None = Field(
        None, description="Transformers speech recogniser: a directory or a Hub id."
    )
    speaker: UserPath | None = Field(
        None,
        description="Transformers x-vector speaker model: a directory or a Hub id.",
    )
    dnsmos: UserPath | None = Field(
        None,
        description="Weights of DNSMOS: the file sig_bak_ovr.onnx of the DNS Challenge.",
    )


class AcceptConfig(Section):
    """Verdict that an adapter needs."""

    require: Literal["not_worse", "better"] | None = Field(
        None, description="Verdict without which no adapter is packaged; null: any."
    )


class EvaluateConfig(Section):
    """Computation of the held-out loss, and speech on held-out prompts."""

    num_processes: int = Field(1, ge=1, le=1024, description="Processes of `accelerate launch`.")
    device: Device = Field("auto", description="Device that evaluation runs on.")
    dtype: Dtype = Field(
        "auto", description="Dtype of the base; auto: bfloat16 where the device supports it."
    )
    rows_per_batch: int = Field(1, ge=1, description="Packed rows per forward pass.")
    compile: AutoOrBool = Field(
        "auto", description="Compile the layers around attention; auto: if it saves time."
    )
    num_prompts: int = Field(
        20,
        ge=0,
        description="Number of held-out clips that base and adapter speak; 0 speaks nothing.",
    )
    prompts_per_batch: int = Field(8, ge=1, description="Number of prompts spoken at once.")
    temperatures: list[Annotated[float, Field(ge=0, le=10)]] = Field(
        [1.0],
        min_length=1,
        description="Sampling temperatures; the verdict and the listening table use the first.",
    )
    max_seconds: float = Field(
        30.0, gt=0, description="Longest speech per prompt; longer clips are not spoken."
    )
    seed: int = Field(0, ge=0, description="Another seed gives other takes.")
    speech_models: EvalSpeechModelConfig = EvalSpeechModelConfig()


class PackageConfig(Section):
    """The forms that are made, and the entries of the model card."""

    forms: Annotated[list[PackageForm], Field(min_length=1)] = Field(
        ["peft"],
        description="peft: the adapter alone; merged: a full checkpoint with Transformers' names, "
        "with the codec; original: one with the names of Boson AI's own code.",
    )
    license: str = Field("other", min_length=1, description="Licence id of the model card.")
    description: str = Field("", description="A sentence about the voice, for the model card.")
    show_speakers: bool = Field(
        False, description="Name the speakers, with their clips and hours, in the package."
    )
    num_samples: int = Field(
        3,
        ge=0,
        le=20,
        description="Number of held-out texts, spoken by base and adapter, to include in the "
        "package; at most eval.num_prompts.",
    )


class MergeConfig(Section):
    """Full checkpoints: base and adapter in one."""

    dtype: MergedDtype = Field(
        "bfloat16", description="Dtype of merged and original; merging is computed in float32."
    )


class ShippingConfig(PackageConfig, MergeConfig):
    """The forms of an adapter that a user gets, and the entries of its model card."""


class PushConfig(Section):
    """Publication on the Hub; only ``snakemake push`` publishes.

    The token is that of huggingface_hub: ``HF_TOKEN``, or ``hf auth login``.
    """

    forms: Annotated[list[PackageForm], Field(min_length=1)] = Field(
        ["peft"],
        description="Forms to publish: peft in repo; merged and original, if package.forms makes "
        "them, in repo-merged and repo-original.",
    )

    repo: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.{}-]+$",
        description="Repository, as owner/name; {experiment} in it is replaced by the experiment's "
        "name, and is required if there are several.",
    )
    private: bool = Field(
        True, description="Make the repository private; a public one is then refused."
    )
    branch: str = Field("main", min_length=1, description="Branch; created if it does not exist.")
    tag: str | None = Field(
        None, min_length=1, description="Tag of the commit; null: none. It never moves."
    )
    overwrite: bool = Field(
        False, description="Replace other content of the branch; otherwise the push is refused."
    )


class ReportPageConfig(Section):
    """The report page."""

    title: str | None = Field(
        None,
        min_length=1,
        description="Title of the page; null: named after the base models.",
    )


class ClipsPageConfig(Section):
    """The page of the recordings."""

    num_players: int = Field(
        20,
        ge=0,
        le=200,
        description="Number of clips with a player in each list of results/data/index.html.",
    )


class ReportConfig(ReportPageConfig, ClipsPageConfig):
    """The report, and the page of the recordings."""


ManifestFormat = Literal[
    "auto",
    "jsonl",
    "csv",
    "tsv",
    "parquet",
    "ljspeech",
    "kaldi",
    "nemo",
    "lhotse",
    "audiofolder",
    "filelist",
    "ms-swift",
    "boson-chatml",
    "folder",
]
ManifestKey = Literal[
    "id",
    "audio",
    "text",
    "speaker",
    "language",
    "scene",
    "ref_audio",
    "ref_text",
    "split",
    "start_seconds",
    "end_seconds",
    "dialogue_id",
    "turn",
]


class ManifestEntry(Section):
    """A manifest, with values for keys that its rows lack."""

    path: UserPath = Field(description="The manifest: a file or a folder.")
    format: ManifestFormat = Field(
        "auto", description="Format; auto recognises it by name and first line."
    )
    root: UserPath | None = Field(
        None, description="Folder that audio paths are relative to; null: that of the manifest."
    )
    speaker: Text | None = Field(None, description="Speaker of rows without one.")
    language: Text | None = Field(None, description="Language of rows without one.")
    split: Literal["train", "eval"] | None = Field(None, description="Split of rows without one.")
    columns: dict[ManifestKey, Text] = Field(
        {},
        description="The manifest's names for our keys; in a list without a header, the "
        "numbers of its fields, from 1.",
    )


Manifest = UserPath | ManifestEntry | Annotated[list[UserPath | ManifestEntry], Field(min_length=1)]
ManifestField: Any = Field(
    description="Path of a manifest, an object as below, or a list of these."
)


class OtherManifestConfig(Section):
    """Recordings that an adapter is not meant for, to measure what it forgot."""

    other_manifest: Manifest | None = Field(
        None,
        description="Recordings of other speakers or another language, to measure what an adapter "
        "forgot: all are held out. Given like `manifest`; null: none.",
    )


class EvalConfig(EvaluateConfig, AcceptConfig, OtherManifestConfig):
    """Evaluation of an adapter: held-out loss, speech on held-out prompts, and the verdict."""


BaseModelField: Any = Field(
    min_length=1,
    json_schema_extra=IS_PATH,
    description="Model to fine-tune: a checkpoint directory or a Hub id.",
)
CodecField: Any = Field(
    min_length=1,
    json_schema_extra=IS_PATH,
    description="Audio tokenizer: a codec or a base that includes it; a directory or a Hub id.",
)
ExperimentsField: Any = Field(
    {"default": {}},
    min_length=1,
    description="Adapters to train on the same data; each may override parts of `train`, and name "
    "its own `base_model` with its `base_model_revision`.",
)
RevisionField: Any = Field(None, description="Hub branch, tag or commit; null: the default branch.")


class ExperimentConfig(TrainConfig):
    """An experiment: the parts of `train` that it changes, and its base."""

    base_model: UserPath | None = Field(
        None, description="Model to fine-tune; null: the `base_model` of all."
    )
    base_model_revision: str | None = Field(
        None,
        description="Hub branch, tag or commit of its `base_model`; null: `base_model_revision` if "
        "that is the same model, else the default branch.",
    )


class Config(Section):
    """The user's whole ``config.yaml``."""

    manifest: Manifest = ManifestField
    base_model: str = BaseModelField
    base_model_revision: str | None = RevisionField
    codec: str = CodecField
    codec_revision: str | None = RevisionField
    data: DataConfig = DataConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    tokenize: TokenizeConfig = TokenizeConfig()
    pack: PackConfig = PackConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    package: ShippingConfig = ShippingConfig()
    push: PushConfig = PushConfig()
    report: ReportConfig = ReportConfig()
    experiments: dict[str, dict[str, Any]] = ExperimentsField
