"""Declarations of all Parquet tables of the pipeline: columns and version."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import pyarrow as pa

from higgs_pipe.data.quality import AudioMeasures, TextMeasures


@dataclass(frozen=True)
class Column:
    """A column: its name, Arrow type, one sentence, and whether a value may be missing."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class TableSpec:
    """A table: its name, version, columns, and the rule that makes it."""

    name: str
    version: int
    made_by: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema; each column carries its description."""
        return pa.schema(
            pa.field(c.name, c.type, c.nullable, {b"description": c.description.encode()})
            for c in self.columns
        )


@dataclass(frozen=True)
class CodecInfo:
    """The codec that made the codes; stamped on each table that holds codes.

    ``dtype`` is the type that it computed in: another type gives other codes.
    """

    codec: str
    revision: str | None
    fingerprint: str
    num_codebooks: int
    codebook_size: int
    frame_rate_hz: float
    sample_rate_hz: int
    hop_length: int
    dtype: str

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> Self:
        """Return the codec that :func:`write_table` stamped."""
        return cls(**metadata["codec_info"])

    def as_metadata(self) -> dict[str, Any]:
        """Return the ``metadata`` for :func:`write_table`."""
        return {"codec_info": asdict(self)}


def frames(num_codebooks: int) -> pa.DataType:
    """Return the type of a matrix of codes: (T, K) or (F, K), int16."""
    return pa.list_(pa.list_(pa.int16(), num_codebooks))


SEGMENT_COLUMNS = (
    Column(
        "start_seconds",
        pa.float64(),
        "Start in the file, in seconds; missing: its beginning.",
        nullable=True,
    ),
    Column(
        "end_seconds",
        pa.float64(),
        "End in the file, in seconds; missing: its end.",
        nullable=True,
    ),
)


# What a row of a manifest says; the tables of rows and of clips both have it.
ROW_COLUMNS = (
    Column("manifest", pa.string(), "The manifest that lists the row."),
    Column("line", pa.int32(), "Its line there, from 1."),
    Column("text", pa.string(), "The transcript as given."),
    Column("speaker", pa.string(), "Speaker; missing: unknown.", nullable=True),
    Column("language", pa.string(), "Language code; missing: unknown.", nullable=True),
    Column("scene", pa.string(), "Description of the scene.", nullable=True),
    Column("dialogue_id", pa.string(), "The dialogue that the row is a turn of.", nullable=True),
    Column("turn", pa.int32(), "Its place among the dialogue's turns.", nullable=True),
)


ROWS = TableSpec(
    name="rows",
    version=3,
    made_by="list_rows",
    columns=(
        Column("clip_id", pa.string(), "Unique id."),
        Column("audio", pa.string(), "The audio as the manifest names it."),
        Column("audio_path", pa.string(), "Absolute path of the audio file."),
        *SEGMENT_COLUMNS,
        *ROW_COLUMNS,
        Column(
            "file_conversation",
            pa.string(),
            "The conversation around the clip as JSON text; its recordings are spans of files.",
            nullable=True,
        ),
        Column(
            "ref_audio_path",
            pa.string(),
            "Absolute path of the row's own reference recording.",
            nullable=True,
        ),
        Column("ref_text", pa.string(), "What is said there.", nullable=True),
        Column("split", pa.string(), "train or eval, as given.", nullable=True),
        Column(
            "declared_seconds",
            pa.float64(),
            "Length of the clip as the manifest has it, in seconds.",
            nullable=True,
        ),
        Column(
            "declared_sample_rate_hz",
            pa.float64(),
            "Sample rate as the manifest has it, in Hz.",
            nullable=True,
        ),
        Column("is_outside_root", pa.bool_(), "Whether a path of it leads out of the root."),
    ),
)


RECORDINGS = TableSpec(
    name="recordings to measure",
    version=2,
    made_by="list_rows",
    columns=(
        Column("audio_path", pa.string(), "Absolute path of the audio file."),
        *SEGMENT_COLUMNS,
        Column("num_bytes", pa.int64(), "Size of the file; missing: there is none.", nullable=True),
        Column(
            "mtime_ns",
            pa.int64(),
            "Modification time, in ns since 1970, at which these bytes were seen first.",
            nullable=True,
        ),
    ),
)


ARROW_TYPES: dict[Any, pa.DataType] = {
    float: pa.float32(),
    int: pa.int32(),
    str | None: pa.string(),
    bool | None: pa.bool_(),
}


def _measure_columns(measures: type[AudioMeasures | TextMeasures]) -> tuple[Column, ...]:
    return tuple(
        Column(
            measure.name,
            ARROW_TYPES[measure.type],
            measure.metadata["description"],
            nullable=measure.type not in (float, int),
        )
        for measure in fields(measures)
    )


AUDIO_MEASURE_COLUMNS = _measure_columns(AudioMeasures)


TEXT_MEASURE_COLUMNS = _measure_columns(TextMeasures)


MEASURE_COLUMNS = (*AUDIO_MEASURE_COLUMNS, *TEXT_MEASURE_COLUMNS)


CHANNEL_COLUMN = Column(
    "channel",
    pa.int32(),
    "The channel that is encoded, from 0, as the channels cancel; missing: their mean.",
    nullable=True,
)


# What a file, or a segment of it, is before its sound is looked at.
FILE_COLUMNS = (
    Column("duration_seconds", pa.float64(), "Length of the clip, in seconds."),
    Column("sample_rate_hz", pa.int32(), "Sample rate of the file, in Hz."),
    Column("num_channels", pa.int32(), "Channels of the file."),
    CHANNEL_COLUMN,
    Column(
        "separate_share",
        pa.float32(),
        "Share of power that a second channel has alone: 0 in one sound, to 0.5 with two voices.",
    ),
    Column("encoding", pa.string(), "Container and encoding of the file, such as WAV PCM_16."),
    Column("audio_sha256", pa.string(), "SHA-256 of the file's bytes."),
    Column("pcm_sha256", pa.string(), "SHA-256 of the decoded samples; finds duplicates."),
)


SPEECH_COLUMNS = (
    Column("transcript", pa.string(), "What a speech recogniser heard.", nullable=True),
    Column("stoi", pa.float32(), "Intelligibility (STOI) as a model estimates it.", nullable=True),
    Column("pesq", pa.float32(), "Quality (PESQ) as a model estimates it.", nullable=True),
    Column(
        "si_sdr_db",
        pa.float32(),
        "Scale-invariant signal-to-distortion ratio as a model estimates it, in dB.",
        nullable=True,
    ),
    Column(
        "speaker_embedding",
        pa.list_(pa.float32()),
        "The voice, by a speaker model: of length 1, close to others of the speaker.",
        nullable=True,
    ),
)


MEASURED = TableSpec(
    name="measured recordings",
    version=5,
    made_by="measure_shard",
    columns=(
        *RECORDINGS.columns,
        Column("reason", pa.string(), "Why it cannot be used; missing: it can.", nullable=True),
        Column("fact", pa.string(), "What was found then, in words.", nullable=True),
        # Of what cannot be used, only the length may be known.
        *(replace(column, nullable=True) for column in (*FILE_COLUMNS, *AUDIO_MEASURE_COLUMNS)),
        *SPEECH_COLUMNS,
    ),
)


CLIPS = TableSpec(
    name="clips",
    version=6,
    made_by="judge_clips",
    columns=(
        Column("clip_id", pa.string(), "Unique id."),
        Column("audio_path", pa.string(), "Absolute path of the audio file."),
        *SEGMENT_COLUMNS,
        *ROW_COLUMNS,
        Column(
            "conversation",
            pa.string(),
            "The conversation around the clip as JSON text; its recordings are clip_ids.",
            nullable=True,
        ),
        Column(
            "reference_id",
            pa.string(),
            "clip_id of the row's own reference recording.",
            nullable=True,
        ),
        Column("split", pa.string(), "train, eval, or reference (only ever a prompt)."),
        *FILE_COLUMNS,
        *MEASURE_COLUMNS,
        *SPEECH_COLUMNS,
        Column(
            "word_error_rate",
            pa.float32(),
            "Word error rate of the transcript against the text.",
            nullable=True,
        ),
        Column("text_source", pa.string(), "manifest, or transcript where that had no text."),
    ),
)


REJECTED = TableSpec(
    name="rejected",
    version=2,
    made_by="judge_clips",
    columns=(
        Column("clip_id", pa.string(), "Id of the row."),
        Column("audio", pa.string(), "The audio as the manifest names it."),
        Column("manifest", pa.string(), "The manifest that lists the row."),
        Column("line", pa.int32(), "Its line there, from 1."),
        Column("speaker", pa.string(), "Speaker; missing: unknown.", nullable=True),
        Column("language", pa.string(), "Language code; missing: unknown.", nullable=True),
        Column(
            "duration_seconds",
            pa.float64(),
            "Length of the clip, in seconds; missing: the file could not be read.",
            nullable=True,
        ),
        Column("reason", pa.string(), "Reason code."),
        Column("message", pa.string(), "The fact and the remedy, in a sentence."),
    ),
)


SHARD_CLIPS = TableSpec(
    name="shard clips",
    version=3,
    made_by="judge_clips",
    columns=(
        Column("clip_id", pa.string(), "Unique id."),
        Column("audio_path", pa.string(), "Absolute path of the audio file."),
        *SEGMENT_COLUMNS,
        CHANNEL_COLUMN,
        Column("audio_sha256", pa.string(), "SHA-256 of the file's bytes."),
        Column("duration_seconds", pa.float64(), "Length of the clip, in seconds."),
    ),
)


LOSS_DESCRIPTIONS = {
    "loss": "Text loss + mean of the codebooks' losses, nats per label",
    "text_loss": "Nats per text label; missing: the base has no text loss",
    "audio_loss": "Mean of the codebooks' losses, nats per label",
    "stop_loss": "Nats per stream EOS label",
}


EVAL_DESCRIPTIONS = LOSS_DESCRIPTIONS | {
    "stop_at_end": "Probability of codebook 0's stream EOS at the true end",
    "stop_before_end": "Probability of one in any frame before it",
}


EVAL_CLIPS = TableSpec(
    name="eval clips",
    version=3,
    made_by="eval_adapter",
    columns=(
        Column("clip_id", pa.string(), "The held-out clip."),
        Column("speaker", pa.string(), "Speaker; missing: unknown.", nullable=True),
        Column("language", pa.string(), "Language code; missing: unknown.", nullable=True),
        Column("task", pa.string(), "Kind of the packed sample, such as speech or cloning."),
        *(
            Column(
                f"{model}_{name}",
                pa.float64(),
                f"{description}, of the {model}.",
                nullable=name == "text_loss",
            )
            for model in ("adapter", "base")
            for name, description in EVAL_DESCRIPTIONS.items()
        ),
        Column(
            "num_text_labels",
            pa.int32(),
            "Supervised text tokens; missing: the base has no text loss.",
            nullable=True,
        ),
        Column("num_audio_labels", pa.int32(), "Supervised codes, all codebooks together."),
    ),
)


def codes_spec(num_codebooks: int) -> TableSpec:
    """Return the table of one tokenization shard, for K codebooks."""
    return TableSpec(
        name="codes",
        version=1,
        made_by="tokenize_shard",
        columns=(
            Column("clip_id", pa.string(), "Unique id."),
            Column("codes", frames(num_codebooks), "Codec indices (T, K), without delay."),
            Column("num_frames", pa.int32(), "T."),
            Column("audio_sha256", pa.string(), "SHA-256 of the encoded file's bytes."),
        ),
    )


def packed_spec(num_codebooks: int) -> TableSpec:
    """Return the table of packed training rows, for K codebooks; names as in the native model."""
    matrix = frames(num_codebooks)
    return TableSpec(
        name="packed rows",
        version=1,
        made_by="pack_rows",
        columns=(
            Column("input_ids", pa.list_(pa.int32()), "Token ids (S)."),
            Column("labels", pa.list_(pa.int32()), "Text label at each position, or -100 (S)."),
            Column("audio_input_ids", matrix, "Delayed codes of all placeholders in order (F, K)."),
            Column("audio_labels", matrix, "Label of each delayed code, or -100 (F, K)."),
            Column("sample_ids", pa.list_(pa.string()), "clip_id of each sample's (first) target."),
            Column("sample_lengths", pa.list_(pa.int32()), "Positions of each sample; sum S."),
        ),
    )


TRAIN, EVAL, REFERENCE = "train", "eval", "reference"
