"""References: the distinct recordings used besides the clips, each a clip with its own id."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from higgs_pipe.data.clips.candidates import ClippedRow, clip_of, without_context
from higgs_pipe.data.clips.measured import Measured
from higgs_pipe.data.conversation import ClipId
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import REFERENCE


class Links(NamedTuple):
    """Columns of a clip that name its references."""

    clip_id: str
    reference_id: str | None
    conversation: str | None


class References:
    """Collects the references of rows, and the other recordings of conversations.

    Args:
        read_measured: Reads the measures of all recordings, when the first row names a reference.
    """

    def __init__(self, read_measured: Callable[[], Measured]) -> None:
        self._read_measured = read_measured
        self._clips: dict[tuple[str, str], ClippedRow] = {}  # by samples and text
        self._num_texts: Counter[str] = Counter()

    @cached_property
    def _measured(self) -> Measured:
        return self._read_measured()

    @property
    def clips(self) -> Sequence[ClippedRow]:
        """Rows of CLIPS, in the order in which clips name them first."""
        return list(self._clips.values())

    def link(self, row: Row) -> Links:
        """Return the references of a row by their ids."""
        reference_id, conversation = None, None
        if row.reference_span is not None and row.ref_text is not None:
            reference_id = self._id_of(row, row.reference_span, row.ref_text)
        if row.conversation is not None:
            ids = iter(
                row.clip_id if said.is_own else self._id_of(row, said.recording, said.text)
                for said in row.utterances
            )
            named = row.conversation.map_recordings(lambda _: ClipId(next(ids)))
            conversation = named.to_json()
        return Links(row.clip_id, reference_id, conversation)

    def _id_of(self, row: Row, span: Span, text: str) -> str:
        recording = self._measured[span]
        pcm_sha256 = recording["pcm_sha256"]
        key = (pcm_sha256, text)
        if key not in self._clips:
            self._num_texts[pcm_sha256] += 1
            # Another text for the same audio gives another id.
            other = hashlib.sha256(f"{pcm_sha256} {text}".encode()).hexdigest()
            name = pcm_sha256 if self._num_texts[pcm_sha256] == 1 else other
            own = replace(without_context(row, text), clip_id=f"ref-{name[:16]}", split=REFERENCE)
            self._clips[key] = clip_of(own, recording)
        return str(self._clips[key]["clip_id"])
