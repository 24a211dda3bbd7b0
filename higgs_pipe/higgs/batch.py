"""Packed rows of the table as the tensors of one forward pass.

The rows of a micro-batch are laid end to end in one sequence: S positions, N samples, F delayed
frames. There is no padding, unless few shapes are required (``padding.py``). Everything that
depends on the data's layout is computed here, on the CPU, so that the forward pass never waits for
the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import recursively_apply
from torch import Tensor

from higgs_pipe.data.specs import packed_spec
from higgs_pipe.data.tables import open_table, read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.attention import SampleBounds
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.dropout import position_keys
from higgs_pipe.higgs.shape import BaseShape


@dataclass(frozen=True)
class PackedRow:
    """One row of ``packed/*.parquet``."""

    input_ids: npt.NDArray[np.int32]  # (S,)
    labels: npt.NDArray[np.int32]  # (S,)
    audio_input_ids: npt.NDArray[np.int16]  # (F, K)
    audio_labels: npt.NDArray[np.int16]  # (F, K)
    sample_ids: tuple[str, ...]  # (N,)
    sample_lengths: npt.NDArray[np.int32]  # (N,), sum S


class RowSize(NamedTuple):
    """Counts of a packed row that bound the shape of its micro-batch."""

    num_positions: int
    num_samples: int
    longest_sample: int
    num_text_labels: int


class PackedRows:
    """Random access to a table of packed rows; one row group in memory at a time.

    Raises:
        UserError: The table is missing, of another version, or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.codec_info = read_codec_info(path)
        self._table = open_table(path, packed_spec(self.codec_info.num_codebooks))
        if len(self) == 0:
            raise UserError(f"{path}: no packed row; run: snakemake --forcerun pack_rows")
        metadata = self._table.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group_ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._table.metadata.num_rows)

    def __getitem__(self, index: int) -> PackedRow:
        group = int(np.searchsorted(self._group_ends, index, side="right"))
        group_start = int(self._group_ends[group - 1]) if group else 0
        row = self._table.read_row_group(group).slice(index - group_start, 1)
        column = {name: row.column(name).chunk(0) for name in row.column_names}
        num_codebooks = self.codec_info.num_codebooks

        def array(name: str) -> Any:
            return column[name].flatten().to_numpy()

        def matrix(name: str) -> Any:
            return column[name].flatten().flatten().to_numpy().reshape(-1, num_codebooks)

        return PackedRow(
            input_ids=array("input_ids"),
            labels=array("labels"),
            audio_input_ids=matrix("audio_input_ids"),
            audio_labels=matrix("audio_labels"),
            sample_ids=tuple(column["sample_ids"].flatten().to_pylist()),
            sample_lengths=array("sample_lengths"),
        )

    def row_lengths(self) -> list[int]:
        """Count the positions of each row, from one small column."""
        lengths = self._table.read(columns=["sample_lengths"]).column(0).to_pylist()
        return [sum(of_samples) for of_samples in lengths]

    def sizes(self) -> list[RowSize]:
        """Measure each row, reading the whole table."""
        found = []
        for group in range(self._table.num_row_groups):
            table = self._table.read_row_group(group, columns=["sample_lengths", "labels"])
            for lengths, labels in zip(table["sample_lengths"], table["labels"], strict=True):
                of_samples, of_row = lengths.values.to_numpy(), labels.values.to_numpy()
                found.append(
                    RowSize(
                        num_positions=len(of_row),
                        num_samples=len(of_samples),
                        longest_sample=int(of_samples.max()),
                        num_text_labels=int((of_row != IGNORED).sum()),
                    )
                )
        return found


class Labels(NamedTuple):
    """Labels of M places, and the positions that predict them; K is 1 for text."""

    predictors: Tensor  # (M,) positions whose next token or frame is labelled
    values: Tensor  # (M, K), IGNORED where a codebook has none
    samples: Tensor  # (M,) the sample, from 0, that each place belongs to


class Layout(NamedTuple):
    """Positions of text, of audio, and of each sample."""

    num_text: int  # S - F
    routed: Tensor  # (S,) positions of text tokens, then of audio frames
    unrouted: Tensor  # (S,) where in ``routed`` each position is: its inverse
    samples: SampleBounds
    dropout_keys: Tensor | None = None  # (S,) int32


@dataclass(frozen=True)
class PackedBatch:
    """One forward pass over N samples in one sequence; index tensors are int64."""

    input_ids: Tensor  # (1, S)
    audio_input_ids: Tensor  # (1, F, K)
    position_ids: Tensor  # (1, S), from 0 in each sample
    text: Labels  # (L, 1)
    audio: Labels  # (M, K)
    layout: Layout
    stream_eos: int
    sample_ids: tuple[str, ...]  # (N,)

    def to(self, device: torch.device) -> Self:
        """Copy the batch to ``device``."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy the batch to page-locked memory, from which :meth:`to` copies without waiting."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **recursively_apply(change, parts))

    def tensors(self) -> list[Tensor]:
        """List all tensors, in the same order for every batch."""
        found: list[Tensor] = []

        def take(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self._with_each(take)
        return found

    def clone(self) -> Self:
        """Copy the batch on its device."""
        return self._with_each(Tensor.clone)

    def label_counts(self) -> Tensor:
        """Count the labels of each kind: (2 + K,) float64, columns as in :class:`loss.LossSums`."""
        is_label = self.audio.values != IGNORED
        stop = (self.audio.values == self.stream_eos).sum().reshape(1)
        text = (self.text.values != IGNORED).sum(dim=0)
        return torch.cat([text, is_label.sum(dim=0), stop]).to(torch.float64)


def collate(
    rows: Sequence[PackedRow], config: BaseShape, dropout_seeds: Sequence[int] | None = None
) -> PackedBatch:
    """Lay packed rows end to end.

    Args:
        rows: At least one row.
        config: The base's.
        dropout_seeds: One for each row, which determines its dropout in any batch.

    Raises:
        UserError: A row contradicts itself (placeholders and frames, lengths), or a label could
            only be predicted from another sample.
    """
    for row in rows:
        check_row(row, config)
    return lay_out(rows, config, dropout_seeds)


def lay_out(
    rows: Sequence[PackedRow], config: BaseShape, dropout_seeds: Sequence[int] | None
) -> PackedBatch:
    """Lay rows end to end that are known to be valid; arguments as for :func:`collate`."""
    input_ids = np.concatenate([row.input_ids for row in rows])
    labels = np.concatenate([row.labels for row in rows])
    audio_labels = np.concatenate([row.audio_labels for row in rows])
    lengths = np.concatenate([row.sample_lengths for row in rows])
    sample = np.repeat(np.arange(len(lengths)), lengths)  # (S,)
    starts = np.cumsum(lengths) - lengths

    is_audio = is_placeholder(input_ids, config)
    audio_positions = np.flatnonzero(is_audio)
    routed = np.concatenate([np.flatnonzero(~is_audio), audio_positions])
    keys = None
    if dropout_seeds is not None:
        row_lengths = [len(row.input_ids) for row in rows]
        keys = torch.from_numpy(position_keys(dropout_seeds, row_lengths))
    labelled = np.flatnonzero(labels != IGNORED)
    labelled_frames = np.flatnonzero((audio_labels != IGNORED).any(axis=1))

    def labels_at(positions: npt.NDArray[Any], values: npt.NDArray[Any]) -> Labels:
        return Labels(_tensor(positions - 1), _tensor(values), _tensor(sample[positions]))

    return PackedBatch(
        input_ids=_tensor(input_ids)[None],
        audio_input_ids=_tensor(np.concatenate([row.audio_input_ids for row in rows]))[None],
        position_ids=_tensor(np.arange(len(input_ids)) - starts[sample])[None],
        text=labels_at(labelled, labels[labelled, None]),
        audio=labels_at(audio_positions[labelled_frames], audio_labels[labelled_frames]),
        layout=Layout(
            num_text=len(routed) - len(audio_positions),
            routed=_tensor(routed),
            unrouted=_tensor(np.argsort(routed)),
            samples=SampleBounds(
                lengths=tuple(lengths.tolist()),
                offsets=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
                longest=int(lengths.max()),
            ),
            dropout_keys=keys,
        ),
        stream_eos=config.audio_stream_eos_id,
        sample_ids=tuple(sample_id for row in rows for sample_id in row.sample_ids),
    )


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def is_placeholder(input_ids: npt.NDArray[np.int32], config: BaseShape) -> npt.NDArray[np.bool_]:
    """Return for each position whether it stands for an audio frame: (S,)."""
    placeholders = (config.audio_token_id, config.audio_delay_token_id)
    return np.isin(input_ids, placeholders)


def first_target(row: PackedRow, sample: slice, shape: BaseShape) -> slice:
    """Return the positions of the first recording of a sample that has labels.

    Args:
        row: A packed row.
        sample: Positions of one of its samples.
        shape: The base's.
    """
    is_audio = is_placeholder(row.input_ids, shape)
    has_label = (row.audio_labels != IGNORED).any(axis=1)
    labelled = np.flatnonzero(is_audio)[has_label]
    labelled = labelled[(labelled >= sample.start) & (labelled < sample.stop)]
    others = np.flatnonzero(~is_audio)
    place = np.searchsorted(others, labelled[0])
    end = int(others[place]) if place < len(others) else len(is_audio)
    return slice(int(others[place - 1]) + 1, min(end, sample.stop))


def check_row(row: PackedRow, config: BaseShape) -> None:
    """Refuse a row whose parts contradict each other, which would train something else.

    Raises:
        UserError: As for :func:`collate`.
    """
    name = f"packed row of {row.sample_ids[0]!r}" if row.sample_ids else "packed row"
    remedy = "run: snakemake --forcerun pack_rows"
    num_positions, num_frames = len(row.input_ids), len(row.audio_input_ids)
    is_audio = is_placeholder(row.input_ids, config)
    if int(row.sample_lengths.sum()) != num_positions or len(row.labels) != num_positions:
        raise UserError(f"{name}: lengths of samples, tokens and labels disagree; {remedy}")
    if int(is_audio.sum()) != num_frames or len(row.audio_labels) != num_frames:
        raise UserError(
            f"{name}: {int(is_audio.sum())} audio placeholders for {num_frames} frames and "
            f"{len(row.audio_labels)} frames of labels; {remedy}"
        )
    starts = np.cumsum(row.sample_lengths) - row.sample_lengths
    if (row.labels[starts] != IGNORED).any() or is_audio[starts].any():
        raise UserError(f"{name}: a label at the first position of a sample; {remedy}")
    if (
        row.input_ids.max() >= config.vocab_size
        or row.audio_input_ids.max() >= config.codebook_size
    ):
        raise UserError(
            f"{name}: ids beyond the model's vocabulary, of another base_model; {remedy}"
        )
