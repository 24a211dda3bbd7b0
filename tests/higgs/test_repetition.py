"""The number of repeats after which a code is drawn again, frame by frame."""

from typing import Any

import pytest
import torch

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.sampler import Sampler


class OneCodebook:
    """The part of a config that a sampler reads, with codes 0 to 3."""

    num_codebooks, codebook_size = 1, 6
    audio_stream_bos_id, audio_stream_eos_id = 4, 5


def first_other_code(seed: int, **settings: int) -> int:
    """Return the frame of the first code other than 0, the only code that top_k allows."""
    config: Any = OneCodebook
    sampler = Sampler(Sampling(top_k=1, top_p=1, **settings), config, [seed], lambda: None)
    scores = torch.tensor([[0.1, 0.0, 0.0, 0.0, -9.0, -9.0]])
    ids = torch.zeros(1, 1, dtype=torch.int64)
    codes = (int(sampler(ids, scores).argmax()) for _ in range(200))
    return next(frame for frame, code in enumerate(codes) if code)


@pytest.mark.parametrize("num_repeats", [1, 2, 5])
def test_a_code_is_redrawn_after_ras_win_max_num_repeat_repeats(num_repeats: int) -> None:
    settings = {"ras_win_len": 7, "ras_win_max_num_repeat": num_repeats}
    assert min(first_other_code(seed, **settings) for seed in range(20)) == num_repeats
