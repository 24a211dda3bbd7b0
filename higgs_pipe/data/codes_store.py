"""The codes of all shards, by clip."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from higgs_pipe.data.tables import CodecInfo, codes_spec, read_codec_info, read_table
from higgs_pipe.errors import UserError


class CodesStore:
    """Codes (T, K) of every clip, held as int16: about 400 bytes a second of audio for K = 8.

    Raises:
        UserError: A shard is missing or unreadable, or the shards come from different codecs.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.codec_info: CodecInfo = read_codec_info(shards[0])
        self._codes: dict[str, npt.NDArray[np.int16]] = {}
        for shard in shards:
            info = read_codec_info(shard)
            if info != self.codec_info:
                raise UserError(
                    f"{shard} was made by another codec or number type than {shards[0]} "
                    f"({info.codec} in {info.dtype}, {self.codec_info.codec} in "
                    f"{self.codec_info.dtype}); run: snakemake --forcerun tokenize_shard"
                )
            self._read(shard)

    def _read(self, shard: Path) -> None:
        num_codebooks = self.codec_info.num_codebooks
        table, _ = read_table(shard, codes_spec(num_codebooks))
        for batch in table.to_batches():
            codes: Any = batch.column("codes")
            flat = codes.values.values.to_numpy().reshape(-1, num_codebooks)  # (sum of T, K)
            offsets = codes.offsets.to_numpy()
            for row, clip_id in enumerate(batch.column("clip_id").to_pylist()):
                self._codes[clip_id] = flat[offsets[row] : offsets[row + 1]]

    def __getitem__(self, clip_id: str) -> npt.NDArray[np.int16]:
        try:
            return self._codes[clip_id]
        except KeyError:
            raise UserError(
                f"clip {clip_id!r} has no codes; run: snakemake --forcerun tokenize_shard"
            ) from None
