"""Sound rows as clips, on disk until the whole corpus is known: their splits are still open."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from higgs_pipe.data.clips.keys import OtherRecording
from higgs_pipe.data.specs import CLIPS
from higgs_pipe.data.tables import TableFile, open_table, table_writer, write_groups

CLIPS_AT_ONCE = 2_000

# CLIPS, where ``split`` is the given one, and references are not linked yet.
DRAFTS = replace(
    CLIPS,
    name="draft clips",
    columns=tuple(replace(c, nullable=c.nullable or c.name == "split") for c in CLIPS.columns),
)


@dataclass(frozen=True)
class Drafts:
    """The clips in a file, or some of them, in the manifest's order."""

    file: TableFile
    is_kept: npt.NDArray[np.bool_]  # of each row of the file
    others: Sequence[OtherRecording]  # in the clips' conversations, in their order

    @classmethod
    def write(
        cls, path: Path, clips: Iterable[Mapping[str, Any]], others: Sequence[OtherRecording]
    ) -> Self:
        """Write rows of DRAFTS to a file; ``others`` is complete when the last one was taken."""
        with table_writer(path, DRAFTS) as writer:
            num_clips = write_groups(writer, DRAFTS, clips, CLIPS_AT_ONCE)
        return cls(open_table(path, DRAFTS), np.ones(num_clips, np.bool_), others)

    def __len__(self) -> int:
        return int(self.is_kept.sum())

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Return some columns of the clips."""
        table = self.file.read(columns)
        return table if self.is_kept.all() else table.filter(pa.array(self.is_kept))

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the clips."""
        return self.table([name]).column(name)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the clips with all their columns, a part at a time."""
        first = 0
        for batch in self.file.iter_batches(CLIPS_AT_ONCE):
            is_kept = self.is_kept[first : first + len(batch)]
            yield pa.Table.from_batches([batch]).filter(pa.array(is_kept))
            first += len(batch)

    def without(self, clip_ids: Collection[str]) -> "Drafts":
        """Return the clips whose ids are not among these."""
        stays = np.array([name not in clip_ids for name in self.column("clip_id").to_pylist()])
        is_kept, places = self.is_kept.copy(), np.cumsum(stays) - 1
        is_kept[is_kept] = stays
        others = [other for other in self.others if stays[other.clip]]
        moved = [other._replace(clip=int(places[other.clip])) for other in others]
        return Drafts(self.file, is_kept, moved)
