"""Every setting, declared once: type, default, bound, unit and a sentence.

``workflow/schemas/config.schema.yaml`` is generated from here
(``python -m higgs_pipe.config.schema > workflow/schemas/config.schema.yaml``); Snakemake checks the
user's ``config.yaml`` against it and hands each stage only the part that it reads.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from higgs_pipe.config.rules import EACH_ZERO, OFF, ON, TRUE, ZERO, Forbidden, Section, Value

Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "bfloat16", "float32", "float64"]
Quantization = Literal["8bit", "4bit"]
CodecDtype = Literal["auto", "bfloat16", "float32"]

EXPERIMENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
DEFAULT_SYSTEM_PROMPT = "Generate audio following instruction."

Text = Annotated[str, Field(min_length=1)]


class Sampling(Section):
    """How codes are drawn when a model speaks; the defaults are those of Higgs Audio's examples."""

    temperature: float = Field(
        1.0, ge=0, le=10, description="Spread of the draw; 0 takes the most likely code each time."
    )
    top_p: float = Field(
        0.95, gt=0, le=1, description="Draw among the likeliest codes of this probability together."
    )
    top_k: int = Field(50, ge=0, description="Draw among this many likeliest codes; 0 is all.")
    ras_win_len: int = Field(
        7,
        ge=0,
        description="Frames in which repeated codes are counted; 0 is off, as is temperature 0.",
    )
    ras_win_max_num_repeat: int = Field(
        2,
        ge=1,
        description="A code that these frames hold as often is drawn again at temperature 1.",
    )
    max_seconds: float = Field(
        30.0, gt=0, description="Longest speech of one prompt; what has not stopped is cut there."
    )
    seed: int = Field(0, ge=0, description="Another seed gives another take.")


class ShardConfig(Section):
    """How the rows are spread over jobs."""

    num_shards: int = Field(
        8,
        ge=1,
        le=100_000,
        description="Jobs that measure, and jobs that tokenize; a row's shard is a hash of its id.",
    )


class DataConfig(ShardConfig):
    """How the clips are spread over jobs and split."""

    eval_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of the clips held out for evaluation."
    )
    split_seed: int = Field(0, ge=0, description="Another seed gives another train/eval split.")
    split_by: Literal["clip", "speaker", "recording", "given"] = Field(
        "clip",
        description="What is held out: clips, whole speakers, whole recordings with all their "
        "segments, or what the manifest gives, for every row.",
    )
    keep_text_together: bool = Field(
        True,
        description="Whether clips of one text, but for case and punctuation, share a side.",
    )
    keep_context_together: bool = Field(
        True,
        description="Whether a clip shares a side with the conversations in which it is heard.",
    )


class FilterConfig(Section):
    """Which clips are rejected for how they sound or read; null is off."""

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
        None, ge=0, le=1, description="Farthest mean sample from 0, full scale is 1."
    )
    min_snr_db: float | None = Field(
        None, ge=0, le=100, description="Lowest estimated signal-to-noise ratio, in dB."
    )
    min_rms_dbfs: float | None = Field(
        None, ge=-100, le=0, description="Lowest level, in dB of full scale."
    )
    min_sample_rate_hz: int | None = Field(
        None, ge=1, description="Lowest sample rate of the file, in Hz."
    )
    min_characters_per_second: float | None = Field(
        None, ge=0, description="Slowest speech, in characters without white space."
    )
    max_characters_per_second: float | None = Field(
        None, gt=0, description="Fastest speech, in characters without white space."
    )
    min_words_per_second: float | None = Field(
        None, ge=0, description="Slowest speech, in words (letters, where no spaces are written)."
    )
    max_words_per_second: float | None = Field(
        None, gt=0, description="Fastest speech, in words (letters, where no spaces are written)."
    )
    require_language_script: bool = Field(
        False, description="Reject text in a script that its language is not written in."
    )
    max_word_error_rate: float | None = Field(
        None, ge=0, description="Largest word error rate of the transcript by speech_models.asr."
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
    """Models that listen to every recording; null is off, and all are off by default."""

    device: Device = Field("auto", description="Where they run.")
    asr: str | None = Field(
        None, min_length=1, description="A Transformers speech recogniser: a directory or a Hub id."
    )
    quality: str | None = Field(
        None,
        min_length=1,
        description="Weights of torchaudio's squim_objective_base: a file of its state_dict.",
    )
    speaker: str | None = Field(
        None,
        min_length=1,
        description="A Transformers x-vector speaker model: a directory or a Hub id.",
    )

    @property
    def is_on(self) -> bool:
        """Whether any model is asked for."""
        return any((self.asr, self.quality, self.speaker))


class MeasureConfig(Section):
    """What decides which recordings are decoded, and how they are measured."""

    max_clip_seconds: float = Field(
        30.0, gt=0, description="Longer clips are rejected, and never decoded."
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
    """What a clip must satisfy."""

    forbidden = tuple(
        Forbidden(
            f"{setting} needs speech_models.{model}", {setting: ON, f"speech_models.{model}": OFF}
        )
        for setting, model in NEEDED_MODELS.items()
    )

    min_clip_seconds: float = Field(0.3, gt=0, description="Shorter clips are rejected.")
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="A larger share of rejected rows stops the run."
    )
    fill_missing_text: bool = Field(
        False, description="Give rows with an empty text the transcript by speech_models.asr."
    )
    filters: FilterConfig = FilterConfig()


class TokenizeConfig(Section):
    """How audio becomes codes."""

    device: Device = Field("auto", description="Where the codec runs.")
    dtype: CodecDtype = Field(
        "float32", description="Number type of the codec on a GPU; on a CPU it is float32."
    )
    max_batch_seconds: float | None = Field(
        None,
        gt=0,
        description="Audio seconds encoded at once, in clips of equal length; null is 120 on a "
        "GPU and one clip at a time on a CPU.",
    )


class TaskMix(Section):
    """Weights of the kinds of sample; each clip or dialogue gets one kind, drawn by seed."""

    forbidden = (
        Forbidden(
            "at least one task needs a weight above 0",
            dict.fromkeys(("speech", "cloning", "dialogue", "dialogue_cloning"), ZERO),
        ),
    )

    speech: float = Field(1.0, ge=0, description="Text to speech without a reference voice.")
    cloning: float = Field(1.0, ge=0, description="A reference clip of the speaker comes first.")
    dialogue: float = Field(
        1.0, ge=0, description="The turns of a dialogue at once, without reference voices."
    )
    dialogue_cloning: float = Field(
        1.0, ge=0, description="The same after a reference clip of each speaker."
    )


class PackConfig(Section):
    """How codes and text become training rows."""

    max_tokens: int = Field(
        2048, ge=64, le=131_072, description="Positions in a packed row, text and audio frames."
    )
    tasks: TaskMix = TaskMix()
    scene_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of the samples that lose their scene."
    )
    reference_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of the reference recordings that are left out."
    )
    system_prompt: str = Field(
        DEFAULT_SYSTEM_PROMPT, min_length=1, description="The system message of each sample."
    )
    clean_text: bool = Field(
        True, description="Clean the text as Higgs Audio's own inference does; keep it the same."
    )
    seed: int = Field(0, ge=0, description="Draws tasks, references and dropouts.")


LoraPreset = Literal["attention", "audio", "all"]


class LoraSettings(Section):
    """The adapter, in PEFT's terms."""

    forbidden = tuple(
        Forbidden(
            f"init olora and pissa do not go with {key}",
            {"init": Value(("olora", "pissa")), key: TRUE},
        )
        for key in ("use_rslora", "use_dora")
    )

    r: int = Field(16, ge=1, le=1024, description="Rank.")
    alpha: int = Field(32, ge=1, description="Scale; the update is multiplied by alpha / r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the LoRA matrices.")
    target_modules: LoraPreset | Annotated[list[Text], Field(min_length=1)] = Field(
        "all",
        description="Layers that get LoRA: attention, audio (attention and audio FFN), all (these "
        "and the text FFN), or a list of name endings such as audio_mlp.down_proj.",
    )
    use_rslora: bool = Field(
        False, description="Scale by alpha / sqrt(r) instead (rank-stabilised LoRA)."
    )
    use_dora: bool = Field(False, description="Weight-decomposed LoRA: magnitude apart; slower.")
    init: Literal["default", "gaussian", "orthogonal", "olora", "pissa"] = Field(
        "default",
        description="How LoRA starts, as PEFT names it; olora and pissa are saved as plain LoRA of "
        "twice the rank.",
    )
    train_in_full: list[Literal["audio_head", "audio_embeddings"]] = Field(
        [], description="Parts of the base that are trained whole and saved with the adapter."
    )
    trainable_tokens: list[Text] = Field(
        [],
        description="Tokens of the base's tokenizer whose text embeddings are trained, for "
        "example reserved ones that the transcripts use anew.",
    )


class LossWeights(Section):
    """The objective: text * T + audio * sum of c_k A_k / sum of c_k + eos * E, in nats per label.

    T is the mean text loss, A_k that of codebook k, E that of the stream EOS labels, which are in
    A_k too.
    """

    forbidden = (
        Forbidden("text or audio needs a weight above 0", {"text": ZERO, "audio": ZERO}),
        Forbidden("a codebook needs a weight above 0", {"codebooks": EACH_ZERO}),
    )

    text: float = Field(1.0, ge=0, description="Weight of the mean text loss.")
    audio: float = Field(1.0, ge=0, description="Weight of the mean of the codebooks' losses.")
    eos: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean loss of the stream EOS labels, on top of their share in "
        "the audio loss; raise it when generation does not stop.",
    )
    codebooks: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="A weight for each codebook's loss in their mean; null: all alike."
    )


class TrainConfig(Section):
    """How the adapter is trained."""

    num_processes: int = Field(
        1, ge=1, le=1024, description="Processes of `accelerate launch`, one GPU each."
    )
    num_machines: int = Field(
        1, ge=1, le=1024, description="Machines that the processes are spread over, by `srun`."
    )
    main_process_ip: str | None = Field(
        None, min_length=1, description="The first machine's address; null asks Slurm."
    )
    main_process_port: int | None = Field(
        None, ge=1, le=65_535, description="Its port; null is 29500, or any on a single machine."
    )
    accelerate_config: str | None = Field(
        None,
        min_length=1,
        description="Your own `accelerate config` file; it replaces the launch settings here.",
    )
    timeout_seconds: float = Field(
        1800.0, gt=0, description="A process that does not answer for so long ends the training."
    )
    device: Device = Field("auto", description="Where training runs.")
    dtype: Dtype = Field(
        "auto", description="Type of the frozen base: bfloat16 where the device has it."
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps its state in 8 bits, by bitsandbytes on CUDA."
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak of the schedule.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the rate falls after the warmup: to 0, or not at all."
    )
    num_epochs: int = Field(2, ge=1, description="Passes over the packed rows.")
    max_steps: int | None = Field(
        None, ge=1, description="Optimizer steps, whatever num_epochs says; null leaves it to that."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Held-out losses in a row without a better one that end training."
    )
    rows_per_step: int = Field(
        16, ge=1, description="Packed rows in an optimizer step, over all processes together."
    )
    rows_per_micro_batch: int = Field(
        1, ge=1, description="Packed rows that a process takes at once; set by memory."
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the rate rises from 0."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    eval_steps: int = Field(50, ge=1, description="Steps between held-out losses.")
    log_steps: int = Field(
        10, ge=1, description="Steps between lines of the log, with prediction against label."
    )
    save_steps: int = Field(
        50, ge=1, description="Steps between checkpoints: what a kill can cost at most."
    )
    save_total_limit: int = Field(2, ge=1, description="Checkpoints kept, the newest.")
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        "tensorboard", description="Where the curves go, beside metrics.jsonl."
    )
    gradient_checkpointing: bool | Annotated[int, Field(ge=1, le=1024)] = Field(
        False,
        description="Recompute layers in the backward pass: less memory, slower. true is every "
        "layer, n every n-th.",
    )
    max_logits_mb: float = Field(
        64.0,
        gt=0,
        le=1_000_000,
        description="Megabytes for the logits and their gradient; more labels go in chunks.",
    )
    quantization: Quantization | None = Field(
        None,
        description="Keep the frozen base's linear layers in 8 or 4 bits (CUDA, bitsandbytes).",
    )
    compile: bool = Field(
        False, description="Compile the layers around attention; the first steps wait for it."
    )
    tf32: bool = Field(
        True, description="Let float32 matrix products on CUDA round their factors to TF32."
    )
    preflight: bool = Field(
        True, description="Check data, objective and gradients before the first step."
    )
    stop_on_alarm: bool = Field(
        False, description="An alarm stops training, after a checkpoint; else it is a warning."
    )
    seed: int = Field(0, ge=0, description="Seeds the order of rows, LoRA and dropout.")
    loss_weights: LossWeights = LossWeights()
    lora: LoraSettings = LoraSettings()


class EvalConfig(Section):
    """How the held-out loss is computed."""

    num_processes: int = Field(1, ge=1, le=1024, description="Processes of `accelerate launch`.")
    device: Device = Field("auto", description="Where evaluation runs.")
    dtype: Dtype = Field("auto", description="Type of the base; bfloat16 where the device has it.")
    rows_per_batch: int = Field(1, ge=1, description="Packed rows in a forward pass.")


class PackageConfig(Section):
    """What the model card says."""

    license: str = Field("other", min_length=1, description="Licence id of the model card.")
    description: str = Field("", description="A sentence about the voice, for the model card.")


class ReportConfig(Section):
    """The page that people look at."""

    title: str = Field("Higgs Audio v2 adapter", min_length=1, description="Title of the page.")


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
    """A manifest, and what its rows do not say themselves."""

    path: str = Field(min_length=1, description="The manifest: a file or a folder.")
    format: ManifestFormat = Field(
        "auto", description="Its format; auto looks at its name and first line."
    )
    root: Text | None = Field(
        None, description="Folder that audio paths are relative to; null is the manifest's own."
    )
    speaker: Text | None = Field(None, description="Speaker of the rows without one.")
    language: Text | None = Field(None, description="Language of the rows without one.")
    split: Literal["train", "eval"] | None = Field(
        None, description="Split of the rows without one."
    )
    columns: dict[ManifestKey, Text] = Field(
        {}, description="The manifest's own column names, by ours."
    )


Manifest = Text | ManifestEntry | Annotated[list[Text | ManifestEntry], Field(min_length=1)]
ManifestField: Any = Field(
    description="A manifest's path, an object that says more of it, or a list of these."
)
BaseModelField: Any = Field(min_length=1, description="A checkpoint directory or a Hub id.")
CodecField: Any = Field(min_length=1, description="The audio tokenizer: a directory or a Hub id.")
ExperimentsField: Any = Field(
    {"default": {}},
    min_length=1,
    description="Adapters to train from the same data; each overrides parts of `train`.",
)
RevisionField: Any = Field(None, description="A Hub branch, tag or commit; null is the default.")


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
    package: PackageConfig = PackageConfig()
    report: ReportConfig = ReportConfig()
    experiments: dict[str, dict[str, Any]] = ExperimentsField
