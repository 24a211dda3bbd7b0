"""Clusters of held-out clips that are not independent: of one speaker, or from one recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

MIN_CLUSTERS = 5  # fewer speakers or recordings are not clusters

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """Groups of clips that are not independent of each other."""

    by: Literal["speaker", "recording", "clip"]
    index: npt.NDArray[np.intp]  # (N,) cluster of each row, from 0
    clip_index: npt.NDArray[np.intp]  # (N,) clip of each row, from 0

    @classmethod
    def of(
        cls,
        clip_ids: Sequence[str],
        recordings: Sequence[str | None],
        speakers: Sequence[str | None],
    ) -> "Clusters":
        """Group by speaker, else by recording, else by clip: the first with five groups.

        Args:
            clip_ids: Clip id of each row (N,); repeated if the clip was spoken several times.
            recordings: The recording of each clip; None stands for one of its own.
            speakers: The speaker of each clip; None stands for one of its own.
        """
        alone = [(clip_id,) for clip_id in clip_ids]

        def numbered(names: Sequence[str | None]) -> npt.NDArray[np.intp]:
            keys = [own if name is None else name for own, name in zip(alone, names, strict=True)]
            numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            return np.array([numbers[key] for key in keys], np.intp)

        by_clip = numbered([None] * len(alone))
        names: tuple[Literal["speaker", "recording"], Sequence[str | None]]
        for names in (("speaker", speakers), ("recording", recordings)):
            index = numbered(names[1])
            if MIN_CLUSTERS <= num_groups(index) < num_groups(by_clip):
                return cls(names[0], index, by_clip)
        return cls("clip", by_clip, by_clip)

    def take(self, rows: npt.ArrayLike) -> "Clusters":
        """Return the clusters of some of the rows, given by their indices or a mask (N,)."""
        taken = np.asarray(rows)
        _, index = np.unique(self.index[taken], return_inverse=True)
        return Clusters(self.by, index, self.clip_index[taken])

    def with_two_more(self) -> "Clusters":
        """Return these clusters and two new ones, of one new clip each."""
        new = np.arange(2)
        return Clusters(
            by=self.by,
            index=np.concatenate([self.index, num_groups(self.index) + new]),
            clip_index=np.concatenate([self.clip_index, num_groups(self.clip_index) + new]),
        )

    def totals(self, columns: Array) -> Array:
        """Sum columns (N, D) by cluster: (G, D), added in the order of the rows."""
        sums = np.zeros((num_groups(self.index), columns.shape[1]))
        np.add.at(sums, self.index, columns)
        return sums


def num_groups(index: npt.NDArray[np.intp]) -> int:
    """Return how many groups an index (N,) numbers, from 0."""
    return int(index.max()) + 1 if len(index) else 0
