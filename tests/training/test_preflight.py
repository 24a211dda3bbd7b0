"""The preflight: each check passes on sound data and models and fails on broken ones."""

import itertools
import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from trainings import PackedCorpus, train

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedBatch, PackedRow, PackedRows, collate, is_placeholder
from higgs_pipe.higgs.codes import delay, target_labels
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import objective
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.training.preflight import checks as preflight
from higgs_pipe.training.preflight import data_checks as preflight_data
from higgs_pipe.training.preflight import model_checks as preflight_model
from higgs_pipe.training.preflight import offset_checks

NAMES = [
    "index range",
    "audio placeholders",
    "labels",
    "device and type",
    "model inputs",
    "training loss",
    "audio offset",
    "LoRA gradients",
    "shuffled text",
]


BRIEF: dict[str, Any] = {"rows_per_step": 2, "num_epochs": 1, "log_steps": 1}


def adapted(base: Any, tokenizer: Any = None, **lora: Any) -> DualLossModel:
    return DualLossModel(add_lora(base, LoraSettings(**lora), 0, tokenizer)).train()


@pytest.fixture
def model(tiny_base: Path) -> DualLossModel:
    return adapted(load_base(Pretrained("base_model", str(tiny_base)), torch.float32))


@pytest.fixture(scope="module")
def knowing(tiny_base: Path, corpus: PackedCorpus) -> DualLossModel:
    """A base that knows the held-out clips: all of its weights were fitted to them."""
    base = load_base(Pretrained("base_model", str(tiny_base)), torch.float32).requires_grad_(True)
    fitted, table = DualLossModel(base), PackedRows(corpus.eval_rows)
    optimizer = torch.optim.Adam(fitted.parameters(), lr=3e-3)
    batch = collate([table[i] for i in range(len(table))], base.config)
    for _ in range(40):
        total = fitted(batch)[0].total()
        objective(total.loss, total.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted(base.requires_grad_(False))


@pytest.fixture
def sample(corpus: PackedCorpus, model: DualLossModel) -> PackedRow:
    return preflight_data.samples_of(PackedRows(corpus.train_rows)[0], model.shape)[0]


def run(model: DualLossModel, corpus: PackedCorpus, start: str = "base") -> dict[str, Any]:
    tables = PackedRows(corpus.train_rows), PackedRows(corpus.eval_rows)
    return preflight.check_before_training(model, *tables, Accelerator(cpu=True), start)


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["status"] for check in result["checks"]}


def test_a_sound_setup_passes_and_a_random_base_gives_no_evidence(
    model: DualLossModel, corpus: PackedCorpus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "higgs_pipe"):
        result = run(model, corpus)
    shown = [record.getMessage().split(": ")[1:3] for record in caplog.records]
    assert shown == [["audio offset", "no evidence"], ["shuffled text", "no evidence"]]
    assert list(statuses(result)) == NAMES
    without_evidence = {name for name, status in statuses(result).items() if status != "passed"}
    assert without_evidence == {"audio offset", "shuffled text"}
    assert set(statuses(result).values()) == {"passed", "no evidence"}


def test_a_base_that_knows_the_clips_passes_every_check(
    knowing: DualLossModel, corpus: PackedCorpus
) -> None:
    result = run(knowing, corpus)
    assert set(statuses(result).values()) == {"passed"}
    for offset, losses in result["base_audio_loss_by_offset"].items():
        assert all(loss < 1 if offset == "1" else loss > 5 for loss in losses)


def test_checked_rows_are_spread_over_the_whole_table() -> None:
    assert preflight._spread(3) == [0, 1, 2]
    found = preflight._spread(1000)
    assert (found[0], found[-1], len(found)) == (0, 999, 64)


def test_the_labels_are_counted(model: DualLossModel, corpus: PackedCorpus) -> None:
    """14 clips, each with three text labels and one EOS in each of 8 codebooks."""
    rows = [
        table[i]
        for table in map(PackedRows, (corpus.train_rows, corpus.eval_rows))
        for i in range(len(table))
    ]
    num_codes = sum(int(((r.audio_labels >= 0) & (r.audio_labels < 1024)).sum()) for r in rows)
    (labels,) = [c for c in run(model, corpus)["checks"] if c["name"] == "labels"]
    assert labels["found"] == (
        f"14 samples with 14 targets: 42 text, {num_codes:,} code and 112 EOS labels, "
        "8 EOS labels per target"
    )


def test_a_sample_with_two_targets_counts_both(corpus: PackedCorpus, model: DualLossModel) -> None:
    first, second, *_ = preflight_data.samples_of(PackedRows(corpus.train_rows)[0], model.shape)
    columns = ("input_ids", "labels", "audio_input_ids", "audio_labels")
    both: dict[str, Any] = {
        name: np.concatenate([getattr(s, name) for s in (first, second)]) for name in columns
    }
    check = preflight_data.check_labels([replace(first, **both)], model.shape)
    assert check.found.startswith("1 samples with 2 targets: 6 text, ")


def test_a_packed_row_is_split_into_its_named_samples(
    corpus: PackedCorpus, model: DualLossModel
) -> None:
    row = PackedRows(corpus.train_rows)[0]
    samples = preflight_data.samples_of(row, model.shape)
    assert len(samples) > 1
    assert [sample.sample_ids for sample in samples] == [(name,) for name in row.sample_ids]
    assert [len(sample.input_ids) for sample in samples] == row.sample_lengths.tolist()


def with_empty_turn(sample: PackedRow, model: DualLossModel) -> PackedRow:
    """The last turn has the delayed frames and the labels of a recording without any code."""
    turn, config = preflight_data.audio_turns(sample, model.shape)[-1], model.shape
    stream = (config.audio_stream_bos_id, config.audio_stream_eos_id)
    codes, margin = [np.empty((0, 8), np.int16)], config.num_margin_frames
    frames = delay(codes, *stream, margin)
    labels = target_labels(codes, stream[1], margin=margin, num_eos=config.num_eos_labels)
    input_ids, num_frames = sample.input_ids.copy(), turn.stop - turn.start
    input_ids[turn.start + len(frames) : turn.stop] = input_ids[0]
    return replace(
        sample,
        input_ids=input_ids,
        audio_input_ids=np.concatenate([sample.audio_input_ids[:-num_frames], frames]),
        audio_labels=np.concatenate([sample.audio_labels[:-num_frames], labels]),
    )


def moved(array: np.ndarray, num_frames: int) -> np.ndarray:
    return np.roll(array, num_frames, axis=0)


def text_labels_moved(sample: PackedRow) -> PackedRow:
    return replace(sample, labels=moved(sample.labels, 1))


def placeholder_supervised(sample: PackedRow) -> PackedRow:
    first_eos_label = np.flatnonzero(sample.labels != -100)[1]  # <|audio_eos|>, after the frames
    before = np.arange(len(sample.labels)) == first_eos_label - 1
    return replace(sample, labels=np.where(before, sample.input_ids, sample.labels))


def without_eos(sample: PackedRow) -> PackedRow:
    labels = np.where(sample.audio_labels == 1025, -100, sample.audio_labels)
    return replace(sample, audio_labels=labels)


def with_every_eos(sample: PackedRow) -> PackedRow:
    """Those that fill the delay after the end of a codebook are labels, too: 1 to 8 of each."""
    is_eos = sample.audio_input_ids == 1025
    return replace(sample, audio_labels=np.where(is_eos, 1025, sample.audio_labels))


def with_bos(sample: PackedRow) -> PackedRow:
    """The last target's stream BOS, which the first of its labels follows, is a label too."""
    last = np.flatnonzero((sample.audio_input_ids == 1024).all(axis=1))[-1]
    is_bos = (sample.audio_input_ids == 1024) & (np.arange(len(sample.audio_labels)) >= last)[
        :, None
    ]
    return replace(sample, audio_labels=np.where(is_bos, 1024, sample.audio_labels))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (text_labels_moved, "text labels differ from the tokens"),
        (placeholder_supervised, "a placeholder has a text label"),
        (without_eos, "0 EOS labels in a target"),
        (with_every_eos, "36 EOS labels in a target, which needs 8"),
        (with_bos, "codes of the target have no label, or stream BOS has one"),
        (
            lambda s: replace(s, audio_labels=moved(s.audio_labels, 1)),
            "audio labels differ from the codes",
        ),
        (
            lambda s: replace(s, audio_input_ids=moved(s.audio_input_ids, -1)),
            "audio labels differ from the codes",
        ),
        (lambda s: replace(s, labels=np.full_like(s.labels, -100)), "no text label"),
        (lambda s: replace(s, audio_labels=np.full_like(s.audio_labels, -100)), "no audio label"),
    ],
)
def test_labels_that_are_wrong_are_named_with_their_clip(
    sample: PackedRow, model: DualLossModel, broken: Any, message: str
) -> None:
    assert preflight_data.check_labels([sample], model.shape).status == "passed"
    check = preflight_data.check_labels([sample, broken(sample)], model.shape)
    assert check.status == "failed"
    assert check.found.startswith(f"{sample.sample_ids[0]}: {message}")


def test_a_target_with_too_few_frames_for_a_recording_is_named(
    sample: PackedRow, model: DualLossModel
) -> None:
    config = model.shape
    turn = preflight_data.audio_turns(sample, config)[-1]
    start = len(sample.audio_labels) - (turn.stop - turn.start)  # of the target's frames
    input_ids, labels = sample.input_ids.copy(), sample.audio_labels.copy()
    input_ids[turn.start + 1 : turn.stop] = input_ids[0]
    codes = sample.audio_input_ids.copy()
    codes[start] = labels[start] = config.audio_stream_eos_id
    broken = replace(sample, input_ids=input_ids, audio_input_ids=codes, audio_labels=labels)
    check = preflight_data.check_labels([broken], config)
    assert check.status == "failed"
    assert "1 frames in a target" in check.found


def test_a_target_without_any_code_is_named(sample: PackedRow, model: DualLossModel) -> None:
    check = preflight_data.check_labels([with_empty_turn(sample, model)], model.shape)
    assert check.status == "failed"
    assert " frames in a target, too few for its BOS, delay and EOS" in check.found


def test_a_frame_moved_to_the_next_sample_is_found_although_totals_agree(
    corpus: PackedCorpus, model: DualLossModel
) -> None:
    row, config = PackedRows(corpus.train_rows)[0], model.shape
    first, second, *_ = preflight_data.samples_of(row, config)
    frames = np.concatenate([first.audio_input_ids, second.audio_input_ids[:1]])
    swapped = [replace(first, audio_input_ids=frames[1:]), second]
    assert preflight_data.check_placeholders([first, second], config).status == "passed"
    check = preflight_data.check_placeholders(swapped, config)
    assert check.status == "failed"
    assert "do not have the frames of one recording" in check.found
    assert check.found.startswith(f"{first.sample_ids[0]}: ")


def test_a_dropped_frame_is_counted(sample: PackedRow, model: DualLossModel) -> None:
    shorter = replace(sample, audio_input_ids=sample.audio_input_ids[:-1])
    check = preflight_data.check_placeholders([shorter], model.shape)
    num_frames = len(sample.audio_input_ids)
    assert check.status == "failed"
    assert f"{num_frames} placeholders for {num_frames - 1} frames" in check.found


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("input_ids", "text ids from 0 to 320"),
        ("labels", "text labels from 0 to 320"),
        ("audio_input_ids", "audio ids from 0 to 1026"),
        ("audio_labels", "audio labels from 0 to 1026"),
        ("input_ids", "text ids from -1 to "),
        ("labels", "text labels from -1 to "),
        ("audio_input_ids", "audio ids from -1 to "),
        ("audio_labels", "audio labels from -1 to "),
    ],
)
def test_ids_of_another_vocabulary_are_refused(
    sample: PackedRow, model: DualLossModel, column: str, message: str
) -> None:
    values = getattr(sample, column).copy()
    too_high = {"i": 320, "l": 320, "a": 1026}[column[0]]
    values.flat[:2] = (-1, 1) if "-1" in message else (0, too_high)
    check = preflight_data.check_index_ranges([replace(sample, **{column: values})], model.native)
    assert check.status == "failed"
    assert message in check.found
    assert "packed for another base_model" in check.found


def test_rows_with_another_number_of_codebooks_are_refused(
    corpus: PackedCorpus, model: DualLossModel
) -> None:
    row = PackedRows(corpus.train_rows)[0]
    fewer = replace(row, audio_input_ids=row.audio_input_ids[:, :7])
    check = preflight_data.check_index_ranges([fewer], model.native)
    assert check.status == "failed"
    assert len(row.sample_ids) > 1
    assert check.found.startswith(f"row of {row.sample_ids[0]}: 7 codebooks")


def test_an_audio_turn_too_short_for_a_recording_is_named(
    sample: PackedRow, model: DualLossModel
) -> None:
    turn = preflight_data.audio_turns(sample, model.shape)[-1]
    check = preflight_data.check_placeholders([with_empty_turn(sample, model)], model.shape)
    assert check.status == "failed"
    assert re.search(rf"the \d+ placeholders from position {turn.start} on", check.found)


def test_a_parameter_on_another_device_is_named(sample: PackedRow, model: DualLossModel) -> None:
    batch = collate([sample], model.shape)
    model.native.model.norm.to("meta")
    check = preflight_model.check_devices(model.native, batch, torch.device("cpu"))
    assert check.status == "failed"
    assert "1 parameters are not on cpu, such as model.norm.weight" in check.found


def test_lora_tensors_of_two_dtypes_are_refused(sample: PackedRow, model: DualLossModel) -> None:
    batch = collate([sample], model.shape)
    layer = model.native.model.layers[0].self_attn.q_proj
    layer.lora_A.to(torch.bfloat16)
    check = preflight_model.check_devices(model.native, batch, torch.device("cpu"))
    assert check.status == "failed"
    assert "LoRA tensors are torch.bfloat16 and torch.float32" in check.found


def test_a_batch_on_another_device_and_mixed_embedding_dtypes_are_refused(
    sample: PackedRow, model: DualLossModel
) -> None:
    batch, cpu = collate([sample], model.shape), torch.device("cpu")
    assert preflight_model.check_devices(model.native, batch, cpu).status == "passed"
    assert (
        "not on meta"
        in preflight_model.check_devices(model.native, batch, torch.device("meta")).found
    )
    narrow = replace(batch, position_ids=batch.position_ids.int())
    found = preflight_model.check_devices(model.native, narrow, cpu).found
    assert "position_ids is torch.int32, not int64" in found
    model.native.model.embed_tokens.to(torch.bfloat16)
    check = preflight_model.check_devices(model.native, batch, cpu)
    assert check.status == "failed"
    assert "text embeddings are torch.bfloat16, audio embeddings torch.float32" in check.found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(1)}, "a stray labels"),
        ({"attention_mask": None}, None),
        ({"use_cache": True}, "use_cache is not off"),
        ({"use_cache": None}, "use_cache is not off"),
        ({"position_ids": torch.zeros(1)}, "position_ids is not the batch's"),
        ({"audio_input_ids": None}, "audio_input_ids is missing"),
    ],
)
def test_the_backbone_gets_the_batch_and_nothing_else(
    model: DualLossModel, sample: PackedRow, change: dict[str, Any], message: str | None
) -> None:
    batch = collate([sample], model.shape)
    seen = preflight_model.seen_in_forward(model, batch)
    assert preflight_model.check_model_inputs(seen, batch).status == "passed"
    other = replace(seen, backbone_kwargs=seen.backbone_kwargs | change)
    check = preflight_model.check_model_inputs(other, batch)
    assert check.status == ("passed" if message is None else "failed")
    assert message is None or message in check.found


def test_the_native_forward_must_not_run(
    model: DualLossModel, sample: PackedRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, sound = collate([sample], model.shape), model.forward

    def with_native_loss(batch: Any) -> Any:
        model.native()
        return sound(batch)

    monkeypatch.setattr(model.native, "forward", lambda: None)
    monkeypatch.setattr(model, "forward", with_native_loss)
    check = preflight_model.check_model_inputs(preflight_model.seen_in_forward(model, batch), batch)
    assert "own forward ran" in check.found


def held_out_batch(model: DualLossModel, corpus: PackedCorpus, label_shift: int) -> PackedBatch:
    """The held-out clips, with the audio labels moved within each clip."""
    table, config = PackedRows(corpus.eval_rows), model.shape
    samples = [s for i in range(len(table)) for s in preflight_data.samples_of(table[i], config)]
    shifted = [replace(s, audio_labels=moved(s.audio_labels, label_shift)) for s in samples]
    return collate(shifted, config)


@pytest.mark.parametrize(
    ("label_shift", "best_offset"), [(0, 1), (1, 2), (-1, 0)], ids=["sound", "late", "early"]
)
def test_a_base_that_knows_the_clips_reveals_labels_shifted_by_a_frame(
    knowing: DualLossModel, corpus: PackedCorpus, label_shift: int, best_offset: int
) -> None:
    batch = held_out_batch(knowing.eval(), corpus, label_shift)
    hidden = preflight_model.seen_in_forward(knowing, batch).hidden
    losses = offset_checks.audio_losses_by_offset(knowing.native, hidden, batch)
    assert np.nanmean(losses, axis=(1, 2)).argmin() == best_offset
    check = offset_checks.check_offsets(losses, offset_checks.repeated_codes(batch), 1026)
    assert check.status == ("passed" if label_shift == 0 else "failed")
    assert (f"at offset {best_offset}" in check.found) == (label_shift != 0)


def test_the_loss_of_a_label_is_infinite_if_the_model_gives_no_number(
    model: DualLossModel, corpus: PackedCorpus
) -> None:
    batch = held_out_batch(model, corpus, 0)
    hidden = torch.full((batch.input_ids.shape[1], 64), math.nan)
    losses = offset_checks.audio_losses_by_offset(model.native, hidden, batch)
    has_label = (batch.audio.values != -100).numpy()
    assert 0 < has_label.sum() < has_label.size
    for at_offset in losses:
        assert np.array_equal(np.isinf(at_offset), has_label)
        assert np.array_equal(np.isnan(at_offset), ~has_label)


def test_codes_of_another_codec_give_no_evidence(
    knowing: DualLossModel, corpus: PackedCorpus
) -> None:
    def renumbered(array: np.ndarray) -> np.ndarray:
        is_code = (array >= 0) & (array < 1024)
        return np.where(is_code, (7 * array.astype(int) + 3) % 1024, array)

    table, config = PackedRows(corpus.eval_rows), knowing.shape
    rows = [
        replace(
            table[i],
            audio_input_ids=renumbered(table[i].audio_input_ids),
            audio_labels=renumbered(table[i].audio_labels),
        )
        for i in range(len(table))
    ]
    batch = collate(rows, config)
    hidden = preflight_model.seen_in_forward(knowing.eval(), batch).hidden
    losses = offset_checks.audio_losses_by_offset(knowing.native, hidden, batch)
    check = offset_checks.check_offsets(losses, offset_checks.repeated_codes(batch), 1026)
    assert check.status == "no evidence"
    assert "for a trained one, check `codec`" in check.found


def losses_at(*means: float) -> np.ndarray:
    """(3, M, 1): one loss per offset, with some noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 400, 1))
    return np.array(means)[:, None, None] + noise


@pytest.mark.parametrize(
    ("means", "share_repeated", "status"),
    [
        ((6.0, 4.0, 6.0), 0.0, "passed"),
        ((9.0, 8.0, 9.0), 0.0, "no evidence"),  # worse than a guess: ln 1026 = 6.93
        ((5.0, 5.0, 5.0), 0.0, "no evidence"),
        ((6.0, 4.0, 4.0), 0.0, "no evidence"),
        ((4.0, 4.0, 6.0), 0.0, "no evidence"),
        ((6.0, 4.0, 3.0), 0.0, "failed"),
        ((0.5, 4.0, 6.0), 0.1, "failed"),  # exp(-0.5) = 0.61 for its own code: it copies
        ((0.5, 4.0, 6.0), 0.9, "no evidence"),  # nine in ten codes do repeat
    ],
)
def test_the_offset_verdict_depends_on_losses_and_repeated_codes(
    means: Any, share_repeated: float, status: str
) -> None:
    repeated = (np.arange(400)[:, None] < share_repeated * 400).astype(float)
    assert offset_checks.check_offsets(losses_at(*means), repeated, 1026).status == status


def test_a_mean_must_exceed_its_bound_by_five_standard_errors() -> None:
    """A hundred values of 0.9 and 1.1: their standard error is 0.01, so the limit is 0.95."""
    values = np.array([0.9, 1.1] * 50 + [np.nan])
    assert offset_checks._is_above(values, 0.948)
    assert not offset_checks._is_above(values, 0.952)


def test_infinite_losses_are_no_evidence_of_the_offset() -> None:
    losses = losses_at(6, 4, 6)
    losses[2, 7] = np.inf
    check = offset_checks.check_offsets(losses, np.zeros((400, 1)), 1026, "earlier adapter")
    assert (check.status, check.found) == (
        "no evidence",
        "the earlier adapter's audio loss is not finite",
    )


def test_one_codebook_without_evidence_is_told_from_those_that_agree() -> None:
    losses = np.concatenate([losses_at(6, 4, 6), losses_at(5, 5, 5), losses_at(6, 4, 6)], axis=2)
    check = offset_checks.check_offsets(losses, np.zeros(losses.shape[1:]), 1026)
    assert check.status == "no evidence"
    assert check.found.startswith("codebooks 0, 2 agree; in the others the base's loss")


def test_a_single_label_is_no_evidence_of_the_offset() -> None:
    losses = losses_at(6, 4, 6)[:, :1]
    assert offset_checks.check_offsets(losses, np.zeros((1, 1)), 1026).status == "no evidence"


def test_a_codebook_with_another_delay_fails_and_is_named() -> None:
    right, late = losses_at(6, 4, 6), losses_at(6, 6, 4)
    losses = np.concatenate([right, right, late], axis=2)
    check = offset_checks.check_offsets(losses, np.zeros(losses.shape[1:]), 1026)
    assert check.status == "failed"
    assert "(codebook 2: 3.996 at offset 2, 5.998 at 1;" in check.found


def test_repeated_codes_are_found_within_clips_only(
    model: DualLossModel, corpus: PackedCorpus
) -> None:
    batch = held_out_batch(model, corpus, 0)
    repeated = offset_checks.repeated_codes(batch)
    for k in range(8):
        for i in range(len(batch.audio.values)):
            code = batch.audio.values[i, k].item()
            if code in (-100, 1025):  # no label, or the clip's last
                assert np.isnan(repeated[i, k])
            else:
                assert repeated[i, k] == (code == batch.audio.values[i + 1, k].item())


def test_a_code_of_the_next_clip_is_no_repetition() -> None:
    """The third label is five positions after the second: text lies between them."""
    audio = SimpleNamespace(values=torch.full((3, 1), 5), predictors=torch.tensor([3, 4, 9]))
    batch: Any = SimpleNamespace(audio=audio)
    expected = np.array([[1.0], [np.nan], [np.nan]])
    assert np.array_equal(offset_checks.repeated_codes(batch), expected, equal_nan=True)


def test_an_unshifted_loss_is_found(model: DualLossModel, corpus: PackedCorpus) -> None:
    """This is the mistake of predicting each label from its own position."""
    batch = held_out_batch(model.eval(), corpus, 0)
    seen = preflight_model.seen_in_forward(model, batch)
    losses = offset_checks.audio_losses_by_offset(model.native, seen.hidden, batch)
    assert offset_checks.check_training_loss(losses, seen.sums).status == "passed"
    unshifted = replace(batch, audio=batch.audio._replace(predictors=batch.audio.predictors + 1))
    sums = preflight_model.seen_in_forward(model, unshifted).sums
    check = offset_checks.check_training_loss(losses, sums)
    assert check.status == "failed"
    assert check.found.startswith("codebook 0: ")


def test_a_frozen_lora_group_is_named(model: DualLossModel, sample: PackedRow) -> None:
    batch = collate([sample], model.shape)
    assert preflight_model.check_lora_gradients(model, batch).status == "passed"
    for name, parameter in model.named_parameters():
        if ".audio_mlp.up_proj.lora_" in name:
            parameter.requires_grad_(False)
    check = preflight_model.check_lora_gradients(model, batch)
    assert check.status == "failed"
    assert check.found.startswith(
        "no gradient in audio FFN up_proj (2 layers, such as model.layers.0.audio_mlp.up_proj). "
    )


def test_the_gradient_of_a_new_embedding_adapter_is_found(
    tiny_base: Path, sample: PackedRow
) -> None:
    """Of its two matrices the first is zero, and therefore the gradient of the second."""
    base = load_base(Pretrained("base_model", str(tiny_base)), torch.float32)
    model = adapted(base, target_modules=["embed_audio_tokens.embed_audio_tokens"])
    check = preflight_model.check_lora_gradients(model, collate([sample], model.shape))
    assert (check.status, check.found) == ("passed", "1 layers: embed_audio_tokens")


def test_gradients_missing_everywhere_give_one_message(
    model: DualLossModel, sample: PackedRow
) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("_lm_head.weight"):
            parameter.data.zero_()
    check = preflight_model.check_lora_gradients(model, collate([sample], model.shape))
    assert check.status == "failed"
    assert "every LoRA tensor is zero" in check.found


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": "attention"},
        {"use_dora": True},
        {"init": "pissa"},
        {"train_in_full": ["audio_head", "audio_embeddings"]},
        {"trainable_tokens": ["<|eot_id|>"]},
    ],
    ids=["attention", "dora", "pissa", "in full", "tokens"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_preflight_passes_for_every_kind_of_adapter(
    tiny_base: Path, corpus: PackedCorpus, lora: dict[str, Any], dtype: Any
) -> None:
    base = Pretrained("base_model", str(tiny_base))
    result = run(adapted(load_base(base, dtype), renderer_of(base).tokenizer, **lora), corpus)
    assert "failed" not in statuses(result).values()
    (gradients,) = [c["found"] for c in result["checks"] if c["name"] == "LoRA gradients"]
    assert ("audio_lm_head, embed_audio_tokens" in gradients) == ("train_in_full" in lora)
    assert ("audio FFN" in gradients) == (lora.get("target_modules") is None)


def test_a_layer_detached_from_the_loss_is_named(model: DualLossModel, sample: PackedRow) -> None:
    """The attention of one layer of two."""
    model.native.model.layers[1].self_attn.o_proj.register_forward_hook(
        lambda module, args, output: output.detach()
    )
    check = preflight_model.check_lora_gradients(model, collate([sample], model.shape))
    assert check.status == "failed"
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layer = f"model.layers.1.self_attn.{projection}"
        assert f"attention {projection} (1 layers, such as {layer})" in check.found


def test_a_base_that_prefers_swapped_texts_says_to_check_the_transcripts(
    knowing: DualLossModel, corpus: PackedCorpus
) -> None:
    """Two held-out clips have each other's text."""
    rows, config = PackedRows(corpus.eval_rows), knowing.eval().shape
    samples = [s for i in range(len(rows)) for s in preflight_data.samples_of(rows[i], config)]
    alike = next(
        pair
        for pair in itertools.combinations(samples, 2)
        if len({len(preflight_data.audio_turns(s, config)) for s in pair}) == 1
    )
    swapped = [
        preflight_data.with_text_of(one, other, config) for one, other in (alike, alike[::-1])
    ]
    found = []
    for given in (alike, swapped):
        batch, cpu = collate(given, config), torch.device("cpu")
        hidden = preflight_model.seen_in_forward(knowing, batch).hidden
        losses = offset_checks.audio_losses_by_offset(knowing.native, hidden, batch)
        check = offset_checks.check_shuffled_text(knowing, given, losses, cpu)
        found.append((check.status, check.found.endswith("?")))
    assert found == [("passed", False), ("no evidence", True)]


@pytest.mark.parametrize(
    ("own", "other", "status", "ending"),
    [
        (4, 6, "passed", "6.000 with another's, nats per label: it reads the text"),
        (6, 4, "no evidence", "label. Are the transcripts those of their clips?"),
        (9, 12, "no evidence", "9.000 with a sample's own text and 12.000 with another's"),
        (12, 9, "no evidence", "12.000 with a sample's own text and 9.000 with another's"),
        (np.inf, 4, "no evidence", "not finite"),
        (4, np.inf, "no evidence", "not finite"),
    ],
)
def test_the_verdict_on_texts_depends_on_the_losses_of_swapped_samples(
    model: DualLossModel,
    corpus: PackedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    own: float,
    other: float,
    status: str,
    ending: str,
) -> None:
    """The first sample has no reference, as no other has, and so takes no part.

    Losses above ln 1026 = 6.93 are worse than a guess.
    """
    rows, config = PackedRows(corpus.train_rows), model.shape
    samples = [s for i in range(len(rows)) for s in preflight_data.samples_of(rows[i], config)]
    num_turns = [len(preflight_data.audio_turns(sample, config)) for sample in samples]
    pair = [s for s, n in zip(samples, num_turns, strict=True) if n == 2][:2]
    chosen = [samples[num_turns.index(1)], *pair]
    labels = [len(collate([s], config).audio.values) for s in chosen]
    losses = np.tile(np.repeat([0.0, own, own], labels)[:, None], (3, 1, 8))

    def losses_of_others(_: Any, hidden: Any, batch: PackedBatch) -> np.ndarray:
        assert batch.sample_ids == tuple(s.sample_ids[0] for s in chosen[1:])
        return np.full((3, sum(labels[1:]), 8), other)

    monkeypatch.setattr(offset_checks, "audio_losses_by_offset", losses_of_others)
    check = offset_checks.check_shuffled_text(model, chosen, losses, torch.device("cpu"))
    assert check.status == status
    assert check.found.removesuffix(", nats per label").endswith(ending)


def test_texts_are_swapped_even_if_one_sample_fills_the_probe(
    model: DualLossModel, corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.pack(tmp_path, tasks={"speech": 1, "cloning": 0}, max_tokens=512)
    tables = PackedRows(tmp_path / "train.parquet"), PackedRows(tmp_path / "eval.parquet")
    monkeypatch.setattr(preflight, "PROBE_POSITIONS", 1)
    *_, check = preflight.check_before_training(model, *tables, Accelerator(cpu=True))["checks"]
    assert check["name"] == "shuffled text"
    assert re.search(r"own text and \d+\.\d+ with another's", check["found"])


def test_findings_name_what_training_starts_from(
    model: DualLossModel, corpus: PackedCorpus
) -> None:
    checks = run(model, corpus, "earlier adapter")["checks"]
    found = {check["name"]: check["found"] for check in checks}
    for name in ("audio offset", "shuffled text"):
        assert "the earlier adapter's" in found[name]


def test_the_probe_takes_samples_up_to_a_number_of_positions(
    model: DualLossModel, corpus: PackedCorpus
) -> None:
    table = PackedRows(corpus.train_rows)
    samples = [
        s for i in range(len(table)) for s in preflight_data.samples_of(table[i], model.shape)
    ]
    lengths = [len(sample.input_ids) for sample in samples]
    for num_positions, expected in ((1, 1), (lengths[0], 1), (lengths[0] + 1, 2), (10**6, 11)):
        found = preflight._first_samples(table, model.shape, num_positions, at_least=1)
        assert [len(sample.input_ids) for sample in found] == lengths[:expected]


def test_a_non_finite_loss_is_null_in_the_file(
    model: DualLossModel, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "means_of_codebooks", lambda _: [np.nan, np.inf, 1.5])
    expected = {offset: [None, None, 1.5] for offset in "012"}
    assert run(model, corpus)["base_audio_loss_by_offset"] == expected


def test_swapping_texts_leaves_the_audio_unchanged(
    model: DualLossModel, corpus: PackedCorpus
) -> None:
    """Every token that is no placeholder comes from the other clip, every frame from the clip."""
    config = model.shape
    rows = PackedRows(corpus.train_rows)
    samples = [s for i in range(len(rows)) for s in preflight_data.samples_of(rows[i], config)]
    one, other = [s for s in samples if len(preflight_data.audio_turns(s, config)) == 2][:2]
    mixed = preflight_data.with_text_of(one, other, config)
    assert collate([mixed], config).sample_ids == one.sample_ids
    for ids in (mixed.input_ids, other.input_ids):
        assert len(ids[~is_placeholder(ids, config)]) > 0
    assert (
        mixed.input_ids[~is_placeholder(mixed.input_ids, config)].tolist()
        == other.input_ids[~is_placeholder(other.input_ids, config)].tolist()
    )
    assert np.array_equal(mixed.audio_labels, one.audio_labels)


def test_the_preflight_does_not_change_training(corpus: PackedCorpus, tmp_path: Path) -> None:
    for name, is_on in (("on", True), ("off", False)):
        train(corpus, tmp_path / name, **BRIEF, preflight=is_on)
    on, off = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("on", "off")
    )
    assert on.keys() == off.keys()
    assert all(torch.equal(on[key], off[key]) for key in on)
    kept = json.loads((tmp_path / "on/preflight.json").read_text())
    assert list(statuses(kept)) == NAMES
    assert json.loads((tmp_path / "off/preflight.json").read_text())["checks"] == []


def test_the_preflight_leaves_the_model_unchanged(
    model: DualLossModel, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gradient, no hook, the mode and the state of the random generator unchanged.

    Its losses are those of held-out samples, its gradients those of training samples.
    """
    taken: dict[str, list[str]] = {}
    for name in ("seen_in_forward", "check_lora_gradients"):
        check = getattr(preflight, name)

        def noted(model: Any, batch: PackedBatch, name: str = name, check: Any = check) -> Any:
            taken[name] = list(batch.sample_ids)
            return check(model, batch)

        monkeypatch.setattr(preflight, name, noted)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    run(model, corpus)
    ids = [PackedRows(rows)[0].sample_ids for rows in (corpus.eval_rows, corpus.train_rows)]
    assert [found[0] for found in taken.values()] == [named[0] for named in ids]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_broken_rows_stop_training_with_the_findings(corpus: PackedCorpus, tmp_path: Path) -> None:
    rows = with_shifted_codes(corpus.train_rows, tmp_path / "train.parquet")
    with pytest.raises(UserError) as caught:
        train(corpus, tmp_path / "out", train_rows=rows, **BRIEF)
    message = str(caught.value)
    assert message.startswith("pre-flight: 2 of the checks")
    assert "do not have the frames of one recording" in message
    assert "audio labels differ from the codes" in message
    assert "snakemake --forcerun pack_rows" in message
    assert "train.preflight: false" in message
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_a_failure_on_another_process_stops_this_one(
    model: DualLossModel, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = preflight_data.Check("device and type", "failed", "a GPU is missing there")
    monkeypatch.setattr(preflight, "gather_object", lambda checks: [*checks, failed, failed])
    with pytest.raises(UserError, match=r": 1 .*\n  device and type: .*GPU"):
        run(model, corpus)
    assert model.training


@pytest.mark.parametrize("name", ["check_labels", "check_devices", "check_lora_gradients"])
def test_a_failed_check_of_data_devices_or_model_stops_training(
    model: DualLossModel, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failed = preflight_data.Check(name, "failed", "found")
    monkeypatch.setattr(preflight, name, lambda *_: failed)
    with pytest.raises(UserError, match=rf": 1 .*\n  {name}: found\n"):
        run(model, corpus)


def with_shifted_codes(source: Path, output: Path) -> Path:
    """The packed rows with all frames of a row one place later."""
    table = pq.read_table(source)
    index = table.column_names.index("audio_input_ids")
    frames = [[row[-1], *row[:-1]] for row in table["audio_input_ids"].to_pylist()]
    field = table.schema.field(index)
    changed = table.set_column(index, field, pa.array(frames, type=field.type))
    with pq.ParquetWriter(output, table.schema) as writer:
        writer.write_table(changed.cast(table.schema))
    return output
