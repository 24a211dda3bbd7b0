"""Spans: which parts of recordings are whole files, and which share time."""

from __future__ import annotations

import pytest

from higgs_pipe.data.spans import Span


@pytest.mark.parametrize(
    ("start", "end", "is_whole", "name"),
    [
        (None, None, True, "a.wav"),
        (1.5, None, False, "the segment of a.wav from 1.500 s"),
        (None, 1.5, False, "the segment of a.wav from 0.000 s"),
        (0.0, 1.5, False, "the segment of a.wav from 0.000 s"),
    ],
)
def test_a_span_with_an_end_of_its_own_is_a_segment(
    start: float | None, end: float | None, is_whole: bool, name: str
) -> None:
    span = Span("a.wav", start, end)
    assert (span.is_whole_file, span.name) == (is_whole, name)


@pytest.mark.parametrize(
    ("other", "is_shared"),
    [
        (Span("a.wav"), True),
        (Span("a.wav", 2.5), True),
        (Span("a.wav", None, 1.5), True),
        (Span("a.wav", 1.2, 1.3), True),
        (Span("a.wav", 3.0), False),
        (Span("a.wav", 0.0, 1.0), False),
        (Span("b.wav"), False),
    ],
)
def test_spans_overlap_if_they_share_time_of_one_file(other: Span, is_shared: bool) -> None:
    span = Span("a.wav", 1.0, 3.0)
    assert span.overlaps(other) == other.overlaps(span) == is_shared


def test_a_span_is_read_from_a_row_by_the_path_or_the_hash_of_its_file() -> None:
    row = {"audio_path": "a.wav", "audio_sha256": "0f", "start_seconds": 1.0, "end_seconds": 2.0}
    assert Span.of(row) == ("a.wav", 1.0, 2.0)
    assert Span.in_file(row) == ("0f", 1.0, 2.0)
