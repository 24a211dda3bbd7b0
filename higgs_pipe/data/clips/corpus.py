"""The accepted clips with their splits and references."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.arrow import to_arrow
from higgs_pipe.data.clips.drafts import Drafts
from higgs_pipe.data.clips.keys import Keys, groups_of, keys_of
from higgs_pipe.data.clips.references import Links, References
from higgs_pipe.data.clips.splits import assign_splits
from higgs_pipe.data.specs import CLIPS, EVAL, TRAIN
from higgs_pipe.data.tables import write_parts
from higgs_pipe.errors import UserError

NO_LINKS = Links("", None, None)

# The remedies if too many clips share something to be split.
LOOSENED_BY = {
    "audio": "add other recordings, or, if conversations only share recordings as context, set "
    "data.keep_context_together to false",
    "text": "set data.keep_text_together to false",
    "dialogue": "add other dialogues",
    "speaker": "set data.split_by to recording or clip",
    "recording": "set data.split_by to clip",
}


@dataclass(frozen=True)
class Corpus:
    """The accepted clips, and for each of them its split and its group.

    Clips of one group, a number, share a split.
    """

    targets: Drafts
    splits: Sequence[str]  # (N,)
    groups: npt.NDArray[np.int32]  # (N,)

    def write(self, path: Path, linked: Iterable[Links], references: References) -> None:
        """Write CLIPS: the targets in the manifest's order, then the references.

        Args:
            path: The table.
            linked: The links of those clips that have any, in order.
            references: What the links name, complete when the last link was taken.
        """
        write_parts(path, CLIPS, self._parts(linked, references))

    def _parts(self, linked: Iterable[Links], references: References) -> Iterator[pa.Table]:
        """Yield the rows of CLIPS, some at a time."""
        links, first = iter(linked), 0
        following = next(links, None)
        for table in self.targets.tables():
            clip_ids = dict.fromkeys(table["clip_id"].to_pylist())
            own: dict[str, Links] = {}
            while following is not None and following.clip_id in clip_ids:
                own[following.clip_id] = following
                following = next(links, None)
            found = [own.get(clip_id, NO_LINKS) for clip_id in clip_ids]
            values = {
                "split": self.splits[first : first + len(found)],
                "reference_id": [link.reference_id for link in found],
                "conversation": [link.conversation for link in found],
            }
            for name, column in values.items():
                place = table.schema.get_field_index(name)
                table = table.set_column(place, name, pa.array(column, pa.string()))
            yield pa.Table.from_arrays(table.columns, schema=CLIPS.schema)
            first += len(found)
        yield to_arrow(CLIPS, references.clips)


def assemble(
    accepted: Drafts, data: DataConfig, needed_splits: Sequence[str] = (TRAIN, EVAL)
) -> Corpus:
    """Split the accepted clips.

    Args:
        accepted: Sound rows.
        data: The settings of the split.
        needed_splits: Splits that must have a clip.

    Raises:
        UserError: A needed split would be empty.
    """
    keys = keys_of(accepted.column, data, accepted.others)
    groups = groups_of(keys)
    given = accepted.column("split").to_pylist()
    splits = assign_splits(groups, given, data.eval_fraction, data.split_seed)
    _check_splits(splits, needed_splits, keys, len(groups.dictionary))
    return Corpus(accepted, splits, groups.indices.to_numpy())


def _check_splits(
    splits: Sequence[str], needed: Sequence[str], keys: Keys, num_groups: int
) -> None:
    for split, other in ((TRAIN, EVAL), (EVAL, TRAIN)):
        if split in needed and split not in splits:
            raise UserError(
                f"no clip is left for {split}: all {len(splits):,} accepted clips are in {other}. "
                f"Groups of clips that share audio, text, dialogue, speaker or recording: "
                f"{num_groups:,}.{_links(keys)} Add recordings, or "
                f'give some rows "split": "{split}" (or no split) in the manifest.'
            )


def _links(keys: Keys) -> str:
    """Return sentences on what links clips, how many, and which setting loosens it."""
    own = [set(keys.of(clip)) for clip in range(keys.num_clips)]
    num_clips = Counter(key for of_clip in own for key in of_clip)
    shared = Counter(keys.kind(key) for of_clip in own for key in of_clip if num_clips[key] > 1)
    return "".join(
        f" {num:,} clips share their {kind} with others ({LOOSENED_BY[kind]})."
        for kind, num in shared.most_common()
    )
