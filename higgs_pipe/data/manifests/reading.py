"""From the user's manifests to rows, checked one by one."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.manifests.checking import checked_row, faults_of
from higgs_pipe.data.manifests.detection import LOOKED_FOR, detect
from higgs_pipe.data.manifests.fields import OUR_KEYS
from higgs_pipe.data.manifests.formats import READERS, TABLES
from higgs_pipe.data.manifests.row import ManifestRows, Row
from higgs_pipe.data.manifests.source import RawRow, Source
from higgs_pipe.errors import UserError, list_offenders

ROW_EXAMPLE = '{"audio": "wavs/a.wav", "text": "What is said."}'


def read_manifests(manifests: Sequence[str | ManifestEntry]) -> ManifestRows:
    """Read and check the manifests without opening the audio.

    A blank value of an optional key counts as none. The id of a row without one is its audio path
    without the suffix, and its segment if it is one.

    Args:
        manifests: Paths, or entries with more about a manifest.

    Raises:
        UserError: A manifest is missing, empty, not UTF-8 or of no known format, or a line is not
            a row; lists every fault of every manifest.
    """
    faults: list[str] = []
    rows: dict[str, Row] = {}
    ignored_keys: Counter[str] = Counter()
    for manifest in manifests:
        entry = ManifestEntry(path=manifest) if isinstance(manifest, str) else manifest
        name, raw_rows = _read(entry, faults)
        names = {**TABLES.get(name, {}), **_columns(entry)}
        for raw in raw_rows:
            fields = raw.fields
            if row_faults := faults_of(raw, names):
                faults += [f"{raw.file}:{raw.line}: {fault}" for fault in row_faults]
                continue
            row = checked_row(raw, _root(entry))
            first = rows.setdefault(row.clip_id, row)
            if first is not row:
                faults.append(
                    f"{row.place}: the id {row.clip_id!r} is taken by {first.place}; give each row "
                    "an `id` of its own (without one, a row takes its audio path)"
                )
            ignored_keys.update(fields.keys() - OUR_KEYS)
    if faults:
        raise UserError(
            f"the manifest has {'1 fault' if len(faults) == 1 else f'{len(faults):,} faults'}:\n"
            f"{list_offenders(faults)}\n"
            "Fix the manifest, or name another as `manifest` in config.yaml, and run again.\n"
            f"A manifest is UTF-8 text, a JSON object per line: {ROW_EXAMPLE}\n"
            "Other formats, each with an example: examples/manifests/README.md"
        )
    return ManifestRows(tuple(rows.values()), dict(sorted(ignored_keys.items())))


def _read(entry: ManifestEntry, faults: list[str]) -> tuple[str, list[RawRow]]:
    """Return the format of one manifest and its rows; what is wrong goes to ``faults``."""
    columns = _columns(entry)
    name = detect(entry.path, columns) if entry.format == "auto" else entry.format
    if name is None:
        faults.append(
            f"{entry.path}: the manifest fits no format; looked for {LOOKED_FOR}. "
            "Or name its `format` in config.yaml"
        )
        return "auto", []
    if entry.columns and name not in TABLES:
        faults.append(f"{entry.path}: leave out `columns`: {name} has none to rename")
        return name, []
    num_faults = len(faults)
    raw_rows = list(READERS[name](Source(entry.path, _root(entry), columns, faults)))
    if not raw_rows and len(faults) == num_faults:
        faults.append(f"{entry.path}: the manifest is empty")
    for ours, theirs in columns.items():
        if raw_rows and not any(ours in raw.fields for raw in raw_rows):
            faults.append(f"{entry.path}: no row has {theirs!r}, which `columns` names as {ours}")
    given = {"speaker": entry.speaker, "language": entry.language, "split": entry.split}
    for raw in raw_rows:
        for key, value in given.items():
            own = raw.fields.get(key)
            if value is not None and (own is None or (isinstance(own, str) and not own.strip())):
                raw.fields[key] = value
    return name, raw_rows


def _columns(entry: ManifestEntry) -> dict[str, str]:
    """Return the manifest's names of our keys."""
    return {str(ours): theirs for ours, theirs in entry.columns.items()}


def _root(entry: ManifestEntry) -> Path:
    """Return the folder that audio paths are relative to."""
    if entry.root is not None:
        return Path(entry.root).absolute()
    path = Path(entry.path)
    return (path if path.is_dir() else path.parent).absolute()
