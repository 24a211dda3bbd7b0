"""Reading of the user's manifests into rows, checked one by one."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from higgs_pipe.config.settings import ManifestEntry
from higgs_pipe.data.manifests.checking import checked_row, faults_of, unusable_keys
from higgs_pipe.data.manifests.detection import LOOKED_FOR, detect
from higgs_pipe.data.manifests.fields import OUR_KEYS, REQUIRED_KEYS, RowFault, as_text
from higgs_pipe.data.manifests.formats import READERS, TABLES
from higgs_pipe.data.manifests.formats.roles import is_audio_path
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.manifests.row_table import ManifestRows, RowColumns
from higgs_pipe.data.manifests.source import Findings, RawRow, RawRows, Source, TooManyFaultsError
from higgs_pipe.errors import NUM_OFFENDERS_SHOWN, UserError, list_offenders
from higgs_pipe.planning.bounds import MAX_FAULTS, MAX_IGNORED_KEYS, MAX_ROWS
from higgs_pipe.planning.folders import audio_stem, files_below

OTHER_KEYS = "(other keys)"
ROW_EXAMPLE = '{"audio": "wavs/a.wav", "text": "What is said."}'


@dataclass(frozen=True)
class _Found:
    """Sound rows of the manifests, and their keys that are not ours."""

    rows: RowColumns = field(default_factory=RowColumns)
    numbers: dict[str, int] = field(default_factory=dict)  # of the rows, by their ids
    ignored_keys: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> Row | None:
        """Add a row; return the one that has its id already, if any."""
        first = self.numbers.setdefault(row.clip_id, len(self.rows))
        self.rows.append(row)
        return None if first == len(self.rows) - 1 else self.rows[first]

    def ignore(self, keys: Iterable[str]) -> None:
        """Count keys of a row that are not used."""
        for key in keys:
            if key in self.ignored_keys or len(self.ignored_keys) < MAX_IGNORED_KEYS:
                self.ignored_keys[key] += 1
            else:
                self.ignored_keys[OTHER_KEYS] += 1


def read_manifests(
    manifests: Sequence[str | ManifestEntry], extract_to: Path | None = None
) -> ManifestRows:
    """Read and check the manifests without opening the audio.

    A blank value of an optional key counts as none. The id of a row without one is its audio path
    without the suffix, and its segment if it is one.

    Args:
        manifests: Paths, or entries with more details.
        extract_to: Folder for recordings embedded in a manifest.

    Raises:
        UserError: A manifest is missing, empty, not UTF-8 or of no known format, or a line is not
            a row; lists every fault of every manifest, equal ones once.
    """
    findings = Findings()
    found = _Found()
    num_manifests: Counter[str] = Counter()  # by speaker
    try:
        for manifest in manifests:
            entry = ManifestEntry(path=manifest) if isinstance(manifest, str) else manifest
            source = Source(entry.path, _root(entry), _columns(entry), findings, extract_to)
            num_manifests.update(_read_manifest(entry, source, found))
    except TooManyFaultsError:
        raise UserError(_message(findings.faults, is_all=False)) from None
    if findings.faults:
        raise UserError(_message(findings.faults))
    if shared := sorted(name for name, times in num_manifests.items() if times > 1):
        findings.notes[
            f"several manifests have the speakers {', '.join(shared):.60}: these are taken for the "
            "same people; rename them if they are not"
        ] = None
    return ManifestRows(
        found.rows,
        dict(sorted(found.ignored_keys.items())),
        tuple(findings.notes),
        {
            reason: sorted(map(as_text, names))
            for reason, names in sorted(findings.left_out.items())
        },
        findings.transcripts,
    )


def _read_manifest(entry: ManifestEntry, source: Source, found: _Found) -> set[str]:
    """Add what a manifest holds; return its speakers. One row at a time is in memory."""
    speakers: set[str] = set()
    recordings: set[str] = set()
    faults: list[tuple[str, str]] = []  # of rows; those of the reader are listed first
    raw_rows = _raw_rows(entry, source)
    head = _until_complete(raw_rows)
    if lacking := _key_of_no_row(head):
        source.fault(*lacking)
        return set()
    for raw in itertools.chain(head, raw_rows):
        del faults[MAX_FAULTS:]  # no more are told
        if row_faults := faults_of(raw):
            faults += [(f"{raw.file}:{raw.line}", fault) for fault in row_faults]
            continue
        row = checked_row(raw, source.root, source.extract_to)
        if first := found.add(row):
            fact = (
                f"the id {row.clip_id!r} is taken by {first.place}; give each row an `id` of "
                "its own (without one, a row takes its audio path)"
            )
            faults.append((row.place, fact))
        found.ignore((*(raw.fields.keys() - OUR_KEYS), *unusable_keys(raw.fields)))
        if row.speaker is not None:
            speakers.add(row.speaker)
        if source.is_folder:
            recordings.update(span.audio_path for span in row.all_spans)
    for place, fact in faults:
        source.fault(place, fact)
    _note_unread_files(recordings, source)
    return speakers


def _until_complete(raw_rows: RawRows) -> list[RawRow]:
    """Take rows until each required key had a value: all of them if one never has."""
    taken: list[RawRow] = []
    lacking = set(REQUIRED_KEYS)
    while lacking and (raw := next(raw_rows, None)):
        taken.append(raw)
        lacking -= {key for key in REQUIRED_KEYS if raw.fields.get(key) is not None}
    return taken


def _raw_rows(entry: ManifestEntry, source: Source) -> RawRows:
    """Yield the rows of one manifest, with the values that its entry gives for all."""
    name = _format_of(entry, source)
    if name is None:
        return
    if entry.columns and name not in TABLES:
        source.fault(entry.path, f"leave out `columns`: {name} has none to rename")
        return
    given = {"speaker": entry.speaker, "language": entry.language, "split": entry.split}
    unseen = dict(source.columns)
    num_faults, num_rows = len(source.findings.faults), 0
    for raw in READERS[name](source):
        num_rows += 1
        if num_rows > MAX_ROWS:
            source.fault(entry.path, f"more than {MAX_ROWS:,} rows; split the corpus")
            return
        for ours in unseen.keys() & raw.fields.keys():
            del unseen[ours]
        for key, value in given.items():
            own = raw.fields.get(key)
            is_blank = own is None or (isinstance(own, str) and not own.strip())
            if value is not None and (is_blank or key in raw.guessed):
                raw.fields[key] = value
        yield raw
    if num_rows:
        for ours, theirs in unseen.items():
            source.fault(entry.path, f"no row has {theirs!r}, which `columns` names as {ours}")
    elif len(source.findings.faults) == num_faults:
        source.fault(entry.path, "the manifest is empty")


def _format_of(entry: ManifestEntry, source: Source) -> str | None:
    """Return the format of a manifest; None after a fault."""
    name: str | None = entry.format
    if name == "auto":
        with source.at(entry.path):
            name = detect(entry.path, source.columns)
            if name is None:
                raise RowFault(
                    f"the manifest fits no format; looked for {LOOKED_FOR}. "
                    "Or name its `format` in config.yaml"
                )
    return None if name == "auto" else name


def _key_of_no_row(raw_rows: Sequence[RawRow]) -> tuple[str, str] | None:
    """Return the place and the fact, if several rows all lack the audio or the text."""
    lacking = [key for key in REQUIRED_KEYS if all(raw.fields.get(key) is None for raw in raw_rows)]
    others = list(dict.fromkeys(key for raw in raw_rows for key in raw.fields.keys() - OUR_KEYS))
    if len(raw_rows) < 2 or not lacking or not others:
        return None
    values = {
        name: [str(raw.fields[name]) for raw in raw_rows if raw.fields.get(name) is not None]
        for name in sorted(others)
    }
    likely = _likely_columns(values)
    names = ", ".join(map(repr, values))
    columns = ", ".join(f"{key}: {likely.get(key, '...')}" for key in lacking)
    return (
        f"{raw_rows[0].file}:{raw_rows[0].line}",
        f"no row has {' or '.join(map(repr, lacking))}; the rows have {names:.200}. Name them in "
        f"the manifest's entry of config.yaml: columns: {{{columns}}}",
    )


def _likely_columns(values: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the columns that hold names of recordings, and the longest other texts."""
    audio = [name for name, said in values.items() if said and all(map(is_audio_path, said))]
    texts = {
        name: sum(map(len, said)) / len(said)
        for name, said in values.items()
        if said and name not in audio and any(" " in text.strip() for text in said)
    }
    text = max(texts, key=texts.__getitem__, default=None)
    return {**({"audio": audio[0]} if audio else {}), **({"text": text} if text else {})}


def _note_unread_files(recordings: Iterable[str], source: Source) -> None:
    """Note the recordings below a folder that is a manifest, other than those that rows name."""
    if not source.is_folder:
        return
    named = {str(Path(path).resolve()) for path in recordings}
    left_out = {name for names in source.findings.left_out.values() for name in names}
    for file in files_below(Path(source.path)):
        if audio_stem(file) and str(file) not in left_out and str(file.resolve()) not in named:
            source.leave_out("a recording that no row names", str(file))


def _message(faults: Sequence[tuple[str, str]], is_all: bool = True) -> str:
    """Return the faults as text; one with several places is listed once."""
    places: dict[str, list[str]] = {}
    for place, fact in faults:
        places.setdefault(fact, []).append(place)
    lines = []
    for fact, found in places.items():
        more = f" ... and {len(found) - NUM_OFFENDERS_SHOWN:,} more"
        shown = ", ".join(found[:NUM_OFFENDERS_SHOWN])
        lines.append(f"{shown}{more if len(found) > NUM_OFFENDERS_SHOWN else ''}: {fact}")
    rest = "" if is_all else "So many that the rest of the manifest was not read.\n"
    return (
        f"the manifest has {'1 fault' if len(lines) == 1 else f'{len(lines):,} faults'}:\n"
        f"{list_offenders(lines)}\n{rest}"
        "Fix the manifest, or name another as `manifest` in config.yaml, and run again.\n"
        f"A manifest is UTF-8 text, a JSON object per line: {ROW_EXAMPLE}\n"
        "Other formats, each with an example: examples/manifests/README.md"
    )


def _columns(entry: ManifestEntry) -> dict[str, str]:
    """Return the manifest's names for our keys."""
    return {str(ours): theirs for ours, theirs in entry.columns.items()}


def _root(entry: ManifestEntry) -> Path:
    """Return the folder that audio paths are relative to.

    It is relative if the config's path is, so that a project can be moved with its tables.
    """
    if entry.root is not None:
        return Path(entry.root)
    path = Path(entry.path)
    return path if path.is_dir() else path.parent
