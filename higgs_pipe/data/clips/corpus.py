"""The accepted clips with their splits and references."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.clips.candidates import Candidate, Clip, Measured
from higgs_pipe.data.clips.references import References
from higgs_pipe.data.clips.splits import Key, assign_splits, groups_of, keys_of
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.errors import UserError

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
    """Rows of CLIPS: targets in the manifest's order, then references."""

    targets: tuple[Clip, ...]
    references: tuple[Clip, ...]
    groups: tuple[str, ...]  # of each target; targets of one group share a split

    @property
    def clips(self) -> list[Clip]:
        """All rows of the table."""
        return [*self.targets, *self.references]


def assemble(
    accepted: Sequence[Candidate],
    measured: Measured,
    data: DataConfig,
    needed_splits: Sequence[str] = (TRAIN, EVAL),
) -> Corpus:
    """Split the accepted clips and link their references.

    Args:
        accepted: Sound rows.
        measured: The rows of MEASURED of all their spans.
        data: The settings of the split.
        needed_splits: Splits that must have a clip.

    Raises:
        UserError: A needed split would be empty.
    """
    others = [candidate.others for candidate in accepted]
    keys = keys_of([candidate.clip for candidate in accepted], data, others)
    groups = groups_of(keys)
    given = [candidate.row.split for candidate in accepted]
    splits = assign_splits(groups, given, data.eval_fraction, data.split_seed)
    _check_splits(splits, needed_splits, keys, groups)
    references = References(measured)
    targets = tuple(map(references.link, accepted, splits))
    return Corpus(targets, tuple(references.clips), tuple(groups))


def _check_splits(
    splits: Sequence[str],
    needed: Sequence[str],
    keys: Sequence[Sequence[Key]],
    groups: Sequence[str],
) -> None:
    for split, other in ((TRAIN, EVAL), (EVAL, TRAIN)):
        if split in needed and split not in splits:
            raise UserError(
                f"no clip is left for {split}: all {len(splits):,} accepted clips are in {other}. "
                f"Groups of clips that share audio, text, dialogue, speaker or recording: "
                f"{len(set(groups)):,}.{_links(keys)} Add recordings, or "
                f'give some rows "split": "{split}" (or no split) in the manifest.'
            )


def _links(keys: Sequence[Sequence[Key]]) -> str:
    """Return sentences on what links clips, how many, and which setting loosens it."""
    num_clips = Counter(key for own in keys for key in set(own))
    shared = Counter(key.kind for own in keys for key in set(own) if num_clips[key] > 1)
    return "".join(
        f" {num:,} clips share their {kind} with others ({LOOSENED_BY[kind]})."
        for kind, num in shared.most_common()
    )
