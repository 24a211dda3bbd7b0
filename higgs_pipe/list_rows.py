"""Stage 1a: the manifests' rows in one table, and the recordings that they name, by shard."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from higgs_pipe.cli import main
from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.config.stages import ListRowsStage, load_stage
from higgs_pipe.data.files import atomic_write
from higgs_pipe.data.hashing import sha256_of_file, shard_of
from higgs_pipe.data.manifests.embedded import remove_unused
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row_table import StoredRows, write_rows
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import MEASURED, RECORDINGS
from higgs_pipe.data.tables import read_table, write_shards
from higgs_pipe.errors import UserError
from higgs_pipe.planning.manifests import manifest_files
from higgs_pipe.planning.recordings import (
    FIRST_STAMP,
    FileState,
    FileStates,
    folders_of_missing,
    read_states,
    save_states,
    states_of,
)
from higgs_pipe.planning.storage import fetched_path

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    rows: Path,
    recordings_dir: Path,
    file_states: Path | None = None,
    measured_dir: Path | None = None,
    stamp: str = FIRST_STAMP,
    fetched: str = "{}",
) -> None:
    """Read and check the manifests, and list the recordings without opening them.

    Args:
        config: ``results/config/list_rows.json``.
        rows: Table to write: every row of every manifest, in order. Recordings embedded in a
            Parquet table are written to a folder ``embedded`` beside it; files there that no row
            names any more are removed.
        recordings_dir: Folder for ``shard-00000.parquet`` ...: the recordings that the rows of a
            shard name, for one job to measure. A hash of its id assigns a row to a shard, and a
            row's place in the manifest is not written there, so adding, changing or removing a
            row changes the bytes of its own shard alone. So does a recording whose bytes change.
        file_states: JSON to read, if it exists, and to write: the state of every recording and
            manifest.
        measured_dir: The measures of an earlier run, if any: their hashes distinguish a recording
            that was only touched from one that changed.
        stamp: Text to write to ``file_states``; Snakemake passes another one when a recording or
            manifest has changed.
        fetched: JSON object, for manifests on object storage: the local path of each folder's URL.

    Raises:
        UserError: A manifest has errors; then nothing is written.
    """
    stage = load_stage(ListRowsStage, config)
    named: list[str | ManifestEntry] = (
        [*stage.manifest] if isinstance(stage.manifest, list) else [stage.manifest]
    )
    entries = [_local(entry, json.loads(fetched)) for entry in named]
    embedded = rows.absolute().with_name("embedded")
    states_of_manifests = states_of(manifest_files(stage.model_dump()))  # before they are read
    found = read_manifests(entries, extract_to=embedded)
    write_rows(rows, found, stamp)
    stored = StoredRows(rows)
    shards: list[set[Span]] = [set() for _ in range(stage.data.num_shards)]
    for row in stored:
        shards[shard_of(row.clip_id, len(shards))].update(row.all_spans)
    paths = sorted({span.audio_path for shard in shards for span in shard})
    seen = states_of(paths)
    first_seen = (
        {} if file_states is None else _first_seen(seen, read_states(file_states), measured_dir)
    )
    recordings = (
        (
            {**span._asdict(), **first_seen.get(span.audio_path, seen[span.audio_path])._asdict()}
            for span in sorted(shard, key=_order)
        )
        for shard in shards
    )
    write_shards(recordings_dir, RECORDINGS, recordings)
    if file_states is not None:
        others = {**found.transcripts, **states_of(folders_of_missing(seen))}
        others = {path: others[path] for path in sorted(others.keys() - states_of_manifests.keys())}
        states = FileStates(stamp, seen, first_seen, states_of_manifests, others)
        with atomic_write(file_states) as temporary:
            save_states(temporary, states)
    if num_removed := remove_unused(embedded, paths):
        logger.info("%s: removed %d recordings that no row names", embedded, num_removed)
    names = [entry if isinstance(entry, str) else entry.path for entry in named]
    num_spans = sum(map(len, shards))
    logger.info(
        "%s: %d rows, %d recordings or segments to measure in %d shards",
        ", ".join(names),
        len(stored),
        num_spans,
        len(shards),
    )


def _local(entry: str | ManifestEntry, fetched: Mapping[str, str]) -> str | ManifestEntry:
    """Return a manifest with the path that it was fetched to."""
    if isinstance(entry, str):
        return fetched_path(entry, fetched)
    paths = {"path": entry.path, "root": entry.root}
    return entry.model_copy(
        update={key: path and fetched_path(path, fetched) for key, path in paths.items()}
    )


def _first_seen(
    seen: Mapping[str, FileState], before: FileStates, measured_dir: Path | None
) -> dict[str, FileState]:
    """Return the states in which recordings were first seen with their present bytes.

    Only of those that were touched since. A recording with the same size but another modification
    time is hashed again.
    """
    first_seen = {}
    touched = []
    for path, state in seen.items():
        earlier = before.seen.get(path)
        if earlier == state:
            if path in before.first_seen:
                first_seen[path] = before.first_seen[path]
        elif earlier is not None and earlier.num_bytes == state.num_bytes is not None:
            touched.append(path)
    hashes = _measured_hashes(touched, measured_dir)
    num_changed = 0
    for path in touched:
        known = before.first_seen.get(path, before.seen[path])
        expected = hashes.get((path, known))
        if expected is not None and sha256_of_file(Path(path)) == expected:
            first_seen[path] = known
        else:
            num_changed += 1
    if touched:
        logger.info("%d recordings were touched, %d of them changed", len(touched), num_changed)
    was_touched = {path for path, state in first_seen.items() if state != seen[path]}
    return {path: first_seen[path] for path in sorted(was_touched)}


def _measured_hashes(
    paths: Iterable[str], measured_dir: Path | None
) -> dict[tuple[str, FileState], str]:
    """Return the SHA-256 of recordings, by path and state, as an earlier run measured them."""
    wanted = set(paths)
    found: dict[tuple[str, FileState], str] = {}
    if not wanted or measured_dir is None:
        return found
    columns = ["audio_path", "num_bytes", "mtime_ns", "audio_sha256"]
    for shard in sorted(measured_dir.glob("shard-*.parquet")):
        try:
            table = read_table(shard, MEASURED, columns)
        except UserError:
            continue  # by another version, or damaged
        for row in table.to_pylist():
            if row["audio_path"] in wanted and row["audio_sha256"] is not None:
                state = FileState(row["num_bytes"], row["mtime_ns"])
                found[row["audio_path"], state] = row["audio_sha256"]
    return found


def _order(span: Span) -> tuple[str, float, float]:
    """Sort the spans of one file together, in time; None comes first."""
    audio_path, start_seconds, end_seconds = span
    return (
        audio_path,
        -1.0 if start_seconds is None else start_seconds,
        -1.0 if end_seconds is None else end_seconds,
    )


if __name__ == "__main__":
    main(run)
