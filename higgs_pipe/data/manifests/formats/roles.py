"""Roles of the fields of lines without a header, decided over the whole file.

Trainers write the same delimiters around ``path|text``, ``path|speaker|text``,
``path|text|speaker``, ``path|speaker|language|text``, ``id|raw|normalized`` and more. A layout is
taken only where the fields leave no other; else the user is asked for ``columns``.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from higgs_pipe.data.manifests.fields import RowFault, is_language_code
from higgs_pipe.planning.file_names import AUDIO_ENDINGS

# One of our keys; the text before normalization; or None for a field that is not used.
Role: TypeAlias = str | None

NUM_LOOKED_AT = 2000  # lines
NUM_SHOWN = 3

SENTENCE_END = re.compile(r"[.!?…。！？｡][\"'”’»)\]]*$")
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{3}")
NUMBERS = re.compile(r"[\d\s.+-]+")
NUM_LINES_TO_TELL = 8  # in fewer, each speaker may speak once
# What lists say of a clip beside who speaks, in a word each.
OTHER_LABELS = frozenset(
    {
        "neutral", "happy", "happiness", "sad", "sadness", "angry", "anger", "calm",
        "fear", "fearful", "disgust", "disgusted", "surprise", "surprised", "excited", "sleepy",
        "whisper", "amused", "m", "f", "male", "female",
        "train", "training", "eval", "val", "valid", "validation", "dev", "test",
    }
)  # fmt: skip
PHONEMES = re.compile(r"[ˈˌːɪʊəɛɔɹʃʒθðɑɡɐɾʔ]")


def is_audio_path(value: str) -> bool:
    """Return whether a value ends as names of recordings do."""
    return value.strip().lower().endswith(AUDIO_ENDINGS)


@dataclass(frozen=True)
class FieldValues:
    """The values of one field over the file."""

    values: tuple[str, ...]

    def share(self, pattern: re.Pattern[str]) -> float:
        """Return the share of values that hold a pattern."""
        return sum(pattern.search(value) is not None for value in self.values) / len(self.values)

    @cached_property
    def num_distinct(self) -> int:
        """Number of different values."""
        return len(set(self.values))

    @property
    def is_blank(self) -> bool:
        """Return whether no value is given."""
        return not any(self.values)

    @property
    def is_path(self) -> bool:
        """Return whether the values are names of files."""
        num_audio = sum(map(is_audio_path, self.values))
        num_nested = sum(bool(re.fullmatch(r"\S*[/\\]\S+", value)) for value in self.values)
        return 2 * num_audio > len(self.values) or num_nested > 0.8 * len(self.values)

    @property
    def is_language(self) -> bool:
        """Return whether the values are codes of languages."""
        return all(map(is_language_code, filter(None, self.values)))

    @property
    def is_whole_number(self) -> bool:
        """Return whether the values are whole numbers."""
        return all(value.isdigit() for value in self.values)

    @property
    def is_measure(self) -> bool:
        """Return whether the values are fractions or several numbers: durations, tones, lengths."""
        return not self.is_whole_number and all(NUMBERS.fullmatch(value) for value in self.values)

    @property
    def is_other_label(self) -> bool:
        """Return whether the values are emotions, genders, splits, or all different."""
        is_index = self.num_distinct == len(self.values) >= NUM_LINES_TO_TELL
        return is_index or all(value.lower() in OTHER_LABELS for value in self.values if value)

    @property
    def is_name(self) -> bool:
        """Return whether the values look like names or numbers of speakers."""
        if self.is_whole_number or not self.share(re.compile(rf"\s|{SENTENCE_END.pattern}")):
            return not self.share(UNSPACED)
        is_repeated = len(self.values) >= 4 and 2 * self.num_distinct <= len(self.values)
        return is_repeated and self.share(SENTENCE_END) < 0.2


def roles_of(
    rows: Sequence[Sequence[str]],
    given: Mapping[str, int] | None = None,
    default: Sequence[Role] | None = None,
) -> tuple[Role, ...]:
    """Return the role of each field.

    Args:
        rows: The fields of all lines.
        given: Numbers of fields, from 1, by our key, as the user names them.
        default: Roles for a file of as many fields that does not tell.

    Raises:
        RowFault: The fields may be several things, or none that is spoken.
    """
    num_lines = Counter(map(len, rows))
    num_fields = max(num_lines, key=lambda n: (num_lines[n], n))
    if given:
        roles: list[Role] = [None] * num_fields
        for key, number in given.items():
            if not 1 <= number <= num_fields:
                raise RowFault(f"`columns` names field {number} as {key}; lines have {num_fields}")
            roles[number - 1] = key
        return tuple(roles)
    whole = [[value.strip() for value in row] for row in rows if len(row) == num_fields]
    columns = [FieldValues(values) for values in zip(*whole[:NUM_LOOKED_AT], strict=True)]
    is_id_list = default is not None and default[0] == "id"
    found = _decided(columns, is_id_list)
    if found is None and default is not None and _fits(default, columns):
        found = list(default)
    if found is None:
        shown = "\n".join(f"    {' | '.join(row)}"[:100] for row in whole[:NUM_SHOWN])
        raise RowFault(
            "cannot tell which field is the text and which the speaker; name them by number, such "
            f"as columns: {{audio: '1', text: '2', speaker: '3'}}, or add a header:\n{shown}"
        )
    text = columns[found.index("text")]
    if text.share(PHONEMES) > 0.5:
        raise RowFault(
            f"the text is written in phonemes ({text.values[0]!r:.60}); give a list with the "
            "text in ordinary spelling"
        )
    return tuple(found)


def _decided(columns: Sequence[FieldValues], is_id_list: bool) -> list[Role] | None:
    """Return the roles that the columns leave no doubt about, or None.

    In a list that begins with ids these may be given twice, which is a fault of their rows.
    """
    roles: list[Role] = [None] * len(columns)
    open_columns = [i for i, column in enumerate(columns) if not column.is_blank]
    paths = [i for i in open_columns if columns[i].is_path]
    if len(paths) > 1 or not open_columns:
        return None
    has_path = bool(paths)
    key = paths[0] if has_path else open_columns[0]
    is_unique = 10 * columns[key].num_distinct >= 9 * len(columns[key].values)
    if not (has_path or is_unique or is_id_list):
        return None
    roles[key] = "audio" if has_path else "id"
    open_columns.remove(key)
    if sum(columns[i].is_measure for i in open_columns[-2:]) == 2 and len(open_columns) >= 4:
        open_columns = open_columns[:-3]  # phonemes, their tones, their number per character
    if sum(columns[i].is_measure for i in open_columns) > 1:
        return None  # perhaps the start and the end of a segment
    open_columns = [i for i in open_columns if not columns[i].is_measure]
    languages = [i for i in open_columns if columns[i].is_language]
    if len(languages) == 1 and len(open_columns) > 1:
        roles[languages[0]] = "language"
        open_columns.remove(languages[0])
    names = [i for i in open_columns if columns[i].is_name]
    spoken = [i for i in open_columns if i not in names]
    if len(names) == 2 and not spoken:
        names, spoken = _apart(columns, names)
    if len(open_columns) == 1:
        names, spoken = [], open_columns
    if len(names) > 1 or not 1 <= len(spoken) <= 2:
        return None
    if len(spoken) == 2:
        raw, normalized = spoken
        if not _are_alike(columns[raw], columns[normalized]):
            return None
        roles[raw] = "raw text"
    roles[spoken[-1]] = "text"
    if names and columns[names[0]].is_other_label:
        return None
    if names:
        roles[names[0]] = "speaker"
    return roles


def _fits(roles: Sequence[Role], columns: Sequence[FieldValues]) -> bool:
    """Return whether columns may be these, by their number and the language among them."""
    is_as_long = len(roles) == len(columns) and "language" in roles
    return is_as_long and columns[roles.index("language")].is_language


def _apart(columns: Sequence[FieldValues], names: list[int]) -> tuple[list[int], list[int]]:
    """Return the speaker and the text of two columns that both look like names."""
    speaker, text = sorted(names, key=lambda i: columns[i].num_distinct)
    is_clear = 2 * columns[speaker].num_distinct <= columns[text].num_distinct
    return ([speaker], [text]) if is_clear else (names, [])


def _are_alike(one: FieldValues, other: FieldValues) -> bool:
    """Return whether two columns are spellings of the same texts."""
    scores = []
    for left, right in zip(one.values, other.values, strict=True):
        words, other_words = set(left.lower().split()), set(right.lower().split())
        if words and other_words:
            scores.append(len(words & other_words) / len(words | other_words))
    return not scores or sum(scores) / len(scores) >= 0.4
