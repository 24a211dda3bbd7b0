"""The table of clips in memory, as the planner of samples reads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.data.specs import CLIPS, REFERENCE
from higgs_pipe.data.tables import open_table
from higgs_pipe.errors import UserError, list_offenders

EMBEDDING = "speaker_embedding"  # null where no speaker model ran
TEXT_COLUMNS = ("clip_id", "text", "scene", "conversation", "manifest", "line")
GROUP_COLUMNS = ("speaker", "split", "reference_id", "dialogue_id", "turn")
AUDIO_COLUMNS = (
    *("audio_sha256", "start_seconds", "end_seconds", "duration_seconds", "pcm_sha256", EMBEDDING),
)
CLIP_COLUMNS = TEXT_COLUMNS + GROUP_COLUMNS + AUDIO_COLUMNS

# TEXT_COLUMNS of a clip by name, and ``clip``, its row in the table.
ClipRow = dict[str, Any]


class Clips:
    """The table of clips by column: a few numbers per clip in memory, texts on request.

    A clip is its row in the table; -1 is no speaker, no reference or no dialogue.

    Raises:
        UserError: A clip names a reference that is not in the table.
    """

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the columns of ``clips.parquet`` that packing needs."""
        table = open_table(path, CLIPS)
        return cls(table.read(CLIP_COLUMNS))

    def __init__(self, table: pa.Table) -> None:
        self._table = table.select(TEXT_COLUMNS)
        self.ids: pa.Array = _column(table, "clip_id")
        self.speaker, speakers = _coded(table, "speaker")  # (N,)
        self.split, splits = _coded(table, "split")
        self.dialogue, dialogues = _coded(table, "dialogue_id")
        self.speakers, self._splits = speakers.to_pylist(), splits.to_pylist()
        self.dialogues = dialogues.to_pylist()
        self.turn = _numbers(table, "turn", -1)
        self.is_conversation = _column(table, "conversation").is_valid().to_numpy(False)
        self.reference = self._references(_column(table, "reference_id"))
        self._audio, _ = _coded(table, "pcm_sha256")
        self._file, _ = _coded(table, "audio_sha256")
        self._start = _numbers(table, "start_seconds", 0.0)
        self._end = _numbers(table, "end_seconds", np.inf)
        self.seconds = _numbers(table, "duration_seconds", 0.0)
        self._embeddings = _column(table, EMBEDDING)
        self.has_embeddings = self._embeddings.null_count < len(self._embeddings)
        self._by_id: dict[str, int] = {}
        self._audio_by_split: dict[str, tuple[set[int], set[int]]] = {}

    def _references(self, named: pa.Array) -> npt.NDArray[np.int32]:
        found = pc.index_in(named, value_set=self.ids)
        missing = named.filter(pc.and_(named.is_valid(), found.is_null()))
        if len(missing):
            raise UserError(
                "references that are not in the table of clips:\n"
                f"{list_offenders(missing.to_pylist())}\n"
                f"run: snakemake --forcerun {CLIPS.made_by}"
            )
        return cast("npt.NDArray[np.int32]", found.fill_null(-1).to_numpy())

    def in_split(self, split: str) -> npt.NDArray[np.int64]:
        """Return the clips of a split, in the table's order."""
        if split not in self._splits:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.split == self._splits.index(split))

    def rows(self, clips: Sequence[int]) -> dict[int, ClipRow]:
        """Return the texts of some clips: ``TEXT_COLUMNS``, and ``clip``."""
        wanted = sorted(set(clips))
        rows = self._table.take(wanted).to_pylist()
        return {clip: row | {"clip": clip} for clip, row in zip(wanted, rows, strict=True)}

    def texts(self, clips: npt.NDArray[np.int64]) -> list[str]:
        """Return the transcripts of some clips."""
        return cast("list[str]", self._table.column("text").take(clips).to_pylist())

    def place(self, clip: int) -> str:
        """Return the manifest and line of a clip."""
        row = self.rows([clip])[clip]
        return f"{row['manifest']}:{row['line']}"

    def by_id(self, clip_id: str) -> int:
        """Return the reference clip with an id, for a recording of a conversation."""
        if not self._by_id:
            references = self.in_split(REFERENCE)
            ids = self.ids.take(references).to_pylist()
            self._by_id = dict(zip(ids, references.tolist(), strict=True))
        return self._by_id[clip_id]

    def shares_audio(self, clip: int, others: Sequence[int]) -> bool:
        """Return whether a clip has the samples of another one, or overlaps one in its file."""
        return any(
            self._audio[clip] == self._audio[other]
            or (
                self._file[clip] == self._file[other]
                and self._start[clip] < self._end[other]
                and self._start[other] < self._end[clip]
            )
            for other in others
        )

    def holds_audio_of(self, clip: int, split: str) -> bool:
        """Return whether a recording has the samples or the file of a clip in a split."""
        if split not in self._audio_by_split:
            members = self.in_split(split)
            self._audio_by_split[split] = (
                set(self._audio[members].tolist()),
                set(self._file[members].tolist()),
            )
        audio, files = self._audio_by_split[split]
        return self._audio[clip] in audio or self._file[clip] in files

    def most_similar(self, clip: int, candidates: Sequence[int]) -> int:
        """Return the candidate whose speaker embedding has the largest cosine to the clip's.

        The first candidate if the clip or all candidates lack an embedding.
        """
        if (target := self._direction(clip)) is None:
            return candidates[0]
        directions = [(c, self._direction(c)) for c in candidates]
        cosines = [(float(d @ target), c) for c, d in directions if d is not None]
        return max(cosines, key=lambda item: item[0])[1] if cosines else candidates[0]

    def _direction(self, clip: int) -> npt.NDArray[np.float64] | None:
        """Return the clip's speaker embedding, scaled to length 1."""
        if not self._embeddings[clip].is_valid:
            return None
        vector = self._embeddings[clip].values.to_numpy().astype(np.float64)
        return cast("npt.NDArray[np.float64]", vector / np.linalg.norm(vector))


def _column(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _coded(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Return a column as numbers, and the value of each number; -1 is a missing value."""
    encoded = _column(table, name).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary


def _numbers(table: pa.Table, name: str, missing: float) -> Any:
    return _column(table, name).fill_null(missing).to_numpy()
