"""Stage 1a: the manifests' rows in one table, and by shard the recordings that they name."""

import logging
from pathlib import Path

from higgs_pipe.cli import main
from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.config.stages import ListRowsStage, load_stage
from higgs_pipe.data.hashing import shard_of
from higgs_pipe.data.manifests.reading import read_manifests
from higgs_pipe.data.manifests.row_table import write_rows
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import RECORDINGS
from higgs_pipe.data.tables import write_shards

logger = logging.getLogger("higgs_pipe")


def run(config: Path, rows: Path, recordings_dir: Path) -> None:
    """Read and check the manifests; the audio is not looked at.

    Args:
        config: ``results/config/list_rows.json``.
        rows: Table to write: every row of every manifest, in order.
        recordings_dir: Folder for ``shard-00000.parquet`` ..., what one job measures: the
            recordings that the rows of a shard name. A row's shard is a hash of its id, and no
            row's place is written there: a row that is added, changed or removed, wherever in
            the manifest, changes the bytes of its own shard alone.

    Raises:
        UserError: A manifest is faulty; nothing is written then.
    """
    stage = load_stage(ListRowsStage, config)
    entries: list[str | ManifestEntry] = (
        [*stage.manifest] if isinstance(stage.manifest, list) else [stage.manifest]
    )
    manifest = read_manifests(entries)
    shards: list[set[Span]] = [set() for _ in range(stage.data.num_shards)]
    for row in manifest.rows:
        shards[shard_of(row.clip_id, len(shards))].update(row.all_spans)
    write_rows(rows, manifest)
    write_shards(
        recordings_dir,
        RECORDINGS,
        [[span._asdict() for span in sorted(shard, key=_order)] for shard in shards],
    )
    names = [entry if isinstance(entry, str) else entry.path for entry in entries]
    num_spans = sum(map(len, shards))
    logger.info(
        "%s: %d rows, %d recordings or segments to measure in %d shards",
        ", ".join(names),
        len(manifest.rows),
        num_spans,
        len(shards),
    )


def _order(span: Span) -> tuple[str, float, float]:
    """The spans of one file together, in time; None comes first."""
    audio_path, start_seconds, end_seconds = span
    return (
        audio_path,
        -1.0 if start_seconds is None else start_seconds,
        -1.0 if end_seconds is None else end_seconds,
    )


if __name__ == "__main__":
    main(run)
