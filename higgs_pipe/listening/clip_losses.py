"""Losses of the held-out clips under adapter and base: differences, and where the loss occurs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from higgs_pipe.higgs.frame_losses import FrameLosses
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.listening.breakdown import (
    HEADINGS,
    Breakdown,
    GroupLoss,
    Kind,
    Stopping,
    WorstClip,
)
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.intervals import Difference, mean_difference

LENGTH_LIMITS_SECONDS = (2, 5, 10, 20)
PARTS = ("start", "middle", "end")
NUM_WORST_CLIPS = 20

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClipLosses:
    """The losses of the held-out clips under adapter and base; all lists have N entries.

    ``other_text`` has the sums of the same clips, each with another clip's text.
    """

    clips: list[dict[str, Any]]  # clip_id, text, speaker, language, duration_seconds, task
    clusters: Clusters
    adapter: list[FrameLosses]
    base: list[FrameLosses]
    adapter_other_text: list[LossSums]
    base_other_text: list[LossSums]

    def differences(self) -> dict[str, Difference]:
        """Compare adapter and base by the measures of losses, for the verdict."""
        audio, uses = slice(1, -1), [self._text_use(is_adapter) for is_adapter in (True, False)]
        differences = {
            "audio_loss": self.difference(audio),
            "stop_loss": self.difference(slice(-1, None)),
            "text_use": _difference(uses, _sums(self.adapter, "count")[:, audio], self.clusters),
        }
        if self.adapter[0].sums.has_text:
            differences["text_loss"] = self.difference(slice(0, 1))
        return differences

    def difference(self, columns: slice, rows: npt.ArrayLike | None = None) -> Difference:
        """Compare the mean over columns of the sums: adapter minus base, nats per label.

        Args:
            columns: Columns of :class:`~higgs_pipe.higgs.loss.LossSums`.
            rows: The clips (indices); None: all.
        """
        chosen = np.arange(len(self.clips)) if rows is None else np.asarray(rows)
        sums = [_sums(model, "loss")[chosen, columns] for model in (self.adapter, self.base)]
        counts = _sums(self.adapter, "count")[chosen, columns]
        return _difference(sums, counts, self.clusters.take(chosen))

    def text_use(self) -> Difference:
        """Compare the adapter's audio loss between other clips' texts and the right texts.

        Returns:
            Other minus right, nats per label.
        """
        gained, counts = self._text_use(is_adapter=True), _sums(self.adapter, "count")[:, 1:-1]
        return _difference([gained, np.zeros_like(gained)], counts, self.clusters)

    def _text_use(self, is_adapter: bool) -> Array:
        """Return the nats of audio loss that the right text saves: (N, K)."""
        own, other = (
            (self.adapter, self.adapter_other_text)
            if is_adapter
            else (self.base, self.base_other_text)
        )
        other_sums = np.stack([of_clip.loss.numpy() for of_clip in other])
        gained: Array = (other_sums - _sums(own, "loss"))[:, 1:-1]
        return gained

    def breakdown(self) -> Breakdown:
        """Break the audio loss down."""
        groups: dict[tuple[Kind, str], list[int]] = {}
        for number, clip in enumerate(self.clips):
            for kind, name in _groups_of(clip).items():
                if name is not None:
                    groups.setdefault((kind, name), []).append(number)
        found = [self._group(kind, name, rows) for (kind, name), rows in groups.items()]
        order = list(HEADINGS)
        found.sort(key=lambda group: (order.index(group.kind), -group.num_clips, group.name))
        return Breakdown(
            groups=[*found, *self._parts()],
            base_stopping=_stopping(self.base),
            adapter_stopping=_stopping(self.adapter),
            worst_clips=self._worst(),
        )

    def _group(self, kind: Kind, name: str, rows: Sequence[int]) -> GroupLoss:
        audio = slice(1, -1)
        means = []
        for model in (self.base, self.adapter):
            loss, count = (_sums(model, part)[rows, audio].sum(0) for part in ("loss", "count"))
            means.append(float((loss / count).mean()))
        base, adapter = means
        return GroupLoss(
            kind=kind,
            name=name,
            num_clips=len(rows),
            base=base,
            adapter=adapter,
            difference=self.difference(audio, rows),
        )

    def _parts(self) -> list[GroupLoss]:
        """Compare start, middle and end over all clips that are long enough to have them."""
        groups = []
        for number, name in enumerate(PARTS):
            counts = np.stack([of_clip.part_count[number] for of_clip in self.adapter])  # (N, K)
            (rows,) = np.nonzero(counts.all(axis=1))
            if not len(rows):
                continue
            adapter, base = (
                np.stack([of_clip.part_loss[number] for of_clip in model])[rows]
                for model in (self.adapter, self.base)
            )
            total = counts[rows].sum(0)
            groups.append(
                GroupLoss(
                    kind="position",
                    name=name,
                    num_clips=len(rows),
                    base=float((base.sum(0) / total).mean()),
                    adapter=float((adapter.sum(0) / total).mean()),
                    difference=_difference([adapter, base], counts[rows], self.clusters.take(rows)),
                )
            )
        return groups

    def _worst(self) -> list[WorstClip]:
        losses = [
            [float((c.sums.loss / c.sums.count)[1:-1].mean()) for c in model]
            for model in (self.adapter, self.base)
        ]
        ranked = sorted(
            zip(self.clips, *losses, strict=True), key=lambda row: (-row[1], row[0]["clip_id"])
        )
        return [
            WorstClip(
                clip_id=clip["clip_id"],
                text=clip["text"],
                speaker=clip["speaker"],
                base=base,
                adapter=adapter,
            )
            for clip, adapter, base in ranked[:NUM_WORST_CLIPS]
        ]


def _groups_of(clip: Mapping[str, Any]) -> dict[Kind, str | None]:
    seconds, limits = clip["duration_seconds"], LENGTH_LIMITS_SECONDS
    place = sum(seconds >= limit for limit in limits)
    if place == 0:
        length = f"below {limits[0]} s"
    elif place == len(limits):
        length = f"{limits[-1]} s and more"
    else:
        length = f"{limits[place - 1]} to {limits[place]} s"
    return {
        "speaker": clip["speaker"],
        "language": clip["language"],
        "task": clip["task"].replace("_", " "),
        "length": length,
    }


def _sums(model: Sequence[FrameLosses], part: Literal["loss", "count"]) -> Array:
    """Return the sums or counts of each clip: (N, 2 + K)."""
    return np.stack([getattr(of_clip.sums, part).numpy() for of_clip in model])


def _difference(sums: Sequence[Array], counts: Array, clusters: Clusters) -> Difference:
    """Compare the mean over columns (n, C) of adapter and base."""
    adapter, base = sums
    weights = np.full(counts.shape[1], 1 / counts.shape[1])
    return mean_difference((adapter, base), (counts, counts), clusters, weights)


def _stopping(losses: Sequence[FrameLosses]) -> Stopping:
    return Stopping(
        at_end=float(np.mean([of_clip.stop_at_end for of_clip in losses])),
        before_end=float(np.mean([of_clip.stop_before_end for of_clip in losses])),
    )
