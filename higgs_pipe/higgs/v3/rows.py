"""The place of a text in a packed sample of Higgs TTS 3."""

import numpy as np

from higgs_pipe.higgs.batch import PackedRow, first_target, is_placeholder
from higgs_pipe.higgs.shape import BaseShape


def place_of_text(row: PackedRow, sample: slice, shape: BaseShape) -> slice:
    """Return ``<|text|> T <|audio|>`` before the first target, after ``<|tts|>`` or a recording."""
    end = first_target(row, sample, shape).start
    frames = np.flatnonzero(is_placeholder(row.input_ids[sample.start : end], shape))
    return slice(sample.start + 1 + (int(frames[-1]) if len(frames) else 0), end)
