"""Random access to the codes of all shards by clip."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from higgs_pipe.data.files import check_free_space
from higgs_pipe.data.specs import CodecInfo, codes_spec
from higgs_pipe.data.spool import Spool
from higgs_pipe.data.tables import TableFile, open_table, read_codec_info
from higgs_pipe.errors import UserError, list_offenders

CLIPS_PER_READ = 1024
REMEDY = "run: snakemake --forcerun tokenize_shard"


class CodesStore:
    """Codes of every clip, copied into a temporary file: int16, 400 bytes per second for K = 8.

    Memory holds 12 bytes per clip, and the ids of the shards while they are read. A thread copies
    the codes; the first access waits for it.

    Args:
        shards: The tables of codes, all of one codec.
        clip_ids: The clips, in the order by which they are indexed.
        directory: The folder of the temporary file.

    Raises:
        UserError: A shard is missing or unreadable, the shards come from different codecs, a clip
            has no codes, or the disk has no room.
    """

    def __init__(self, shards: Sequence[Path], clip_ids: pa.Array, directory: Path) -> None:
        self.codec_info: CodecInfo = read_codec_info(shards[0])
        for shard in shards[1:]:
            info = read_codec_info(shard)
            if info != self.codec_info:
                raise UserError(
                    f"{shard} was made by another codec or in another dtype than {shards[0]} "
                    f"({info.codec} in {info.dtype}, {self.codec_info.codec} in "
                    f"{self.codec_info.dtype}); {REMEDY}"
                )
        spec = codes_spec(self.codec_info.num_codebooks)
        tables = [open_table(shard, spec) for shard in shards]
        listing = [table.read(columns=["clip_id", "num_frames"]) for table in tables]
        self._place(pa.concat_tables(listing), clip_ids)
        num_codes = int(self.num_frames.sum()) * self.codec_info.num_codebooks
        check_free_space(directory, 2 * num_codes, "a copy of all codes")
        self._spool = Spool(directory, np.int16)
        self._background = ThreadPoolExecutor(1)
        self._copied = self._background.submit(self._copy, tables)

    def _copy(self, tables: Sequence[TableFile]) -> None:
        for table in tables:
            for batch in table.iter_batches(CLIPS_PER_READ, columns=["codes"]):
                self._spool.append(_flat(batch.column("codes")))

    def _place(self, listing: pa.Table, clip_ids: pa.Array) -> None:
        """Find the position of each clip's codes, which lie in the file in the shards' order."""
        row = pc.index_in(clip_ids, value_set=listing.column("clip_id").combine_chunks())
        if row.null_count:
            missing = clip_ids.filter(pc.is_null(row)).to_pylist()
            raise UserError(f"clips without codes:\n{list_offenders(missing)}\n{REMEDY}")
        num_frames = listing.column("num_frames").to_numpy()
        starts = np.cumsum(num_frames, dtype=np.int64) - num_frames
        self.num_frames: npt.NDArray[np.int32] = num_frames[row.to_numpy()]  # (N,) T of each clip
        self._starts = starts[row.to_numpy()]

    def __getitem__(self, clip: int) -> npt.NDArray[np.int16]:
        self._copied.result()
        num_codebooks = self.codec_info.num_codebooks
        start, num_frames = int(self._starts[clip]), int(self.num_frames[clip])
        codes = self._spool.read(start * num_codebooks, num_frames * num_codebooks)
        return codes.reshape(num_frames, num_codebooks)

    def joined(self, clips: Sequence[int]) -> npt.NDArray[np.int16]:
        """Return the codes of some clips, joined in time: (sum of T, K)."""
        return self[clips[0]] if len(clips) == 1 else np.concatenate([self[c] for c in clips])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._background.shutdown()
        self._spool.close()


def _flat(codes: Any) -> npt.NDArray[np.int16]:
    """Return the codes of a batch, one clip after the other: (sum of T * K,)."""
    return cast("npt.NDArray[np.int16]", codes.flatten().flatten().to_numpy())
