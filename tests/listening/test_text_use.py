"""Clips with swapped texts, compared with rows packed with those texts."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from trainings import PackedCorpus
from transformers import AutoConfig

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedRow, PackedRows
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.higgs.v2.rows import place_of_text
from higgs_pipe.listening.text_use import OtherTexts, _other_texts
from higgs_pipe.training.held_out import held_out_sums

SPEAKERS = {"clip-03": "high", "clip-06": "low", "clip-09": "high"}


def samples(rows: PackedRows | OtherTexts) -> dict[str, tuple[list[int], list[int]]]:
    """Tokens and labels by sample."""
    found = {}
    for number in range(len(rows)):
        row = rows[number]
        ends = np.cumsum(row.sample_lengths)
        for sample_id, end, length in zip(row.sample_ids, ends, row.sample_lengths, strict=True):
            part = slice(end - length, end)
            found[sample_id] = (row.input_ids[part].tolist(), row.labels[part].tolist())
    return found


def place_of(row: PackedRow, sample: slice) -> slice:
    """In a row of Higgs Audio v2, which needs no shape for it."""
    return place_of_text(row, sample, cast("BaseShape", None))


NO_REFERENCE = {"max_tokens": 512, "reference_dropout": 1.0}


def test_a_swapped_clip_equals_one_packed_with_the_speakers_next_text(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    texts = {"clip-03": "Three.", "clip-06": "The sixth of them.", "clip-09": "Nine, at last!"}
    partner = {"clip-03": "clip-09", "clip-06": "clip-09", "clip-09": "clip-03"}
    changes = {clip_id: {"text": texts[other]} for clip_id, other in partner.items()}
    changed = corpus.changed(tmp_path / "changed", changes)
    changed.pack(changed.directory / "packed", **NO_REFERENCE)
    plain = corpus.changed(tmp_path / "plain", {name: {"text": t} for name, t in texts.items()})
    plain.pack(plain.directory / "packed", **NO_REFERENCE)

    found = samples(OtherTexts(PackedRows(plain.eval_rows), SPEAKERS, place_of))
    assert found == samples(PackedRows(changed.eval_rows))
    assert found != samples(PackedRows(plain.eval_rows))


def test_the_reference_and_its_text_are_not_swapped(corpus: PackedCorpus) -> None:
    """Clips 3 and 9 are each other's references: both prompts begin as they did."""
    rows = PackedRows(corpus.eval_rows)
    config = AutoConfig.from_pretrained(corpus.base)
    own, other = samples(rows), samples(OtherTexts(rows, SPEAKERS, place_of))
    for clip_id in ("clip-03", "clip-09"):
        after_reference = own[clip_id][0].index(config.audio_delay_token_id)
        assert own[clip_id][0][:after_reference] == other[clip_id][0][:after_reference]
        assert own[clip_id][0] != other[clip_id][0]


def test_an_equal_text_of_the_speaker_is_skipped(corpus: PackedCorpus, tmp_path: Path) -> None:
    same = corpus.changed(
        tmp_path, {name: {"text": "The same."} for name in ("clip-03", "clip-09")}
    )
    same.pack(tmp_path / "packed", **NO_REFERENCE)
    rows = PackedRows(same.eval_rows)
    own, other = samples(rows), samples(OtherTexts(rows, SPEAKERS, place_of))
    assert [name for name in own if own[name] == other[name]] == []


def test_the_swapped_text_is_that_of_the_next_clip_id() -> None:
    """The next clip of the same speaker in any packing order, or else of any speaker."""
    texts = {name: np.array([number], np.int32) for number, name in enumerate("dacb")}
    found = _other_texts(texts, {"a": "ada", "b": "ada", "d": "ada"})
    numbers = {name: int(text[0]) for name, text in found.items()}
    assert numbers == {"a": 3, "b": 0, "d": 1, "c": 0}  # b, d, a; and d after c


def test_a_clip_without_another_text_keeps_its_own(corpus: PackedCorpus, tmp_path: Path) -> None:
    same = corpus.changed(tmp_path, {name: {"text": "The same."} for name in SPEAKERS})
    same.pack(tmp_path / "packed", max_tokens=512)
    rows = PackedRows(same.eval_rows)
    assert samples(OtherTexts(rows, SPEAKERS, place_of)) == samples(rows)


def test_swapped_texts_leave_the_audio_labels_unchanged(corpus: PackedCorpus) -> None:
    model = DualLossModel(load_base(Pretrained("base_model", str(corpus.base)), torch.float32))
    rows = PackedRows(corpus.eval_rows)
    accelerator = Accelerator(cpu=True)
    own = held_out_sums(model, rows, accelerator)
    others: Any = OtherTexts(rows, SPEAKERS, place_of)
    other = held_out_sums(model, others, accelerator)
    assert own.keys() == other.keys()
    for clip_id in own:
        assert torch.equal(own[clip_id].count, other[clip_id].count)
        assert not torch.equal(own[clip_id].loss, other[clip_id].loss)
