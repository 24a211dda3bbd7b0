"""Reference recordings for clips: other clips of the same speaker."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.specs import EVAL

OWN_HELD_OUT = "the row's own reference is held-out audio, so another one is used"
OWN_TOO_SHORT = "the row's own reference is too short for the base model, so another one is used"

NUM_RANKED = 32  # candidates for a reference that are compared by their embeddings


class Reference(NamedTuple):
    """A recording of a speaker, by its row in the table of clips."""

    speaker: int
    clip: int


class ReferencePool:
    """Reference recordings for clips: other clips of the same speaker in the split.

    The clips of a speaker form a ring in the order of their hashes. Each clip takes the next
    allowed one, so all are used about equally often, and adding a clip affects only the one before
    it. With speaker embeddings, each takes the most similar of the next ``NUM_RANKED``.

    Args:
        clips: The table of clips.
        members: The clips of one split.
        seed: Determines the ring.
        is_training: True for the training split.
        min_seconds: The shortest reference.
    """

    def __init__(
        self,
        clips: Clips,
        members: npt.NDArray[np.int64],
        seed: int,
        is_training: bool,
        min_seconds: float,
    ) -> None:
        self._clips = clips
        self._is_training = is_training
        self._min_seconds = min_seconds
        known = members[clips.speaker[members] >= 0]
        ids = (clip_id.as_py() for clip_id in clips.ids.take(known))
        hashes = (unit_hash("reference", seed, clip_id) for clip_id in ids)
        points = np.fromiter(hashes, np.float64, len(known))
        speakers = clips.speaker[known]
        order = np.lexsort((points, speakers))
        self._ring = known[order]
        self._place = np.empty(len(clips.ids), np.int64)
        self._place[self._ring] = np.arange(len(known))
        bounds = np.searchsorted(speakers[order], np.arange(len(clips.speakers) + 1))
        self._bounds = bounds.tolist()

    def of(self, clip: int, targets: Sequence[int]) -> Reference | None:
        """Return a reference for the speaker of a clip, in a sample with these targets.

        The row's own reference comes first. No reference shares audio with a target.
        """
        speaker = int(self._clips.speaker[clip])
        own = int(self._clips.reference[clip])
        if self.brings(clip) and not self._clips.shares_audio(own, targets):
            return Reference(speaker, own)
        if speaker < 0:
            return None
        candidates = self._following(clip, targets)
        if (first := next(candidates, None)) is None:
            return None
        if not self._clips.has_embeddings:
            return Reference(speaker, first)
        ranked = [first, *islice(candidates, NUM_RANKED - 1)]
        return Reference(speaker, self._clips.most_similar(clip, ranked))

    def brings(self, clip: int) -> bool:
        """Return whether the row of a clip brings a reference that may be used."""
        own = int(self._clips.reference[clip])
        return own >= 0 and self.refusal(own) is None

    def refusal(self, own: int) -> str | None:
        """Return why a row's own reference may not be used; None if it may."""
        if self._is_training and self._clips.holds_audio_of(own, EVAL):
            return OWN_HELD_OUT  # must not be in training
        return OWN_TOO_SHORT if self.is_too_short(own) else None

    def is_too_short(self, clip: int) -> bool:
        """Return whether a recording is too short for a reference."""
        return bool(self._clips.seconds[clip] < self._min_seconds)

    def _following(self, clip: int, targets: Sequence[int]) -> Iterator[int]:
        """Yield the clips after one on its speaker's ring that share no audio with the targets."""
        speaker = int(self._clips.speaker[clip])
        start, end = self._bounds[speaker], self._bounds[speaker + 1]
        place = int(self._place[clip])
        excluded = set(targets)  # passes over the turns of a long dialogue at once
        for i in chain(range(place + 1, end), range(start, place)):
            candidate = int(self._ring[i])
            if candidate in excluded or self.is_too_short(candidate):
                continue
            if not self._clips.shares_audio(candidate, targets):
                yield candidate
