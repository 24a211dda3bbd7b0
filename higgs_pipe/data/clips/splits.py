"""Splits: clips that share something stay together; a hash picks the groups to hold out."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from higgs_pipe.config.settings import DataConfig
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.spans import Span
from higgs_pipe.data.specs import EVAL, TRAIN
from higgs_pipe.data.text import bare_words


class OtherRecording(NamedTuple):
    """A recording in a clip's conversation, other than the clip's own."""

    columns: Mapping[str, Any]  # of CLIPS: audio, text, speaker and dialogue_id at least
    is_target: bool


class Key(NamedTuple):
    """A property that clips may share; all clips with the same key are in one split."""

    kind: Literal["audio", "text", "dialogue", "speaker", "recording"]
    value: str


def keys_of(
    clips: Sequence[Mapping[str, Any]],
    data: DataConfig,
    others: Sequence[Sequence[OtherRecording]] = (),
) -> list[list[Key]]:
    """Return the keys of each clip: what it may share with others of its split.

    Keys are audio (equal samples in any file, and overlapping segments of one file), dialogue and,
    with ``data.keep_text_together``, text; speaker or recording if ``data.split_by`` says so. All
    targets of a conversation count; other recordings in it count if they are a target elsewhere
    and ``data.keep_context_together`` is set. A clip's first key names it in :func:`groups_of`:
    its speaker or recording if the split is by these, else its samples.

    Args:
        clips: Rows of CLIPS; their ``split`` is not read.
        data: The settings of the split.
        others: The other recordings in the conversation of each clip.
    """
    heard = [(index, clip, True) for index, clip in enumerate(clips)]
    heard += [
        (index, other, is_target)
        for index, of_clip in enumerate(others)
        for other, is_target in of_clip
    ]
    spans = _span_keys([Span.in_file(clip) for _, clip, _ in heard])
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
    """Return a key per span; spans that overlap, also through others, have equal keys."""
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
    """Return a group name per clip; clips that share a key, also through others, have one group.

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


def assign_splits(
    groups: Sequence[str], given: Sequence[str | None], eval_fraction: float, seed: int
) -> list[str]:
    """Return the split of each clip.

    Clips of one group (:func:`groups_of`) always share a split. A group is held out when its
    hash falls below ``eval_fraction``; if that leaves a split empty, the group with the smallest
    (or largest) hash goes there, so that two groups always give both splits.

    Args:
        groups: The group of each clip.
        given: The split from the manifest, or None; it wins for the whole group.
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
