"""Which clips are held out, and which shard a clip belongs to: by hash, so nothing drifts."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.conversation import ClipId, Conversation
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, REFERENCE, TRAIN
from higgs_pipe.data.text import bare_words


class Beside(NamedTuple):
    """A recording that a clip's conversation holds beside the clip's own."""

    clip: Mapping[str, Any]  # a row of the table of clips
    is_target: bool


def beside(
    clips: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[list[Beside]]:
    """The other recordings of the conversation of each clip.

    Args:
        clips: Rows of the table of clips.
        references: Its references, which these recordings are.
    """
    by_id = {reference["clip_id"]: reference for reference in references}
    return [
        [
            Beside(by_id[heard.recording.clip_id], heard.is_target)
            for heard in Conversation.from_json(
                clip["conversation"] or "[]", ClipId.of
            ).utterances()
            if heard.recording.clip_id in by_id
        ]
        for clip in clips
    ]


class Key(NamedTuple):
    """Something that clips may share; clips of one split alone have it."""

    kind: Literal["audio", "text", "dialogue", "speaker", "recording"]
    value: str


def keys_of(
    clips: Sequence[Mapping[str, Any]],
    data: DataConfig,
    others: Sequence[Sequence[Beside]] = (),
) -> list[list[Key]]:
    """What each clip may share with another: clips with an equal key lie on one side.

    Whatever ``data.split_by`` is, that is audio (equal samples, in whatever file they lie, and
    the time in which segments of one file overlap), a dialogue and, if
    ``data.keep_text_together``, the text. All that is learned of a conversation counts; what is
    only heard in it counts if another clip learns it and ``data.keep_context_together``. A clip's
    first key names it in :func:`groups_of`: its speaker or its recording if the split is by these,
    else its samples.

    Args:
        clips: Rows of the table of clips; their ``split`` is not read.
        data: The settings of the split.
        others: The other recordings of the conversation of each clip (:func:`beside`).
    """
    heard = [(index, clip, True) for index, clip in enumerate(clips)]
    heard += [
        (index, other, is_target)
        for index, of_clip in enumerate(others)
        for other, is_target in of_clip
    ]
    spans = _span_keys([Span.of(clip) for _, clip, _ in heard])
    found = [
        (index, _own_keys(clip, span, data), is_target)
        for (index, clip, is_target), span in zip(heard, spans, strict=True)
    ]
    learned = {key for _, own, is_target in found if is_target for key in own}
    keys: list[list[Key]] = [[] for _ in clips]
    for index, own, is_target in found:
        if is_target:
            keys[index] += own
        elif data.keep_context_together:
            keys[index] += [key for key in own if key in learned and key.kind == "audio"]
    return keys


def _own_keys(clip: Mapping[str, Any], span: Key, data: DataConfig) -> list[Key]:
    own = [Key("audio", clip["pcm_sha256"]), span]
    if clip["dialogue_id"] is not None:
        own.append(Key("dialogue", clip["dialogue_id"]))
    if data.keep_text_together and (text := bare_words(clip["text"])):
        own.append(Key("text", text))
    if data.split_by == "speaker" and clip["speaker"] is not None:
        own.insert(0, Key("speaker", clip["speaker"]))
    if data.split_by == "recording":
        own.insert(0, Key("recording", clip["audio_sha256"]))
    return own


def _span_keys(spans: Sequence[Span]) -> list[Key]:
    """A key for each span; those that overlap, also by way of others, have equal ones."""
    by_file: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for index, span in enumerate(spans):
        by_file[span.audio_path].append((*span.bounds_seconds, index))
    clusters = {}
    for path, bounds in by_file.items():
        reach, first = -math.inf, 0.0
        for start, end, index in sorted(bounds):
            if start >= reach:
                first = start
            clusters[index] = Key("audio", f"{path} from {first} s")
            reach = max(reach, end)
    return [clusters[index] for index in range(len(spans))]


def groups_of(keys: Sequence[Sequence[Key]]) -> list[str]:
    """A name for each clip; clips that share a key, also by way of others, have equal names.

    Args:
        keys: The keys of each clip, at least one.

    Returns:
        The smallest value among the first keys of the clips of the group.
    """
    parent: dict[Key, Key] = {}

    def root(key: Key) -> Key:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for first, *others in keys:
        for other in others:
            parent[root(other)] = root(first)
    names: dict[Key, str] = {}
    for own in keys:
        group = root(own[0])
        names[group] = min(names.get(group, own[0].value), own[0].value)
    return [names[root(own[0])] for own in keys]


def overlap(clips: Sequence[Mapping[str, Any]], data: DataConfig) -> dict[str, int]:
    """What lies on both sides of the split; read from its result, by other means than its making.

    Args:
        clips: The table of clips, with their splits and references.
        data: The settings of the split.

    Returns:
        How much ``audio`` (equal samples, and segments that overlap), how many ``texts`` and
        ``dialogues`` are learned on both sides; ``speakers`` or ``recordings`` too, if the split
        is by these; and ``context``, how much audio that one side learns is heard in conversations
        of the other. Each is 0, but for ``texts`` without ``data.keep_text_together`` and
        ``context`` without ``data.keep_context_together``.
    """
    sides = [[clip for clip in clips if clip["split"] == split] for split in (TRAIN, EVAL)]
    references = [clip for clip in clips if clip["split"] == REFERENCE]
    learned, heard = [], []
    for side in sides:
        others = [other for of_clip in beside(side, references) for other in of_clip]
        learned.append([*side, *(clip for clip, is_target in others if is_target)])
        heard.append([clip for clip, is_target in others if not is_target])

    def num_shared(value_of: Callable[[Mapping[str, Any]], Any]) -> int:
        train, held_out = ({value_of(clip) for clip in side} - {None, ""} for side in learned)
        return len(train & held_out)

    found = {
        "audio": _num_shared_audio(learned),
        "texts": num_shared(lambda clip: bare_words(clip["text"])),
        "dialogues": num_shared(lambda clip: clip["dialogue_id"]),
        "context": _num_shared_audio([learned[0], heard[1]])
        + _num_shared_audio([heard[0], learned[1]]),
    }
    if data.split_by == "speaker":
        found["speakers"] = num_shared(lambda clip: clip["speaker"])
    if data.split_by == "recording":
        found["recordings"] = num_shared(lambda clip: clip["audio_sha256"])
    return found


def _num_shared_audio(sides: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """Equal samples on both sides, and segments that overlap."""
    first, second = ({clip["pcm_sha256"] for clip in side} for side in sides)
    return len(first & second) + _num_overlapping(sides)


def _num_overlapping(sides: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """Segments that begin within a segment of the other side."""
    spans = sorted(
        (clip["audio_path"], *Span.of(clip).bounds_seconds, side)
        for side, side_clips in enumerate(sides)
        for clip in side_clips
    )
    num_overlapping = 0
    reach = {0: ("", 0.0), 1: ("", 0.0)}  # how far each side has come
    for path, start, end, side in spans:
        num_overlapping += (path, start) < reach[1 - side]
        reach[side] = max(reach[side], (path, end))
    return num_overlapping


def assign_splits(
    groups: Sequence[str], given: Sequence[str | None], eval_fraction: float, seed: int
) -> list[str]:
    """The split of each clip.

    Clips of one group (:func:`groups_of`) always share a split. A group is held out when its
    hash falls below ``eval_fraction``; if that leaves a side empty, the group with the smallest
    (or largest) hash goes there, so that two groups always give both sides.

    Args:
        groups: A name for each clip; those of clips that stay together are equal.
        given: The split that the manifest gives, or None; it wins for the whole group.
        eval_fraction: Share of the groups to hold out.
        seed: Another seed gives another split.

    Returns:
        ``train`` or ``eval`` for each clip.
    """
    chosen = {group: split for group, split in zip(groups, given, strict=True) if split is not None}
    free = sorted(
        {group for group in groups if group not in chosen},
        key=lambda group: unit_hash("split", seed, group),
    )
    for group in free:
        held_out = unit_hash("split", seed, group) < eval_fraction
        chosen[group] = EVAL if held_out else TRAIN
    if free and EVAL not in chosen.values():
        chosen[free[0]] = EVAL
    if free and TRAIN not in chosen.values():
        chosen[free[-1]] = TRAIN
    return [chosen[group] for group in groups]
