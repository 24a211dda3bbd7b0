"""Lists with ``|`` between the fields of a line, as in LJSpeech and for many voice trainers.

``path|text``, ``path|text|speaker``, ``path|speaker|text``, ``path|speaker|language|text``,
``path|text|normalized|speaker``, ``id|text``, ``id|raw|normalized``, ``id|speaker|text``, or any
order that a header names.
"""

from collections.abc import Sequence

from higgs_pipe.data.manifests.formats.delimited import read_cells, rows_of_cells
from higgs_pipe.data.manifests.formats.roles import Role
from higgs_pipe.data.manifests.source import RawRows, Source
from higgs_pipe.planning.file_names import METADATA_CSV


def read_ljspeech(source: Source) -> RawRows:
    """Read ``LJ001-0001|It was 5.|It was five.``; the recording is wavs/LJ001-0001.wav.

    The last field is the text. Other endings than .wav are found too, and recordings that lie in
    ``root`` itself. A first field that is a path makes it a list as :func:`read_filelist` reads.
    """
    yield from _rows(source, ("id", "text"))


def read_filelist(source: Source) -> RawRows:
    """Read ``wavs/a.wav|ada|en|What is said.``, or another order, recognised from the fields."""
    yield from _rows(source, ("audio", "speaker", "language", "text"))


def _rows(source: Source, default_roles: Sequence[Role]) -> RawRows:
    source = source.file_of(METADATA_CSV)
    yield from rows_of_cells(source, read_cells(source, "|", has_quotes=False), default_roles)
