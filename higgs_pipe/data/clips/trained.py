"""Clips that adapters are trained on, and rows of another manifest that overlap with them.

Such rows of ``eval.other_manifest`` are rejected: what was trained on cannot have been forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.drafts import Drafts
from higgs_pipe.data.clips.keys import OtherRecording, keys_of
from higgs_pipe.data.clips.overlap import REFERENCE_COLUMNS, others_of, references_of
from higgs_pipe.data.clips.reasons import Fault, Reason
from higgs_pipe.data.specs import CLIPS, TRAIN
from higgs_pipe.data.table_rows import TableRows
from higgs_pipe.data.tables import read_table

# Names of dialogues and speakers may mean something else in another manifest.
COMPARED = ("audio", "text", "recording")
COLUMNS = (*REFERENCE_COLUMNS, "manifest", "line", "split", "reference_id", "conversation")


@dataclass(frozen=True)
class TrainedClips:
    """The training split: rows of CLIPS, and the other recordings that they are trained with."""

    clips: pa.Table  # COLUMNS
    others: Sequence[OtherRecording]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``clips.parquet`` of the manifest that adapters are trained on."""
        table = read_table(path, CLIPS, COLUMNS)
        references = references_of(table.column)
        heard = list(others_of(table.column))
        for index, name in enumerate(table["reference_id"].to_pylist()):
            if name is not None:
                heard.append(OtherRecording(index, references[name], is_target=True))
        is_trained = pc.equal(table["split"], TRAIN).to_numpy()
        places = np.cumsum(is_trained) - 1
        # All that is heard counts as if it were a target.
        others = [
            OtherRecording(int(places[other.clip]), other.columns, is_target=True)
            for other in sorted(heard, key=lambda other: other.clip)
            if is_trained[other.clip]
        ]
        return cls(table.filter(pa.array(is_trained)), others)

    def faults(self, drafts: Drafts, data: DataConfig) -> dict[str, Fault]:
        """Return the rows that have audio or text of the training split, by clip id.

        Args:
            drafts: Sound rows of another manifest.
            data: The settings of the split: texts count with ``keep_text_together``, other segments
                of a file with ``split_by: recording``.
        """
        num_trained = len(self.clips)
        added = (other._replace(clip=num_trained + other.clip) for other in drafts.others)

        def column_of(name: str) -> pa.ChunkedArray:
            return pa.chunked_array([*self.clips[name].chunks, *drafts.column(name).chunks])

        keys = keys_of(column_of, data, [*self.others, *added])
        owners = keys.first_owners(np.arange(keys.num_clips) < num_trained)
        trained = TableRows(self.clips)
        faults = {}
        for index, clip_id in enumerate(drafts.column("clip_id").to_pylist(), start=num_trained):
            own = (key for key in keys.of(index) if keys.kind(key) in COMPARED)
            shared = next((key for key in own if owners[key] < num_trained), None)
            if shared is not None:
                row = trained[int(owners[shared])]
                fact = (
                    f"training has the same {keys.kind(shared)}, at {row['manifest']}:{row['line']}"
                )
                faults[clip_id] = Fault(Reason.ALSO_IN_TRAINING, fact)
        return faults
