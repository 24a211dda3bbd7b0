"""Micro-batches of few shapes: text, audio, samples and labels padded to sizes fixed per run.

Anything made once per shape, such as a CUDA graph, then serves a whole run. All micro-batches have
the same numbers of positions, samples and labels; only the border between text and audio moves, in
fixed steps. Padding is an extra row without labels, to whose samples no other sample attends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch.nn.functional import pad

from higgs_pipe.higgs.batch import (
    Labels,
    PackedBatch,
    PackedRow,
    RowSize,
    check_row,
    is_placeholder,
    lay_out,
)
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.shape import BaseShape

MAX_SHAPES = 65
ALIGNMENT = 16  # positions; matrix products are fastest over whole tiles


@dataclass(frozen=True)
class Grid:
    """Sizes of the padded micro-batches of a run: at most ``MAX_SHAPES`` shapes."""

    num_positions: int
    text_step: int  # positions of text are a multiple of it
    num_samples: int  # the last ones are padding or empty
    longest_sample: int
    num_text_labels: int

    @classmethod
    def of_rows(cls, rows: Sequence[RowSize], rows_per_micro_batch: int) -> Self:
        """Return the sizes that hold any micro-batch of at most so many of the rows."""

        def most(sizes: Sequence[int]) -> int:
            return sum(sorted(sizes)[-rows_per_micro_batch:])

        num_positions = most([row.num_positions for row in rows])
        step = _whole_tiles(math.ceil(num_positions / (MAX_SHAPES - 1)))
        # A step more, because the positions of text are rounded up.
        num_positions = _whole_tiles(num_positions) + step
        longest = max(row.longest_sample for row in rows)
        return cls(
            num_positions=num_positions,
            text_step=step,
            num_samples=most([r.num_samples for r in rows]) + math.ceil(num_positions / longest),
            longest_sample=longest,
            num_text_labels=_whole_tiles(most([row.num_text_labels for row in rows])),
        )

    def collate(
        self,
        rows: Sequence[PackedRow],
        config: BaseShape,
        dropout_seeds: Sequence[int] | None = None,
    ) -> PackedBatch:
        """Lay rows end to end as :func:`batch.collate` does, and pad them to one of the shapes.

        Losses, counts and gradients are those of the batch without padding.

        Args:
            rows: At least one, and no more than the grid is made for.
            config: The base's.
            dropout_seeds: One for each row.

        Raises:
            UserError: As for :func:`batch.collate`.
        """
        for row in rows:
            check_row(row, config)
        padding = self._padding_row(rows, config)
        seeds = None if dropout_seeds is None else [*dropout_seeds, 0]
        batch = lay_out([*rows, padding], config, seeds)
        samples = batch.layout.samples
        num_empty = self.num_samples + 1 - len(samples.offsets)
        end = samples.offsets[-1:].expand(num_empty)
        samples = samples._replace(
            offsets=torch.cat([samples.offsets, end]), longest=self.longest_sample
        )
        return replace(
            batch,
            text=self._padded(batch.text, self.num_text_labels),
            audio=self._padded(batch.audio, batch.audio_input_ids.shape[1]),
            layout=batch.layout._replace(samples=samples),
        )

    def _padding_row(self, rows: Sequence[PackedRow], config: BaseShape) -> PackedRow:
        """Return a row without labels that fills the others up."""
        num_frames = sum(len(row.audio_input_ids) for row in rows)
        num_text = sum(len(row.input_ids) for row in rows) - num_frames
        text_size = math.ceil(num_text / self.text_step) * self.text_step
        more_text = text_size - num_text
        more_frames = self.num_positions - text_size - num_frames
        text_id = next(i for i in range(3) if not is_placeholder(np.array(i, np.int32), config))
        input_ids = np.repeat([text_id, config.audio_token_id], [more_text, more_frames])
        whole, rest = divmod(len(input_ids), self.longest_sample)
        lengths = [self.longest_sample] * whole + ([rest] if rest else [])
        frames = np.zeros((more_frames, config.num_codebooks), np.int16)
        return PackedRow(
            input_ids=input_ids.astype(np.int32),
            labels=np.full(len(input_ids), IGNORED, np.int32),
            audio_input_ids=frames,
            audio_labels=np.full_like(frames, IGNORED),
            sample_ids=(),
            sample_lengths=np.array(lengths, np.int32),
        )

    def _padded(self, labels: Labels, size: int) -> Labels:
        num_more = size - len(labels.values)
        # Each at a place of its own: gradients of zero are added there, in parallel on a GPU.
        places = torch.arange(num_more) % self.num_positions
        return Labels(
            predictors=torch.cat([labels.predictors, places]),
            values=pad(labels.values, (0, 0, 0, num_more), value=IGNORED),
            samples=pad(labels.samples, (0, num_more)),
        )


def _whole_tiles(number: int) -> int:
    return math.ceil(number / ALIGNMENT) * ALIGNMENT
