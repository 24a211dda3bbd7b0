"""References: the distinct recordings used besides the clips, each a clip with its own id."""

import hashlib
from collections import Counter
from dataclasses import replace

from higgs_pipe.data.clips.candidates import Candidate, Clip, Measured, alone, clip_of
from higgs_pipe.data.conversation import ClipId
from higgs_pipe.data.manifests.row import Row
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import REFERENCE


class References:
    """Collects the references of rows, and the other recordings of conversations."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._clips: dict[tuple[str, str], Clip] = {}  # by samples and text
        self._num_texts: Counter[str] = Counter()

    @property
    def clips(self) -> list[Clip]:
        """Rows of CLIPS, in the order in which clips name them first."""
        return list(self._clips.values())

    def link(self, candidate: Candidate, split: str) -> Clip:
        """Return the finished row of CLIPS: its split, and the ids of its references."""
        row = candidate.row
        reference_id, conversation = None, None
        if row.reference_span is not None and row.ref_text is not None:
            reference_id = self._id_of(row, row.reference_span, row.ref_text)
        if row.conversation is not None:
            ids = iter(
                row.clip_id if heard.is_own else self._id_of(row, heard.recording, heard.text)
                for heard in row.utterances
            )
            named = row.conversation.map_recordings(lambda _: ClipId(next(ids)))
            conversation = named.to_json()
        return replace(
            candidate.clip, split=split, reference_id=reference_id, conversation=conversation
        )

    def _id_of(self, row: Row, span: Span, text: str) -> str:
        recording = self._measured[span]
        pcm_sha256 = recording["pcm_sha256"]
        key = (pcm_sha256, text)
        if key not in self._clips:
            self._num_texts[pcm_sha256] += 1
            # Another text for the same audio gives another id.
            other = hashlib.sha256(f"{pcm_sha256} {text}".encode()).hexdigest()
            name = pcm_sha256 if self._num_texts[pcm_sha256] == 1 else other
            own = replace(alone(row, text), clip_id=f"ref-{name[:16]}")
            self._clips[key] = replace(clip_of(own, recording), split=REFERENCE)
        return str(self._clips[key]["clip_id"])
