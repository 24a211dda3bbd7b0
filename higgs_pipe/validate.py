"""Stage 1c: every row is judged, and what is accepted is split into train and eval."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from higgs_pipe.cli import main
from higgs_pipe.config.settings import DataConfig, ValidateConfig
from higgs_pipe.config.stages import ValidateStage, load_stage
from higgs_pipe.data.clips import filters
from higgs_pipe.data.clips.reasons import Fault, Reason, Rejection
from higgs_pipe.data.clips.splits import Key, assign_splits, beside, groups_of, keys_of
from higgs_pipe.data.clips.summary import log_warnings, summarize, table_lines
from higgs_pipe.data.conversation import ClipId, Conversation
from higgs_pipe.data.files import write_json
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.manifests.row import ManifestRows, Row
from higgs_pipe.data.manifests.row_table import read_rows
from higgs_pipe.data.quality import measure_text
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import (
    AUDIO_MEASURE_COLUMNS,
    CLIPS,
    EVAL,
    FILE_COLUMNS,
    MEASURED,
    REFERENCE,
    REJECTED,
    SHARD_CLIPS,
    SPEECH_COLUMNS,
    TRAIN,
)
from higgs_pipe.data.speech import word_error_rate
from higgs_pipe.data.tables import read_table, shard_path, write_shards, write_table
from higgs_pipe.data.text import find_control_token, is_blank
from higgs_pipe.errors import UserError, list_offenders

logger = logging.getLogger("higgs_pipe")


# What to change where too many clips share something to be split.
LOOSENED_BY = {
    "audio": "add other recordings, or, where conversations share what is only heard in them, set "
    "data.keep_context_together to false",
    "text": "set data.keep_text_together to false",
    "dialogue": "add other dialogues",
    "speaker": "set data.split_by to recording or clip",
    "recording": "set data.split_by to clip",
}

MEASURED_NAMES = [
    column.name for column in (*FILE_COLUMNS, *AUDIO_MEASURE_COLUMNS, *SPEECH_COLUMNS)
]
# A row of MEASURED.
Measured: TypeAlias = Mapping[str, Any]
# A row of CLIPS.
Clip: TypeAlias = dict[str, Any]


def run(
    config: Path,
    rows: Path,
    measured_dir: Path,
    clips: Path,
    rejected: Path,
    validation: Path,
    shards_dir: Path,
) -> None:
    """Judge the rows by what was measured, and write the tables of clips.

    Args:
        config: ``results/config/validate.json``.
        rows: The rows of the manifests, from list_rows.
        measured_dir: Folder of ``shard-00000.parquet`` ..., from measure.
        clips: Table to write: accepted clips in the manifest's order, then their references.
        rejected: Table to write: rejected rows with reason and remedy.
        validation: JSON to write: counts, hours, speakers, languages, duplicates, overlap.
        shards_dir: Folder for ``shard-00000.parquet`` ..., the clips that one tokenization job
            encodes; only a shard whose clips change changes its bytes.

    Raises:
        UserError: Too many rows are rejected, the rows cannot be split as they should, or a split
            would be empty. Nothing is written then.
    """
    stage = load_stage(ValidateStage, config)
    manifest = read_rows(rows)
    num_shards = stage.data.num_shards
    measured = _read_measured(measured_dir, num_shards, manifest)
    _check_splits_can_be_made(manifest.rows, stage.data)
    accepted, rejections = _judge(manifest.rows, measured, stage)
    _check_enough_accepted(len(manifest.rows), rejections, stage.validate_.max_rejected_fraction)
    targets = [clip for _, clip in accepted]
    references = _add_references(accepted, measured)
    _split(accepted, references, stage.data)
    _check_both_splits(targets, references, stage.data)

    write_table(clips, CLIPS, [*targets, *references])
    write_table(rejected, REJECTED, [_rejected_row(rejection) for rejection in rejections])
    write_shards(shards_dir, SHARD_CLIPS, _by_shard([*targets, *references], num_shards))
    summary = summarize(read_table(clips, CLIPS)[0].to_pylist(), rejections, manifest, stage.data)
    write_json(validation, summary)
    log_warnings(summary, rejections)
    logger.info("%s", "\n".join(table_lines(summary)))


def _read_measured(
    measured_dir: Path, num_shards: int, manifest: ManifestRows
) -> dict[Span, Measured]:
    """What every span that the rows name holds."""
    measured: dict[Span, Measured] = {}
    for index in range(num_shards):
        shard = read_table(shard_path(measured_dir, index), MEASURED)[0]
        measured |= {Span.of(columns): columns for columns in shard.to_pylist()}
    for row in manifest.rows:
        for span in row.all_spans:
            if span not in measured:
                raise UserError(
                    f"{row.place}: {span.name} was not measured; "
                    "run: snakemake --forcerun measure_shard"
                )
    return measured


def _check_splits_can_be_made(rows: Sequence[Row], data: DataConfig) -> None:
    """Every row says what the split goes by."""
    needed = {"given": "split", "speaker": "speaker"}.get(data.split_by)
    if needed is None:
        return
    lacking = [f"{row.place}: {row.clip_id}" for row in rows if getattr(row, needed) is None]
    if lacking:
        raise UserError(
            f"data.split_by is {data.split_by}, and {len(lacking):,} of {len(rows):,} rows have no "
            f"`{needed}`:\n{list_offenders(lacking)}\n"
            f"Give each row one (or its manifest's entry a `{needed}`), or set data.split_by to "
            "clip, and run again."
        )


def _judge(
    rows: Sequence[Row], measured: Mapping[Span, Measured], stage: ValidateStage
) -> tuple[list[tuple[Row, Clip]], list[Rejection]]:
    """Each row is accepted as a clip, or rejected; both in the manifest's order."""
    faults: dict[str, Fault] = {}
    sound: list[tuple[Row, Clip]] = []
    for given in rows:
        row = _filled(given, measured) if stage.validate_.fill_missing_text else given
        fault = _fault(row, measured, stage.validate_)
        if fault is None:
            clip = _clip(row, measured[row.span], is_transcript=row is not given)
            fault = _filtered(row, clip, measured, stage.validate_)
            sound.append((row, clip))
        if fault is not None:
            faults[row.clip_id] = fault
    unfaulted = [pair for pair in sound if pair[0].clip_id not in faults]
    faults |= _split_conflicts(unfaulted, measured, stage.data)
    faults |= _dialogue_faults(rows, faults)
    rejections = [
        Rejection(row, faults[row.clip_id], measured[row.span]["duration_seconds"])
        for row in rows
        if row.clip_id in faults
    ]
    return [pair for pair in sound if pair[0].clip_id not in faults], rejections


def _filled(row: Row, measured: Mapping[Span, Measured]) -> Row:
    """The row, with what a recogniser heard where it has no text of its own."""
    transcript = measured[row.span]["transcript"]
    is_lacking = row.conversation is None and is_blank(row.text)
    return replace(row, text=transcript) if is_lacking and transcript else row


def _fault(row: Row, measured: Mapping[Span, Measured], limits: ValidateConfig) -> Fault | None:
    """What is wrong with a row by itself."""
    if fault := _conversation_fault(row, measured, limits):
        return fault
    if is_blank(row.text):
        return Fault(Reason.TEXT_EMPTY, "`text` is empty")
    for key in ("text", "scene", "ref_text", "speaker"):
        if token := find_control_token([getattr(row, key) or ""]):
            return Fault(Reason.CONTROL_TOKEN, f"`{key}` contains {token:.60}")
    target = row.span
    if fault := _audio_fault(target, measured, limits):
        return fault
    reference = row.reference_span
    if reference is None:
        return None
    if fault := _audio_fault(reference, measured, limits):
        is_missing = fault.reason is Reason.AUDIO_MISSING
        reason = Reason.REFERENCE_MISSING if is_missing else Reason.REFERENCE_UNREADABLE
        return Fault(reason, fault.fact)
    # A reference is a whole file, so it holds any segment of that file.
    if (
        reference.audio_path == target.audio_path
        or measured[reference]["pcm_sha256"] == measured[target]["pcm_sha256"]
    ):
        return Fault(Reason.REFERENCE_IS_TARGET, "`ref_audio` is the same recording as `audio`")
    return None


def _conversation_fault(
    row: Row, measured: Mapping[Span, Measured], limits: ValidateConfig
) -> Fault | None:
    """What is wrong with a turn, or with what one turn has of another."""
    turns = row.conversation.turns if row.conversation else ()
    for number, turn in enumerate(turns, start=1):
        if token := find_control_token(turn.texts):
            return Fault(Reason.CONTROL_TOKEN, f"turn {number} contains {token:.60}")
        if is_blank(turn.text) and not turn.recordings:
            return Fault(Reason.TEXT_EMPTY, f"turn {number} says nothing")
    for heard in row.utterances:
        if fault := _audio_fault(heard.recording, measured, limits):
            return Fault(fault.reason, f"turn {heard.turn_number}: {fault.fact}")
    for prompt, target in product(row.utterances, row.utterances):
        if prompt.is_target or not target.is_target:
            continue
        one, other = prompt.recording, target.recording
        has_equal_samples = measured[one]["pcm_sha256"] == measured[other]["pcm_sha256"]
        if has_equal_samples or one.overlaps(other):
            fact = (
                f"turn {prompt.turn_number} holds audio of turn {target.turn_number}, "
                "which is to be learned"
            )
            return Fault(Reason.REFERENCE_IS_TARGET, fact)
    return None


def _filtered(
    row: Row, clip: Clip, measured: Mapping[Span, Measured], limits: ValidateConfig
) -> Fault | None:
    """What the filters have against what is learned of a row."""
    learned = [("", clip)]
    for heard in row.utterances:
        if heard.is_target and not heard.is_own:
            other = _clip(_alone(row, heard.text), measured[heard.recording])
            learned.append((f"turn {heard.turn_number}: ", other))
    for place, of in learned:
        if found := filters.faults(of, limits.filters):
            reason, fact = found[0]
            return Fault(reason, f"{place}{fact}")
    return None


def _audio_fault(
    span: Span, measured: Mapping[Span, Measured], limits: ValidateConfig
) -> Fault | None:
    """What is wrong with a recording; one that is too short is that before all else."""
    found = measured[span]
    seconds = found["duration_seconds"]
    if seconds is not None and seconds < limits.min_clip_seconds:
        fact = f"lasts {seconds:.3f} s, less than {limits.min_clip_seconds:g} s"
        return Fault(Reason.TOO_SHORT, f"{span.name} {fact}")
    if found["reason"] is not None:
        return Fault(Reason[found["reason"].upper()], found["fact"])
    return None


def _split_conflicts(
    sound: Sequence[tuple[Row, Clip]], measured: Mapping[Span, Measured], data: DataConfig
) -> dict[str, Fault]:
    """Rows that are given to train and share something with a row that is given to eval."""
    rows = [row for row, _ in sound]
    if not any(row.split == EVAL for row in rows):
        return {}
    clips = [clip for _, clip in sound]
    keys = keys_of(clips, data, beside(clips, _add_references(sound, measured)))
    groups = groups_of(keys)
    held_out: dict[Key, Row] = {}
    held_out_groups: dict[str, Row] = {}
    for row, own, group in zip(rows, keys, groups, strict=True):
        if row.split == EVAL:
            held_out_groups.setdefault(group, row)
            for key in own:
                held_out.setdefault(key, row)
    conflicts = {}
    for row, own, group in zip(rows, keys, groups, strict=True):
        if row.split == TRAIN and group in held_out_groups:
            shared = next((key for key in own if key in held_out), None)
            other = (held_out[shared] if shared else held_out_groups[group]).place
            # A row without a split may stand between the two.
            what = f"the same {shared.kind}" if shared else "clips that are linked with it"
            fact = f"`split` is {TRAIN!r}, and {EVAL!r} for {what} at {other}"
            conflicts[row.clip_id] = Fault(Reason.SPLIT_CONFLICT, fact)
    return conflicts


def _dialogue_faults(rows: Sequence[Row], faults: Mapping[str, Fault]) -> dict[str, Fault]:
    """The sound rows of dialogues that lack a turn: none of it can be trained on."""
    dialogues: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        if row.dialogue_id is not None and row.turn is not None:
            dialogues[row.dialogue_id].append((row.turn, row))
    incomplete: dict[str, Fault] = {}
    for dialogue_id, turns in dialogues.items():
        if lack := _lack(turns, faults):
            fault = Fault(Reason.DIALOGUE_INCOMPLETE, f"the dialogue {dialogue_id!r} {lack}")
            sound = (row.clip_id for _, row in turns if row.clip_id not in faults)
            incomplete |= dict.fromkeys(sound, fault)
    return incomplete


def _lack(turns: Sequence[tuple[int, Row]], faults: Mapping[str, Fault]) -> str | None:
    """What keeps rows from being all the turns of a dialogue, counted from 0 or from 1."""
    places: dict[int, Row] = {}
    for turn, row in turns:
        if turn in places:
            return f"has turn {turn} twice, at {places[turn].place} and {row.place}"
        places[turn] = row
    for turn in range(min(1, *places), max(places) + 1):
        if turn not in places:
            return f"lacks turn {turn}"
        if fault := faults.get(places[turn].clip_id):
            return f"lacks turn {turn}, rejected as {fault.reason} ({places[turn].place})"
    return None


def _check_enough_accepted(
    num_rows: int, rejections: Sequence[Rejection], max_rejected_fraction: float
) -> None:
    offenders = list_offenders([str(rejection) for rejection in rejections])
    if len(rejections) / num_rows > max_rejected_fraction:
        raise UserError(
            f"{len(rejections):,} of {num_rows:,} rows are rejected, more than "
            f"validate.max_rejected_fraction = {max_rejected_fraction:g} allows:\n{offenders}\n"
            "Mend or drop these rows, or raise validate.max_rejected_fraction, and run again."
        )
    if len(rejections) == num_rows:
        raise UserError(f"no row is left:\n{offenders}\nMend these rows and run again.")


def _split(
    accepted: Sequence[tuple[Row, Clip]], references: Sequence[Clip], data: DataConfig
) -> None:
    """Give each clip its split."""
    clips = [clip for _, clip in accepted]
    given = [row.split for row, _ in accepted]
    groups = groups_of(keys_of(clips, data, beside(clips, references)))
    splits = assign_splits(groups, given, data.eval_fraction, data.split_seed)
    for clip, split in zip(clips, splits, strict=True):
        clip["split"] = split


def _add_references(
    accepted: Sequence[tuple[Row, Clip]], measured: Mapping[Span, Measured]
) -> list[Clip]:
    """The distinct recordings that go with the clips, as clips whose ids the clips now name.

    These are the reference recordings of rows, and all of a conversation but the row's own.
    """
    references: dict[tuple[str, str], Clip] = {}
    num_texts: Counter[str] = Counter()

    def id_of(row: Row, span: Span, text: str) -> str:
        recording = measured[span]
        key = (recording["pcm_sha256"], text)
        if key not in references:
            num_texts[key[0]] += 1
            clip = _clip(_alone(row, text), recording) | {"split": REFERENCE}
            clip["clip_id"] = _reference_id(*key, is_first=num_texts[key[0]] == 1)
            references[key] = clip
        clip_id: str = references[key]["clip_id"]
        return clip_id

    def with_ids(row: Row, conversation: Conversation[Span]) -> Conversation[ClipId]:
        ids = iter(
            row.clip_id if heard.is_own else id_of(row, heard.recording, heard.text)
            for heard in conversation.utterances()
        )
        return conversation.map_recordings(lambda _: ClipId(next(ids)))

    for row, clip in accepted:
        span = row.reference_span
        if span is not None and row.ref_text is not None:
            clip["reference_id"] = id_of(row, span, row.ref_text)
        if row.conversation is not None:
            clip["conversation"] = with_ids(row, row.conversation).to_json()
    return list(references.values())


def _alone(row: Row, text: str) -> Row:
    """A recording of the row, with its text, by itself."""
    return replace(row, text=text, scene=None, dialogue_id=None, turn=None, conversation=None)


def _reference_id(pcm_sha256: str, text: str, is_first: bool) -> str:
    """The id of a reference; another text for the same audio gives another id."""
    other = hashlib.sha256(f"{pcm_sha256} {text}".encode()).hexdigest()
    return f"ref-{(pcm_sha256 if is_first else other)[:16]}"


def _clip(row: Row, recording: Measured, is_transcript: bool = False) -> Clip:
    """A row of CLIPS, all but its split and what goes with it."""
    transcript = recording["transcript"]
    compares = transcript is not None and not is_transcript
    return {
        "clip_id": row.clip_id,
        **Span.of(recording)._asdict(),
        "manifest": row.manifest,
        "line": row.line,
        "text": row.text,
        "speaker": row.speaker,
        "language": row.language,
        "scene": row.scene,
        "dialogue_id": row.dialogue_id,
        "turn": row.turn,
        "conversation": None,
        "reference_id": None,
        **{name: recording[name] for name in MEASURED_NAMES},
        **vars(measure_text(row.text, row.language, recording["duration_seconds"])),
        "word_error_rate": word_error_rate(row.text, transcript) if compares else None,
        "text_source": "transcript" if is_transcript else "manifest",
    }


def _rejected_row(rejection: Rejection) -> dict[str, Any]:
    row = rejection.row
    return {
        "clip_id": row.clip_id,
        "audio": row.audio,
        "manifest": row.manifest,
        "line": row.line,
        "speaker": row.speaker,
        "language": row.language,
        "duration_seconds": rejection.duration_seconds,
        "reason": rejection.fault.reason.value,
        "message": rejection.message,
    }


def _check_both_splits(
    targets: Sequence[Clip], references: Sequence[Clip], data: DataConfig
) -> None:
    by_split = Counter(clip["split"] for clip in targets)
    for split, other in ((TRAIN, EVAL), (EVAL, TRAIN)):
        if by_split[split] == 0:
            keys = keys_of(targets, data, beside(targets, references))
            num_groups = len(set(groups_of(keys)))
            raise UserError(
                f"no clip is left for {split}: the {len(targets):,} accepted clips form "
                f"{num_groups:,} group{'s' * (num_groups > 1)} of shared audio, text, dialogue, "
                f"speaker or recording, all in {other}.{_glue(keys)} "
                "Add recordings, or "
                f'give some rows "split": "{split}" (or no split) in the manifest.'
            )


def _glue(keys: Sequence[Sequence[Key]]) -> str:
    """What holds clips together, how many, and what would let go of them."""
    num_clips = Counter(key for own in keys for key in set(own))
    shared = Counter(key.kind for own in keys for key in set(own) if num_clips[key] > 1)
    return "".join(
        f" {num:,} clips share their {kind} with others ({LOOSENED_BY[kind]})."
        for kind, num in shared.most_common()
    )


def _by_shard(clips: Sequence[Clip], num_shards: int) -> list[list[Clip]]:
    by_shard: list[list[Clip]] = [[] for _ in range(num_shards)]
    for clip in sorted(clips, key=lambda clip: str(clip["clip_id"])):
        by_shard[shard_of(clip["clip_id"], num_shards)].append(clip)
    return by_shard


if __name__ == "__main__":
    main(run)
