"""Use of the text: the loss of held-out clips when each is given another clip's text.

The audio loss of a clip with a wrong text, minus that with its own, measures how much the model
uses the text. Near 0, the model speaks without reading::

    own = held_out_sums(model, rows, accelerator)
    other = held_out_sums(model, OtherTexts(rows, speakers), accelerator)
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from higgs_pipe.higgs.batch import PackedRow, PackedRows
from higgs_pipe.higgs.codes import IGNORED

TokenIds = npt.NDArray[np.int32]


class OtherTexts:
    """Packed rows whose samples have the text of another clip; the audio and its labels stay.

    The other clip is the speaker's next by id, or if the speaker has no other text, the next of all
    clips. References and scene stay the clip's own. In a sample with several target turns, only the
    first gets another text. A clip for which there is no other text keeps its own.

    Args:
        rows: The packed rows.
        speakers: Speaker by sample id, if known.
        place_of_text: The family's function that finds a sample's first spoken text in a row.
    """

    def __init__(
        self,
        rows: PackedRows,
        speakers: Mapping[str, str | None],
        place_of_text: Callable[[PackedRow, slice], slice],
    ) -> None:
        self._rows = rows
        self._place_of_text = place_of_text
        texts: dict[str, TokenIds] = {}
        for number in range(len(rows)):
            row = rows[number]
            for sample_id, sample in zip(row.sample_ids, _samples(row), strict=True):
                texts[sample_id] = row.input_ids[place_of_text(row, sample)]
        self._other = _other_texts(texts, speakers)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PackedRow:
        row = self._rows[index]
        input_ids, labels, lengths = [], [], []
        for sample_id, sample in zip(row.sample_ids, _samples(row), strict=True):
            turn, text = self._place_of_text(row, sample), self._other[sample_id]
            # The place's last token comes before the audio, and is the only one with a label.
            no_labels = np.full(len(text) - 1, IGNORED, row.labels.dtype)
            input_ids += [
                row.input_ids[sample.start : turn.start],
                text,
                row.input_ids[turn.stop : sample.stop],
            ]
            labels += [
                row.labels[sample.start : turn.start],
                no_labels,
                row.labels[turn.stop - 1 : sample.stop],
            ]
            lengths.append(sample.stop - sample.start - (turn.stop - turn.start) + len(text))
        return replace(
            row,
            input_ids=np.concatenate(input_ids),
            labels=np.concatenate(labels),
            sample_lengths=np.array(lengths, row.sample_lengths.dtype),
        )


def _samples(row: PackedRow) -> list[slice]:
    ends = np.cumsum(row.sample_lengths)
    return [slice(int(end - n), int(end)) for end, n in zip(ends, row.sample_lengths, strict=True)]


def _other_texts(
    texts: dict[str, TokenIds], speakers: Mapping[str, str | None]
) -> dict[str, TokenIds]:
    everyone = sorted(texts)
    of_speaker: dict[str, list[str]] = {}
    for sample_id in everyone:
        of_speaker.setdefault(speakers.get(sample_id) or "", []).append(sample_id)
    return {
        sample_id: next(
            (
                text
                for group in (of_speaker[speakers.get(sample_id) or ""], everyone)
                for text in map(texts.__getitem__, _after(group, sample_id))
                if not np.array_equal(text, texts[sample_id])
            ),
            texts[sample_id],
        )
        for sample_id in everyone
    }


def _after(ids: list[str], sample_id: str) -> Iterator[str]:
    """Yield the sorted ids from the one after ``sample_id`` on, around to the one before it."""
    place = bisect_left(ids, sample_id)
    yield from islice(ids, place + 1, None)
    yield from islice(ids, place)
