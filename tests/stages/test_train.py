"""The training loop: exact on any number of processes, and loud when something is wrong."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from helpers import ROOT, write_stage_config
from launched.train_cases import run_cases
from reference import (
    base_with_lora,
    dual_loss,
    loss_of_rows,
    norm_as_precise_as_its_input,
    plain_training,
    read_rows,
    row_losses,
)
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus, launch, log_of, train
from transformers import AutoTokenizer
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import HiggsAudioV2RMSNorm

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.lora import load_adapter
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.step_inputs import epoch_steps

# max_grad_norm: gradients are clipped in TWO_ROWS alone, since that would hide a wrong scale.
EXACT: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float64",
    "max_grad_norm": 1e9,
    "lora": {"dropout": 0.0},
}
RATE = 5e-3
ALL_ROWS: dict[str, Any] = {
    "rows_per_step": 100,
    "max_steps": 3,
    "warmup_fraction": 0.3,
    "learning_rate": RATE,
}
TWO_ROWS = ALL_ROWS | {"rows_per_step": 2, "max_steps": 4}  # the third step has one row
MAX_NORM = 8.0  # of norms of 9.8, 11.4, 7.9 and 6.7
TWO_ROWS |= {"max_grad_norm": MAX_NORM}
# Three prompts, which several processes share.
SPOKEN: dict[str, Any] = {"sample_steps": 2, "num_samples": 3, "sampling": {"max_seconds": 0.4}}
# A rate that rises until it harms.
HARMFUL: dict[str, Any] = {"learning_rate": 0.1, "warmup_fraction": 0.5, "num_epochs": 8}
HARMFUL |= {"rows_per_step": 3, "eval_steps": 1}
# As on a large GPU; a step that is logged replays nothing.
ALL_MODES: dict[str, Any] = ALL_ROWS | {"compile": True, "cuda_graphs": True, "log_steps": 100}
ALL_MODES |= {"rows_per_step": 5, "preflight": False}
UNEVEN = [3, 0, 2, 1, 4]
# As `accelerate config` writes it, but for the numbers.
OWN_ACCELERATE_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
machine_rank: 0
main_process_port: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 3
"""


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-6 of the largest tensor, each one."""
    assert found.keys() == expected.keys()
    scale = max(float(tensor.norm()) for tensor in expected.values())
    for key, tensor in expected.items():
        assert (found[key] - tensor).norm() <= 1e-6 * scale, key


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def precise_norm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HiggsAudioV2RMSNorm, "forward", norm_as_precise_as_its_input)
        yield


@pytest.fixture(scope="module")
def plain_full_batch(
    corpus: PackedCorpus, precise_norm: None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Three steps over all samples: what packing and splitting must not change."""
    steps = [list(range(5))] * 3
    return plain_training(corpus.base, corpus.train_rows, steps, RATE, num_warmup_steps=1)


@pytest.fixture(scope="module")
def plain_two_rows(
    corpus: PackedCorpus, precise_norm: None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Four steps of two rows, but for the third, which ends the epoch with one."""
    steps = [rows for epoch in (0, 1) for rows in epoch_steps(5, 2, seed=0, epoch=epoch)][:4]
    return plain_training(corpus.base, corpus.train_rows, steps, RATE, 1, MAX_NORM)


@pytest.mark.parametrize(
    ("max_tokens", "settings"),
    [
        (512, {}),
        (2048, {}),
        (768, {"rows_per_micro_batch": 2}),
        (512, {"rows_per_micro_batch": 5, "gradient_checkpointing": True}),
    ],
)
def test_the_adapter_matches_plain_training_for_any_packing_and_batching(
    corpus: PackedCorpus,
    plain_full_batch: tuple[dict[str, torch.Tensor], list[float]],
    tmp_path: Path,
    max_tokens: int,
    settings: dict[str, Any],
) -> None:
    corpus.pack(tmp_path / "packed", max_tokens=max_tokens)
    rows = tmp_path / "packed/train.parquet"
    metrics = train(corpus, tmp_path, rows, **EXACT, **ALL_ROWS, **settings, log_steps=1)
    expected, losses = plain_full_batch
    assert_close(adapter(tmp_path), expected)
    found = [line["loss"] for line in metrics if "loss" in line]
    assert found == pytest.approx(losses, rel=1e-6)


def cases(corpus: PackedCorpus, directory: Path) -> dict[str, dict[str, Any]]:
    """Gradients of one step in ways of sharing it out, and three trainings."""
    settings_by_name = {
        "uneven": ({}, UNEVEN),
        "micro_batches_of_two": ({"rows_per_micro_batch": 2}, UNEVEN),
        "fewer_rows_than_processes": ({}, [1]),
        "padded": ({"cuda_graphs": True, "rows_per_micro_batch": 2}, UNEVEN),
        "two_rows": (TWO_ROWS | SPOKEN, None),
        "early_stop": (HARMFUL | {"early_stopping_patience": 2}, None),
        "all_modes": (ALL_MODES, None),
    }
    found = {}
    for name, (settings, gradients_of) in settings_by_name.items():
        case = {
            "config": write_stage_config(
                directory / name / "train.json",
                base_model=str(corpus.base),
                train=EXACT | {"tracker": "none", "log_steps": 1} | settings,
            ),
            "train_rows": corpus.train_rows,
            "eval_rows": corpus.eval_rows,
            "output_dir": directory / name,
        }
        written: dict[str, Any] = {key: str(value) for key, value in case.items()}
        written |= {} if gradients_of is None else {"gradients_of": gradients_of}
        found[name] = written | {"gpu": name == "all_modes"}
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("processes_as_forks")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_gradients_and_adapter_match_plain_training_on_1_to_3_processes(
    corpus: PackedCorpus,
    plain_two_rows: tuple[dict[str, torch.Tensor], list[float]],
    plain_full_batch: tuple[dict[str, torch.Tensor], list[float]],
    harmful: list[float],
    spoken_by_one: Path,
    tmp_path: Path,
    num_processes: int,
) -> None:
    """Three are launched by the user's own file of `accelerate config`, for what is cheap."""
    to_do = cases(corpus, tmp_path)
    if num_processes == 3:
        del to_do["early_stop"], to_do["all_modes"]
    if num_processes == 1:
        run_cases(list(to_do.values()))
    else:
        (tmp_path / "cases.json").write_text(json.dumps(list(to_do.values())))
        script = str(ROOT / "tests/launched/train_cases.py")
        own = tmp_path / "accelerate.yaml" if num_processes == 3 else None
        if own is not None:
            own.write_text(OWN_ACCELERATE_CONFIG)
        finished = launch(
            num_processes, script, str(tmp_path / "cases.json"), accelerate_config=own
        )
        assert finished.returncode == 0, finished.stderr

    for name in ("uneven", "micro_batches_of_two", "fewer_rows_than_processes", "padded"):
        model, rows = base_with_lora(corpus.base), read_rows(corpus.train_rows)
        loss_of_rows(model, [rows[row] for row in to_do[name]["gradients_of"]]).backward()
        expected = {f"model.{n}": p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert_close(torch.load(tmp_path / name / "gradients.pt"), expected)
    assert_close(adapter(tmp_path / "two_rows"), plain_two_rows[0])
    assert losses(tmp_path / "two_rows") == pytest.approx(plain_two_rows[1], rel=1e-6)
    assert sample_lines(tmp_path / "two_rows") == sample_lines(spoken_by_one)
    if num_processes == 3:
        return
    found = held_out_losses(tmp_path / "early_stop")
    assert found == pytest.approx(harmful[: len(found)], rel=1e-4)
    assert len(found) == steps_until_patience_ends(harmful, patience=2)
    # Compiled, planned, padded, replayed, and a step repeated after one process ran out of memory.
    assert_close(adapter(tmp_path / "all_modes"), plain_full_batch[0])
    assert plans(tmp_path / "all_modes") == PLANS[num_processes]
    assert int((tmp_path / "all_modes/num_replays.txt").read_text()) > 3  # those of the check


# (compiled, padded, rows per micro-batch): of five rows a step, halved after step 1.
PLANS = {
    1: [(True, True, 5), (True, True, 2)],
    2: [(True, True, 3), (True, True, 1)],
}


def plans(output: Path) -> list[tuple[bool, bool, int]]:
    keys = ("is_compiled", "is_padded", "rows_per_micro_batch")
    return [tuple(line[key] for key in keys) for line in log_of(output) if "is_padded" in line]


def sample_lines(output: Path) -> list[dict[str, float]]:
    return [line for line in log_of(output) if "sample_stop_rate" in line]


def losses(output: Path) -> list[float]:
    """Of step 1, 2, ..."""
    return [line["loss"] for line in log_of(output) if "loss" in line]


def held_out_losses(output: Path) -> list[float]:
    """After step 1, 2, ..."""
    lines = log_of(output)
    return [line["eval_loss"] for line in lines if "eval_loss" in line and line["step"]]


def steps_until_patience_ends(losses: list[float], patience: int) -> int:
    """The first step that follows ``patience`` in a row without a better loss before them."""
    for step in range(patience + 1, len(losses) + 1):
        if min(losses[step - patience : step]) >= min(losses[: step - patience]):
            return step
    raise AssertionError("the loss kept falling")


@pytest.fixture(scope="module")
def spoken_by_one(
    corpus: PackedCorpus, precise_norm: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A training in which one process speaks every sample."""
    output = tmp_path_factory.mktemp("spoken-by-one")
    train(corpus, output, **EXACT | TWO_ROWS | SPOKEN)
    assert len(list((output / "samples/step-00000004").glob("*.wav"))) == 3
    return output


@pytest.fixture(scope="module")
def harmful(
    corpus: PackedCorpus, precise_norm: None, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Held-out losses of a training that a rising rate ruins, to its end."""
    output = tmp_path_factory.mktemp("harmful")
    train(corpus, output, **EXACT, **HARMFUL)
    return held_out_losses(output)


def test_training_lowers_every_loss_and_keeps_the_best_adapter(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    metrics = train(
        corpus, tmp_path, num_epochs=15, rows_per_step=3, learning_rate=5e-3, eval_steps=10
    )
    held_out = [line for line in metrics if "eval_loss" in line]
    steps = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in held_out] == [0, 10, 20, 30]
    for name in ("loss", "text_loss", "stop_loss"):
        assert steps[-1][name] < steps[0][name]
        assert held_out[-1][f"eval_{name}"] < held_out[0][f"eval_{name}"]
    assert {"learning_rate", "grad_norm", "epoch", "seconds"} <= steps[0].keys()
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir() if p.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
    ]


def test_logged_seconds_cover_the_whole_stage(corpus: PackedCorpus, tmp_path: Path) -> None:
    """Loading and pre-flight come before the first step, and take longer than the steps."""
    started = time.perf_counter()
    metrics = train(corpus, tmp_path, max_steps=2, log_steps=1)
    wall = time.perf_counter() - started
    first, second, whole = (line["seconds"] for line in metrics if "seconds" in line)
    assert first > second - first
    assert second < whole <= wall


def test_the_saved_adapter_is_the_best_one_and_not_the_last(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """A learning rate that rises until it harms."""
    harmful: dict[str, Any] = {"learning_rate": 0.3, "warmup_fraction": 0.95, "num_epochs": 8}
    metrics = train(corpus, tmp_path, rows_per_step=3, eval_steps=2, **harmful)
    held_out = [line["eval_loss"] for line in metrics if "eval_loss" in line and line["step"]]
    assert min(held_out) < held_out[-1] - 0.02
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float32)
    model = DualLossModel(load_adapter(base, tmp_path / "adapter"))
    sums = held_out_sums(model, PackedRows(corpus.eval_rows), Accelerator(cpu=True))
    assert named_losses(total_of(sums))["loss"] == pytest.approx(min(held_out), rel=1e-5)


def test_the_first_training_loss_is_that_of_the_base(corpus: PackedCorpus, tmp_path: Path) -> None:
    """LoRA starts as the identity: step 1 sees the loss of the base on its rows."""
    metrics = train(corpus, tmp_path, num_epochs=1, rows_per_step=5, dtype="float64")
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float64)
    table = PackedRows(corpus.train_rows)
    rows = epoch_steps(len(table), 5, seed=0, epoch=0)[0]
    found = [row_losses(base, table[row]) for row in rows]
    audio = [sum(f[2][k] for f in found) for k in range(8)]
    num_audio = [sum(f[3][k] for f in found) for k in range(8)]
    expected = dual_loss(sum(f[0] for f in found), sum(f[1] for f in found), audio, num_audio)
    first = next(line for line in metrics if "loss" in line)
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_log_line_gives_throughput_and_time_per_phase(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    settings: Any = {"rows_per_step": 5, "rows_per_micro_batch": 2, "log_steps": 1}
    metrics = train(corpus, tmp_path, num_epochs=2, **settings)
    lengths = [sum(row.sample_lengths) for row in read_rows(corpus.train_rows)]
    for line in (line for line in metrics if "loss" in line):
        tokens = line["tokens_per_second"] * line["step_seconds"]
        assert tokens == pytest.approx(sum(lengths))
        assert line["fill"] == pytest.approx(sum(lengths) / (5 * max(lengths)))
        parts = ("data", "forward", "backward", "optimizer")
        assert 0 < sum(line[f"{part}_seconds"] for part in parts) <= line["step_seconds"]
        assert {"peak_memory_gb", "learning_rate", "grad_norm", "stop_loss"} <= line.keys()
        assert {f"audio_loss_codebook_{k}" for k in range(8)} <= line.keys()


def test_audio_seconds_count_targets_and_not_references(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """References of other clips are read, not learnt."""
    metrics = train(corpus, tmp_path, num_epochs=1, rows_per_step=5)
    line = next(line for line in metrics if "loss" in line)
    learnt = {i for row in read_rows(corpus.train_rows) for i in row.sample_ids}
    shards = [pq.read_table(path).to_pylist() for path in corpus.codes_dir.glob("*.parquet")]
    frames = [c["num_frames"] for codes in shards for c in codes if c["clip_id"] in learnt]
    found = line["audio_seconds_per_second"] * line["step_seconds"]
    frame_rate_hz = PackedRows(corpus.train_rows).codec_info.frame_rate_hz
    assert found == pytest.approx(sum(frames) / frame_rate_hz)


def test_tensorboard_curves_match_the_metrics(corpus: PackedCorpus, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings: dict[str, Any] = {"num_epochs": 1, "rows_per_step": 2, "log_steps": 1}
    metrics = train(corpus, tmp_path, **settings, tracker="tensorboard")
    curves = events.EventAccumulator(str(tmp_path / "logs"))
    curves.Reload()
    names = {key for line in metrics for key in line} - {"step", "lines_sha256"}
    assert set(curves.Tags()["scalars"]) == names
    for name in ("loss", "audio_loss_codebook_7", "eval_loss", "tokens_per_second"):
        expected = [(line["step"], pytest.approx(line[name])) for line in metrics if name in line]
        assert [(point.step, point.value) for point in curves.Scalars(name)] == expected


def test_predictions_are_logged_beside_their_labels(
    corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        logging.getLogger("higgs_pipe").propagate = True
        train(corpus, tmp_path, num_epochs=1, rows_per_step=16)
    row = PackedRows(corpus.train_rows)[epoch_steps(5, 16, seed=0, epoch=0)[0][0]]
    num_frames = int((row.audio_labels != -100).any(axis=1).sum())
    num_text = 3 * len(row.sample_ids)
    lines = [line for line in caplog.text.splitlines() if f"  {row.sample_ids[0]} " in line]
    text, audio = lines
    assert text.endswith(f"logits ({num_text}, 320)")
    assert audio.endswith(f"logits ({num_frames}, 8, 1026)")
    assert "label [269, 268, 265] '<|audio_out_bos|><|audio_eos|><|eot_id|>'" in text
    codes = row.audio_labels[:, 0][row.audio_labels[:, 0] != -100].tolist()
    first_sample = codes[: codes.index(1025) + 1]
    assert f"label {first_sample[:4] + first_sample[-4:]};" in audio


def changed_base(base: Path, output: Path, change: dict[str, float]) -> Path:
    """A copy of the base with some weights multiplied."""
    shutil.copytree(base, output)
    weights = load_file(output / "model.safetensors")
    for name, factor in change.items():
        weights[name] = weights[name] * factor
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    return output


def test_a_non_finite_loss_stops_with_what_to_check(corpus: PackedCorpus, tmp_path: Path) -> None:
    broken = changed_base(corpus.base, tmp_path / "base", {"audio_lm_head.weight": float("inf")})
    with pytest.raises(UserError, match=r"step 0: .* nan\..*train\.learning_rate"):
        train(corpus, tmp_path / "out", base=broken)


def test_a_non_finite_training_loss_names_the_clips_of_the_step(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """Only clip-08 says an 8; the held-out clips do not."""
    shutil.copytree(corpus.base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    eight = AutoTokenizer.from_pretrained(corpus.base).convert_tokens_to_ids("8")
    weights["model.embed_tokens.weight"][eight] = float("nan")
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"step 1, .* nan; .*clip-08"):
        train(corpus, tmp_path / "out", base=tmp_path / "base")


def test_lora_without_any_gradient_stops_after_the_first_step(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    heads = {"audio_lm_head.weight": 0.0, "text_lm_head.weight": 0.0}
    blind = changed_base(corpus.base, tmp_path / "base", heads)
    with pytest.raises(UserError, match=r"step 1: .*train\.lora\.target_modules"):
        train(corpus, tmp_path / "out", base=blind, preflight=False)


@pytest.mark.parametrize(
    ("column", "missing"), [("labels", "text"), ("audio_labels", "audio codebook 0, ")]
)
def test_a_step_without_labels_of_a_kind_stops_with_what_to_check(
    corpus: PackedCorpus, tmp_path: Path, column: str, missing: str
) -> None:
    rows = without_labels(corpus.train_rows, tmp_path / "train.parquet", column)
    with pytest.raises(UserError, match=f"step 1: .*{missing}.*--forcerun pack_rows"):
        train(corpus, tmp_path / "out", train_rows=rows, preflight=False)


def without_labels(source: Path, output: Path, column: str) -> Path:
    """The packed rows with one kind of label taken out."""
    table = pq.read_table(source)
    index = table.column_names.index(column)

    def ignored(value: object) -> object:
        return [ignored(v) for v in value] if isinstance(value, list) else -100

    values = [ignored(value) for value in table[column].to_pylist()]
    field = table.schema.field(index)
    changed = table.set_column(index, field, pa.array(values, type=field.type))
    with pq.ParquetWriter(output, table.schema) as writer:
        writer.write_table(changed.cast(table.schema))
    return output


def test_cuda_without_a_gpu_is_a_user_error(corpus: PackedCorpus, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="cuda"):
        train(corpus, tmp_path, device="cuda")
