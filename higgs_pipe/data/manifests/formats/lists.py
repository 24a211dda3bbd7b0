"""Lists with ``|`` between the fields of a line."""

from collections.abc import Iterable
from pathlib import Path

from higgs_pipe.data.manifests.fields import RowFault
from higgs_pipe.data.manifests.source import RawRow, RawRows, Source
from higgs_pipe.planning.file_names import AUDIO_ENDINGS, METADATA_CSV


def read_ljspeech(source: Source) -> RawRows:
    """Read ``LJ001-0001|It was 5.|It was five.``; the recording is wavs/LJ001-0001.wav.

    The last field is taken as the text. Other endings than .wav are found too, and recordings
    that lie in ``root`` itself.
    """
    path = source.path if not Path(source.path).is_dir() else str(Path(source.path, METADATA_CSV))
    for line, text in source.lines(path):
        with source.at(f"{path}:{line}"):
            fields = [field.strip() for field in text.split("|")]
            if len(fields) not in (2, 3):
                raise RowFault(f"expected id|text or id|text|normalized text, found {text:.60}")
            clip_id, spoken = fields[0], fields[-1] or fields[1]
            audio = _found(source.root, (f"wavs/{clip_id}", clip_id)) or f"wavs/{clip_id}.wav"
            yield RawRow(path, line, {"id": clip_id, "audio": audio, "text": spoken})


def read_filelist(source: Source) -> RawRows:
    """Read ``wavs/a.wav|ada|en|What is said.``."""
    for line, text in source.lines(source.path):
        with source.at(f"{source.path}:{line}"):
            fields = [field.strip() for field in text.split("|", 3)]
            if len(fields) != 4:
                raise RowFault(f"expected path|speaker|language|text, found {text:.60}")
            named = zip(("audio", "speaker", "language", "text"), fields, strict=True)
            yield RawRow(source.path, line, dict(named))


def _found(root: Path, stems: Iterable[str]) -> str | None:
    """Return the first of ``stems`` that is a recording below ``root``, with its ending."""
    for stem in stems:
        for ending in ("", *AUDIO_ENDINGS):
            try:
                if (root / f"{stem}{ending}").is_file():
                    return f"{stem}{ending}"
            except (OSError, ValueError):
                return None
    return None
