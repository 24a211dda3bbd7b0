"""The manifest formats: a reader for each, from a file or folder to rows with our keys.

To add one: write its reader in the module of its family, or in a new one; name it in ``READERS``
here (and in ``TABLES`` if its columns can be renamed) and in ``config.settings.ManifestFormat``;
teach ``detection`` its first line, unless it must be named; add an example and its twin to
``examples/manifests/``, and a row to the table there.

A reader notes each fault in its source and continues, so that one run lists them all.
"""

from collections.abc import Callable

from higgs_pipe.data.manifests.formats.chatml import read_chatml_samples, read_ms_swift
from higgs_pipe.data.manifests.formats.folders import read_audiofolder, read_folder
from higgs_pipe.data.manifests.formats.lists import read_filelist, read_ljspeech
from higgs_pipe.data.manifests.formats.tables import read_csv, read_jsonl, read_parquet, read_tsv
from higgs_pipe.data.manifests.formats.toolkits import read_kaldi, read_lhotse, read_nemo
from higgs_pipe.data.manifests.source import RawRows, Source

READERS: dict[str, Callable[[Source], RawRows]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "ljspeech": read_ljspeech,
    "kaldi": read_kaldi,
    "nemo": read_nemo,
    "lhotse": read_lhotse,
    "audiofolder": read_audiofolder,
    "filelist": read_filelist,
    "ms-swift": read_ms_swift,
    "boson-chatml": read_chatml_samples,
    "folder": read_folder,
}
# Formats whose columns can be named.
TABLES = frozenset(
    {"jsonl", "csv", "tsv", "parquet", "nemo", "audiofolder", "filelist", "ljspeech"}
)
