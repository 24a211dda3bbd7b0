"""Samples spoken during training: their content, what they decide, and no effect on training."""

import io
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from accelerate import Accelerator
from helpers import Seen
from safetensors.torch import load_file
from trainings import PackedCorpus, train

from higgs_pipe.config.settings import Sampling, TrainConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.codec import decode, load_codec, load_codec_of
from higgs_pipe.higgs.generation import Spoken, recorded_samples, speak
from higgs_pipe.higgs.lora import add_lora, load_adapter
from higgs_pipe.higgs.loss import named_losses
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.prompts import GeneratedCodes
from higgs_pipe.higgs.v2.native import shape_of
from higgs_pipe.training import samples
from higgs_pipe.training.held_out import held_out_sums, total_of
from higgs_pipe.training.samples import SampleMeasures, Samples, choose_samples, track_audio

SHORT = {"max_seconds": 0.4}  # 10 frames
SETTINGS: dict[str, Any] = {
    "rows_per_step": 2,
    "max_steps": 4,
    "eval_steps": 2,
    "learning_rate": 5e-3,
}
SPOKEN: dict[str, Any] = {"sample_steps": 2, "num_samples": 2, "sampling": SHORT}


def base_of(corpus: PackedCorpus) -> Any:
    return load_base(Pretrained("base_model", str(corpus.base)), torch.float32)


def wav(path: Path) -> Any:
    audio, rate_hz = sf.read(path, dtype="float32")
    assert rate_hz == 24_000
    return audio


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def without_samples(metrics: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of every line that has one."""
    lines = [(line["step"], line.get("loss", line.get("eval_loss"))) for line in metrics]
    return [(step, loss) for step, loss in lines if loss is not None]


@pytest.fixture(scope="module")
def silent(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training without samples."""
    output = tmp_path_factory.mktemp("silent")
    train(corpus, output, **SETTINGS)
    return output


@pytest.mark.parametrize(
    "sampling",
    [{}, {"seed": 1}, {"temperature": 0.0}, {"max_seconds": 0.2}, {"top_p": 0.5}, {"top_k": 2}],
    ids=str,
)
def test_samples_of_base_and_adapter_match_what_speak_generates(
    corpus: PackedCorpus, tmp_path: Path, sampling: Any
) -> None:
    sampling = SHORT | sampling
    (tmp_path / "samples/step-00000099").mkdir(parents=True)  # of an earlier run
    metrics = train(corpus, tmp_path, **SETTINGS | SPOKEN | {"sampling": sampling})
    assert (metrics[-1]["step"], metrics[-1]["kept_step"]) == (4, 4)
    table, base = PackedRows(corpus.eval_rows), base_of(corpus)
    last = len(table) - 1  # of two prompts, one is from the first row and one from the last
    chosen = [recorded_samples(table[row], shape_of(base.config))[0] for row in (0, last)]
    codec, info = load_codec(
        Pretrained("codec", str(corpus.base / "audio_tokenizer")), torch.device("cpu")
    )
    for index, sample in enumerate(chosen):
        recorded = wav(tmp_path / f"samples/recorded/{index:02d}.wav")
        assert np.abs(recorded - decode(codec, sample.codes, info)).max() < 1e-3
    assert not (tmp_path / "samples/step-00000099").exists()
    ids = json.loads((tmp_path / "samples/prompts.json").read_text())
    assert ids == [sample.sample_id for sample in chosen]
    prompts = [sample.prompt for sample in chosen]
    num_recorded = sum(len(sample.codes) for sample in chosen)
    adapted = load_adapter(base_of(corpus), tmp_path / "adapter")
    lines = [line for line in metrics if "sample_stop_rate" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    for model, line in ((base, lines[0]), (adapted, lines[2])):
        spoken = speak(model, codec, info, prompts, Sampling(**sampling))
        folder = tmp_path / f"samples/step-{line['step']:08d}"
        for index, expected in enumerate(spoken):
            found = wav(folder / f"{index:02d}.wav")
            assert np.abs(found - expected.samples).max() < 1e-3
        assert line["sample_stop_rate"] == sum(s.has_stopped for s in spoken) / 2
        assert line["sample_length_ratio"] == sum(len(s.codes) for s in spoken) / num_recorded


def test_every_sampling_setting_reaches_the_samples(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*arguments: Any) -> Any:
        raise Seen(arguments[2].model_dump())

    monkeypatch.setattr(samples, "generate", look)
    given = {"temperature": 0.7, "top_p": 0.8, "top_k": 9, "max_seconds": 0.4, "seed": 5}
    given |= {"ras_win_len": 3, "ras_win_max_num_repeat": 4}
    with pytest.raises(Seen) as seen:
        train(corpus, tmp_path, **SETTINGS | SPOKEN | {"sampling": given, "preflight": False})
    assert seen.value.args == (given,)


def test_samples_do_not_change_the_adapter_by_a_bit(
    corpus: PackedCorpus, tmp_path: Path, silent: Path
) -> None:
    metrics = train(corpus, tmp_path, **SETTINGS | SPOKEN)
    expected = adapter(silent)
    assert adapter(tmp_path).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in adapter(tmp_path).items())
    lines = (silent / "metrics.jsonl").read_text().splitlines()
    assert without_samples(metrics) == without_samples(list(map(json.loads, lines)))
    assert not (silent / "samples").exists()


@pytest.fixture
def speaker(corpus: PackedCorpus, tmp_path: Path) -> tuple[Samples, DualLossModel]:
    lora = TrainConfig().lora
    model = DualLossModel(add_lora(base_of(corpus), lora, seed=0)).train()
    settings, config = TrainConfig(**SPOKEN), model.shape
    table, accelerator = PackedRows(corpus.eval_rows), Accelerator(cpu=True)
    return Samples(table, config, settings, accelerator, tmp_path / "samples"), model


def test_speaking_leaves_model_and_random_state_unchanged(speaker: Any) -> None:
    spoken, model = speaker
    state = torch.get_rng_state()
    forwards = [layer.forward for layer in model.native.model.layers]
    assert spoken.speak(0, model) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert [layer.forward for layer in model.native.model.layers] == forwards
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("too long"), OSError("no space"), UserError("no codec")]
)
def test_an_expected_failure_while_speaking_is_a_warning(
    corpus: PackedCorpus,
    tmp_path: Path,
    silent: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(samples, "generate", fail)
    with caplog.at_level(logging.WARNING, "higgs_pipe"):
        metrics = train(corpus, tmp_path, **SETTINGS | SPOKEN)
    assert caplog.text.count(f"no samples: {type(error).__name__}: {error}") == 3
    assert not any("sample_stop_rate" in line for line in metrics)
    assert all(torch.equal(t, adapter(silent)[key]) for key, t in adapter(tmp_path).items())


def test_a_bug_in_speaking_is_not_hidden(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(samples, "generate", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(corpus, tmp_path, **SETTINGS | SPOKEN)


def test_samples_that_cannot_be_written_still_count(
    speaker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoken, model = speaker

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(samples, "load_codec_of", fail)
    with caplog.at_level(logging.WARNING, "higgs_pipe"):
        measures = spoken.speak(0, model)
    assert measures is not None
    assert "not written: OSError: no space" in caplog.text


def test_a_codec_other_than_that_of_the_codes_is_refused(corpus: PackedCorpus) -> None:
    info = PackedRows(corpus.eval_rows).codec_info
    other = replace(info, fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"codec .*--forcerun"):
        load_codec_of(other, torch.device("cpu"))


def test_prompts_are_spread_over_the_whole_table(corpus: PackedCorpus) -> None:
    table, config = PackedRows(corpus.train_rows), shape_of(base_of(corpus).config)
    rows = [table[i] for i in range(len(table))]
    by_row = [[s.sample_id for s in recorded_samples(row, config)] for row in rows]
    assert len(by_row) == 5
    found = [sample.sample_id for sample in choose_samples(table, config, 3)]
    assert found == [by_row[0][0], by_row[2][0], by_row[4][0]]
    found = [sample.sample_id for sample in choose_samples(table, config, 100)]
    assert found[:5] == [ids[0] for ids in by_row]
    assert sorted(found) == sorted(sample_id for ids in by_row for sample_id in ids)


def generated(*lengths: int, stopped: int) -> list[GeneratedCodes]:
    return [GeneratedCodes(np.zeros((n, 8), np.int16), i < stopped) for i, n in enumerate(lengths)]


def test_sample_measures_match_a_hand_calculation() -> None:
    recorded: Any = [SimpleNamespace(codes=np.zeros((n, 8), np.int16)) for n in (20, 30)]
    measures = SampleMeasures.of(generated(10, 15, stopped=1), recorded)
    assert measures.line() == {"sample_stop_rate": 0.5, "sample_length_ratio": 0.5}
    assert measures.badness("stop_rate") == 0.5
    assert measures.badness("length_ratio") == pytest.approx(np.log(2))
    assert SampleMeasures(0, 2).badness("length_ratio") == pytest.approx(np.log(2))
    assert SampleMeasures(0, 0).badness("length_ratio") == np.inf


FULL = (25, 25)
SCRIPTS = {  # spoken at steps 0, 2, 4, 6
    "stops at step 4 alone": ("stop_rate", [(2, FULL), (0, FULL), (2, FULL), (0, FULL)], 4),
    "equal: the lowest held-out loss": ("stop_rate", [(0, FULL)] * 4, 6),
    "failed counts as worst": ("stop_rate", [(0, FULL), (1, FULL), None, None], 2),
    "all failed: the lowest loss": ("stop_rate", [None] * 4, 6),
    "length": ("length_ratio", [(0, FULL), (0, (10, 90)), (0, (20, 20)), (0, (1, 1))], 4),
}


@pytest.mark.parametrize(("measure", "script", "kept"), SCRIPTS.values(), ids=SCRIPTS)
def test_the_kept_adapter_is_the_best_by_the_chosen_measure(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    measure: str,
    script: Any,
    kept: int,
) -> None:
    calls = iter(script)

    def scripted(_: Any, prompts: Sequence[Any], *__: Any) -> list[GeneratedCodes]:
        call = next(calls)
        if call is None:
            raise OSError("gone")
        return generated(*call[1], stopped=call[0])

    monkeypatch.setattr(samples, "generate", scripted)
    # The two recordings have 22 and 19 frames or so: 25 each is a ratio near 1.
    settings = SETTINGS | SPOKEN | {"max_steps": 6, "eval_steps": 3, "keep_best_by": measure}
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        metrics = train(corpus, tmp_path, **settings)
    assert metrics[-1]["kept_step"] == kept
    marked = re.findall(r"step +(\d+)/6 .*best so far", caplog.text)
    # Samples that failed have no line to mark.
    assert marked[-1:] == ([str(kept)] if any(script) else [])
    losses = {line["step"]: line["eval_loss"] for line in metrics if "eval_loss" in line}
    assert sorted(losses) == [0, 2, 3, 4, 6]
    assert loss_of_adapter(corpus, tmp_path / "adapter") == pytest.approx(losses[kept], rel=1e-5)


def loss_of_adapter(corpus: PackedCorpus, adapter_dir: Path) -> float:
    model = DualLossModel(load_adapter(base_of(corpus), adapter_dir))
    sums = held_out_sums(model, PackedRows(corpus.eval_rows), Accelerator(cpu=True))
    return named_losses(total_of(sums))["loss"]


def test_keeping_the_best_by_a_sample_measure_needs_samples() -> None:
    with pytest.raises(ValueError, match="sample_steps"):
        TrainConfig(keep_best_by="stop_rate")


def test_a_training_that_stops_early_speaks_at_its_last_step(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    harmful = {"learning_rate": 0.1, "warmup_fraction": 0.5, "num_epochs": 8, "eval_steps": 1}
    settings = harmful | {"rows_per_step": 3, "early_stopping_patience": 2}
    metrics = train(corpus, tmp_path, **settings | SPOKEN | {"sample_steps": 100})
    last = metrics[-1]["step"]
    assert last < 16
    spoken = [line["step"] for line in metrics if "sample_stop_rate" in line]
    assert spoken == [0, last]


def test_each_process_speaks_its_part_and_a_new_run_starts_in_an_empty_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second of two processes speaks b of a, b and c, which are 1, 2 and 3 frames long."""

    def codes(name: str) -> GeneratedCodes:
        return GeneratedCodes(np.zeros((" abc".index(name), 8), np.int16), has_stopped=True)

    mine: list[Any] = []
    rendered: list[Any] = []

    def generate(_: Any, prompts: Any, *__: Any) -> list[GeneratedCodes]:
        mine.extend(prompts)
        return [codes(name) for name in prompts]

    def render(_: Any, folder: Path, recordings: Any) -> list[None]:
        rendered.append((folder.name, [len(codes) for codes in recordings]))
        return [None] * len(recordings)

    def gathered(found: Any) -> Any:
        return [("c", codes("c")), *found, ("a", codes("a"))]

    chosen = [SimpleNamespace(sample_id=n, prompt=n, codes=np.zeros((2, 8))) for n in "abc"]
    monkeypatch.setattr(samples, "choose_samples", lambda *_: chosen)
    monkeypatch.setattr(samples, "generate", generate)
    monkeypatch.setattr(samples, "gather_object", gathered)
    monkeypatch.setattr(Samples, "_render", render)
    process: Any = SimpleNamespace(process_index=1, num_processes=2, is_main_process=True)
    process.device, process.trackers, process.unwrap_model = torch.device("cpu"), [], lambda m: m
    rows: Any = SimpleNamespace(codec_info=SimpleNamespace(frame_rate_hz=25))
    config: Any = None
    left_behind = tmp_path / "samples/step-00000009"
    left_behind.mkdir(parents=True)
    spoken = Samples(rows, config, TrainConfig(**SPOKEN), process, tmp_path / "samples")
    assert spoken.speak(0, None) == SampleMeasures(stop_rate=1, length_ratio=1)
    assert mine == ["b"]
    assert rendered == [("recorded", [2, 2, 2]), ("step-00000000", [1, 2, 3])]
    assert not left_behind.exists()


def test_tensorboard_plays_the_samples(corpus: PackedCorpus, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(corpus, tmp_path, **SETTINGS | SPOKEN, tracker="tensorboard")
    log = events.EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    tags = log.Tags()["audio"]
    assert len(tags) == 2
    assert all(tag.startswith("samples/clip-") for tag in tags)
    assert [clip.step for clip in log.Audio(tags[0])] == [0, 2, 4]
    assert log.Audio(tags[0])[0].sample_rate == 24_000
    names = json.loads((tmp_path / "samples/prompts.json").read_text())
    for index, name in enumerate(names):
        *_, last = log.Audio(f"samples/{name}")
        heard, _ = sf.read(io.BytesIO(last.encoded_audio_string))
        written = wav(tmp_path / f"samples/step-00000004/{index:02d}.wav")
        assert np.abs(heard - written).max() < 2e-4  # two steps of 16 bits are 6e-5


def test_wandb_gets_the_samples_as_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = ModuleType("wandb")
    wandb.Audio = lambda samples, sample_rate: (len(samples), sample_rate)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    logged: list[Any] = []
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: logged.append((step, values)))
    sound = Spoken(np.zeros(960, np.float32), 24_000, np.zeros((1, 8), np.int16), True)
    track_audio(SimpleNamespace(trackers=[tracker]), 7, {"clip-03": sound})
    assert logged == [(7, {"samples/clip-03": (960, 24_000)})]
