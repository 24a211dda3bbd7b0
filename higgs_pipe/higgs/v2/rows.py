"""The place of a text in a packed sample of Higgs Audio v2."""

import numpy as np

from higgs_pipe.higgs.batch import PackedRow
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.shape import BaseShape


def place_of_text(row: PackedRow, sample: slice, shape: BaseShape) -> slice:
    """Return the user turn before the first label, which follows the last turn's ``<|eot_id|>``.

    It ends with ``<|audio_out_bos|>``, the first label.
    """
    labelled = np.flatnonzero(row.labels[sample] != IGNORED) + sample.start
    end = int(labelled[0]) + 1
    end_of_turn = row.labels[labelled[-1]]
    ends_of_turns = np.flatnonzero(row.input_ids[sample.start : end] == end_of_turn) + sample.start
    # The last one ends the user turn itself.
    start = int(ends_of_turns[-2]) + 1 if len(ends_of_turns) > 1 else sample.start
    return slice(start, end)
