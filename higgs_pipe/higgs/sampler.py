"""Sampling of the next frame: temperature, top-k, top-p, and a window against repetition.

B prompts, K codebooks, V codebook entries.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.shape import BaseShape


class Sampler(LogitsProcessor):  # type: ignore[misc]  # Transformers has no types here
    """Draws each prompt's next frame with random numbers of its own.

    After the delay pattern has masked codes that must not occur, each codebook draws by
    temperature, top-k and top-p. A code that occurs ``ras_win_max_num_repeat`` times in the last
    ``ras_win_len`` frames is drawn again from the full distribution (repetition-aware sampling,
    VALL-E 2, Chen et al. 2024). A stream never restarts: stream BOS is masked once it is no longer
    forced, because it is never trained.

    Args:
        sampling: How codes are drawn; at temperature 0 the most likely one is taken.
        config: The base's.
        seeds: One per prompt.
        on_frame: Called for each frame.
    """

    def __init__(
        self,
        sampling: Sampling,
        config: BaseShape,
        seeds: Sequence[int],
        on_frame: Callable[[], object],
    ) -> None:
        self._is_greedy = sampling.temperature == 0
        self._warpers: list[LogitsProcessor] = []
        if not self._is_greedy:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(min(sampling.top_k, config.codebook_size)))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._max_num_repeat = sampling.ras_win_max_num_repeat
        self._window: deque[Tensor] = deque(maxlen=sampling.ras_win_len)  # (B, K) each
        self._num_codebooks = config.num_codebooks
        self._stream_bos = config.audio_stream_bos_id
        self._specials = (config.audio_stream_bos_id, config.audio_stream_eos_id)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._on_frame = on_frame

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave one code of each codebook: (B * K, V) -> (B * K, V), -inf except the drawn."""
        self._on_frame()
        is_free = scores.isfinite().sum(dim=-1) > 1  # (B * K,)
        is_bos = torch.arange(scores.shape[-1], device=scores.device) == self._stream_bos
        scores = scores.masked_fill(is_free[:, None] & is_bos, -torch.inf)
        drawn = scores.argmax(dim=-1) if self._is_greedy else self._drawn(input_ids, scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)

    def _drawn(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the codes: (B * K,)."""
        warped = scores
        for warper in self._warpers:
            warped = warper(input_ids, warped)
        rows = range(len(self._generators))
        drawn = _draw(warped, self._noise(rows, warped)).view(len(rows), -1)
        if self._window:
            window = torch.stack(tuple(self._window), dim=1)  # (B, window, K)
            is_code = torch.stack([drawn != special for special in self._specials]).all(dim=0)
            repeats = (window == drawn[:, None]).sum(dim=1)  # (B, K)
            redrawn = is_code & (repeats >= self._max_num_repeat)
            for row in redrawn.any(dim=1).nonzero()[:, 0].tolist():
                plain = scores.view(len(rows), self._num_codebooks, -1)[row]  # (K, V)
                again = _draw(plain, self._noise([row], plain))
                drawn[row] = torch.where(redrawn[row], again, drawn[row])
        self._window.append(drawn)
        return drawn.flatten()

    def _noise(self, rows: Sequence[int], scores: Tensor) -> Tensor:
        """Return exponential noise of some prompts, equal on every device: (len(rows) * K, V)."""
        shape = (self._num_codebooks, scores.shape[-1])
        noise = [torch.empty(shape).exponential_(generator=self._generators[row]) for row in rows]
        return torch.cat(noise).to(scores.device)


def _draw(scores: Tensor, noise: Tensor) -> Tensor:
    """Draw from the softmax of scores: the smallest of exponential times with these rates."""
    times = noise.clamp_min(torch.finfo(noise.dtype).tiny) / scores.softmax(dim=-1)
    return times.argmin(dim=-1)
