"""The held-out loss matches plain loops for any batch size, packing and number of processes."""

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from helpers import edit_result
from reference import plain_frame_losses, row_losses
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus, evaluate_in, launch

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import ClipId, Conversation, Turn
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.generation import recorded_samples
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.v2.native import shape_of

CONVERSATION = Conversation(
    (
        Turn("user", ("Say the first.",)),
        Turn("assistant", (ClipId("clip-00"),), is_target=True),
        Turn("user", ("And now the other one.",)),
        Turn("assistant", (ClipId("clip-09"),), is_target=True),
    )
)
KEYS = {
    "eval_loss",
    "eval_text_loss",
    "eval_audio_loss",
    "eval_stop_loss",
    "eval_text_accuracy",
    "num_clips",
    "num_text_labels",
    "num_audio_labels",
    *(f"eval_audio_loss_codebook_{k}" for k in range(8)),
    *(f"eval_audio_accuracy_codebook_{k}" for k in range(8)),
}


@pytest.fixture(scope="module")
def adapter(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the base: its B is random."""
    directory = tmp_path_factory.mktemp("adapter")
    model = add_lora(
        load_base(Pretrained("base_model", str(corpus.base)), torch.float32), LoraSettings(), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    PinnedModel.of(Pretrained("base_model", str(corpus.base))).write(directory / BASE_FILE)
    return directory


def run(
    corpus: PackedCorpus,
    adapter: Path,
    output: Path,
    **options: Any,
) -> tuple[dict, list[dict]]:
    """Evaluate; returns metrics.json and the rows of clips.parquet. Nothing is spoken.

    The options are those of :func:`evaluate_in`.
    """
    options = {"dtype": "float64", "num_prompts": 0, **options}
    folder = evaluate_in(output, corpus, adapter, **options)
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, pq.read_table(folder / "clips.parquet").to_pylist()


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_metrics_are_plain_sums_divided_once(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, _ = run(corpus, adapter, tmp_path)
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float64)
    rows = PackedRows(corpus.eval_rows)
    found = [row_losses(base, rows[i]) for i in range(len(rows))]
    text = sum(f[0] for f in found).item() / sum(f[1] for f in found)
    codebooks = [sum(f[2][k] for f in found).item() / sum(f[3][k] for f in found) for k in range(8)]
    of_base = metrics["base"]
    assert of_base.keys() == metrics["adapter"].keys() == KEYS
    assert of_base["eval_text_loss"] == pytest.approx(text, rel=1e-6)
    for k in range(8):
        assert of_base[f"eval_audio_loss_codebook_{k}"] == pytest.approx(codebooks[k], rel=1e-6)
    assert of_base["eval_audio_loss"] == pytest.approx(sum(codebooks) / 8, rel=1e-6)
    assert of_base["eval_loss"] == pytest.approx(text + sum(codebooks) / 8, rel=1e-6)
    assert of_base["num_text_labels"] == sum(f[1] for f in found) == 9
    assert of_base["num_audio_labels"] == sum(sum(f[3]) for f in found)
    assert of_base["num_clips"] == 3


def test_adapter_and_base_have_different_losses(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, clips = run(corpus, adapter, tmp_path)
    assert metrics["adapter"]["eval_loss"] != metrics["base"]["eval_loss"]
    assert [clip["clip_id"] for clip in clips] == ["clip-03", "clip-06", "clip-09"]
    assert all(clip["adapter_loss"] != clip["base_loss"] for clip in clips)


def test_losses_per_clip_add_up_to_the_total(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, clips = run(corpus, adapter, tmp_path)
    for model in ("adapter", "base"):
        total = sum(clip[f"{model}_text_loss"] * clip["num_text_labels"] for clip in clips)
        labels = sum(clip["num_text_labels"] for clip in clips)
        assert metrics[model]["eval_text_loss"] == pytest.approx(total / labels)


def test_batch_size_and_packing_change_no_metric(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    expected, clips = run(corpus, adapter, tmp_path / "a")
    batched, _ = run(corpus, adapter, tmp_path / "b", rows_per_batch=8)
    corpus.pack(tmp_path / "packed", max_tokens=1024)
    rows = tmp_path / "packed/eval.parquet"
    repacked, same_clips = run(corpus, adapter, tmp_path / "c", eval_rows=rows)
    assert len(PackedRows(rows)) < len(PackedRows(corpus.eval_rows))
    for other in (batched, repacked):
        for model in ("adapter", "base"):
            assert other[model] == pytest.approx(expected[model], rel=1e-9)
    assert [c["adapter_loss"] for c in same_clips] == pytest.approx(
        [c["adapter_loss"] for c in clips], rel=1e-9
    )


@pytest.mark.slow
@pytest.mark.usefixtures("processes_as_forks")
def test_two_processes_give_the_metrics_of_one(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    expected, clips = run(corpus, adapter, tmp_path / "one")
    two = tmp_path / "two"
    two.mkdir()
    module = ["-m", "higgs_pipe.evaluate", "--config", str(tmp_path / "one/eval.json")]
    inputs = ["--clips", str(corpus.clips), "--eval-rows", str(corpus.eval_rows)]
    inputs += ["--adapter-dir", str(adapter)]
    outputs = ["--eval-dir", str(two), "--samples-dir", str(two / "samples")]
    finished = launch(2, *module, *inputs, *outputs)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((two / "metrics.json").read_text())
    for model in ("adapter", "base"):
        assert found[model] == pytest.approx(expected[model], rel=1e-9)
    assert len(pq.read_table(two / "clips.parquet")) == len(clips)


def test_a_directory_without_an_adapter_is_a_user_error(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no adapter for this base_model"):
        run(corpus, tmp_path / "nothing", tmp_path / "out")


def test_an_adapter_trained_on_other_weights_is_refused(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(adapter, tmp_path / "other")
    edit_result(other / BASE_FILE, fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"other .* 000000000000"):
        run(corpus, other, tmp_path / "out")


def test_a_clip_has_its_speaker_language_and_task(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    _, clips = run(corpus, adapter, tmp_path)
    assert [clip["speaker"] for clip in clips] == ["high", "low", "high"]
    assert [clip["language"] for clip in clips] == [None, None, None]
    assert {clip["task"] for clip in clips} <= {"speech", "cloning"}
    rows = PackedRows(corpus.eval_rows)
    config = shape_of(load_base(Pretrained("base_model", str(corpus.base)), torch.float32).config)
    for row in (rows[i] for i in range(len(rows))):
        for sample in recorded_samples(row, config):
            [clip] = [clip for clip in clips if clip["clip_id"] == sample.sample_id]
            has_reference = len(sample.prompt.audio_input_ids) > 0
            assert clip["task"] == ("cloning" if has_reference else "speech")


Frames = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def plain_frames(corpus: PackedCorpus) -> Frames:
    """Per clip of the base: losses (T, K) of its codes, and probabilities of EOS (T + 1,)."""
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float64)
    rows = PackedRows(corpus.eval_rows)
    return {
        sample_id: frames
        for index in range(len(rows))
        for sample_id, frames in plain_frame_losses(base, rows[index]).items()
    }


def test_losses_of_start_middle_and_end_match_plain_loops(
    corpus: PackedCorpus, adapter: Path, plain_frames: Frames, tmp_path: Path
) -> None:
    run(corpus, adapter, tmp_path)
    groups = read_json(tmp_path / "eval/breakdown.json")["groups"]
    parts = {group["name"]: group for group in groups if group["kind"] == "position"}
    assert list(parts) == ["start", "middle", "end"]
    for number, name in enumerate(parts):
        thirds = [
            losses[[3 * t // len(losses) == number for t in range(len(losses))]]
            for losses, _ in plain_frames.values()
        ]
        expected = np.concatenate(thirds).mean(axis=0).mean()
        assert parts[name]["base"] == pytest.approx(expected, rel=1e-6)


def test_stop_measures_are_the_plain_eos_probabilities(
    corpus: PackedCorpus, adapter: Path, plain_frames: Frames, tmp_path: Path
) -> None:
    _, clips = run(corpus, adapter, tmp_path)
    stopping = read_json(tmp_path / "eval/breakdown.json")["base_stopping"]
    at_end = {clip_id: stops[-1] for clip_id, (_, stops) in plain_frames.items()}
    before = {clip_id: 1 - np.prod(1 - stops[:-1]) for clip_id, (_, stops) in plain_frames.items()}
    for clip in clips:
        assert clip["base_stop_at_end"] == pytest.approx(at_end[clip["clip_id"]], rel=1e-6)
        assert clip["base_stop_before_end"] == pytest.approx(before[clip["clip_id"]], rel=1e-6)
    assert stopping["at_end"] == pytest.approx(np.mean(list(at_end.values())), rel=1e-6)
    assert stopping["before_end"] == pytest.approx(np.mean(list(before.values())), rel=1e-6)


def test_groups_and_worst_clips_agree_with_the_clips_table(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    metrics, clips = run(corpus, adapter, tmp_path)
    breakdown = read_json(tmp_path / "eval/breakdown.json")
    groups = {(group["kind"], group["name"]): group for group in breakdown["groups"]}
    [low] = [clip for clip in clips if clip["speaker"] == "low"]
    assert groups["speaker", "low"]["adapter"] == pytest.approx(low["adapter_audio_loss"])
    assert groups["speaker", "high"]["num_clips"] == 2
    assert groups["length", "below 2 s"]["num_clips"] == 3
    everything = groups["length", "below 2 s"]
    assert everything["base"] == pytest.approx(metrics["base"]["eval_audio_loss"])
    difference = metrics["adapter"]["eval_audio_loss"] - metrics["base"]["eval_audio_loss"]
    assert everything["difference"]["value"] == pytest.approx(difference)
    worst = [clip["clip_id"] for clip in breakdown["worst_clips"]]
    assert worst == [
        clip["clip_id"] for clip in sorted(clips, key=lambda clip: -clip["adapter_audio_loss"])
    ]


@pytest.fixture(scope="module")
def spoken(corpus: PackedCorpus, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that spoke every prompt, at two temperatures."""
    folder = tmp_path_factory.mktemp("spoken")
    run(corpus, adapter, folder, num_prompts=5, max_seconds=2.0, temperatures=[1.0, 0.5])
    return folder


def test_every_prompt_has_a_row_and_a_wav_per_voice(corpus: PackedCorpus, spoken: Path) -> None:
    rows = pq.read_table(spoken / "eval/generation.parquet").to_pylist()
    voices = [
        *((voice, None) for voice in ("recording", "codec")),
        *((voice, t) for t in (1.0, 0.5) for voice in ("base", "adapter")),
    ]
    by_clip: dict[str, list[Any]] = {row["clip_id"]: [] for row in rows}
    for row in rows:
        by_clip[row["clip_id"]].append((row["voice"], row["temperature"]))
    assert set(by_clip) == {"clip-03", "clip-06", "clip-09"}
    assert all(sorted(found, key=str) == sorted(voices, key=str) for found in by_clip.values())
    for row in rows:
        samples, rate = sf.read(spoken / "samples" / row["sample"])
        assert rate == 24_000
        assert len(samples) / rate == pytest.approx(row["duration_seconds"], abs=1e-6)
    recorded = {row["clip_id"]: row for row in rows if row["voice"] == "recording"}
    assert recorded["clip-06"]["duration_seconds"] == pytest.approx(0.5 + 0.13 * 6, abs=1e-3)
    assert recorded["clip-06"]["text"] == "Tone number 6, held for a while"


def test_the_verdict_uses_the_takes_at_the_first_temperature(spoken: Path) -> None:
    at_1, at_half = read_json(spoken / "eval/generation.json")["differences"]
    assert (at_1["temperature"], at_half["temperature"]) == (1.0, 0.5)
    judged = {
        m["name"]: m["difference"] for m in read_json(spoken / "eval/verdict.json")["measures"]
    }
    measures = ("code_distance", "duration_error", "silence_error")
    assert [judged[name] for name in measures] == [at_1["measures"][name] for name in measures]
    assert judged["code_distance"] != at_half["measures"]["code_distance"]


def test_base_and_adapter_have_different_takes(spoken: Path) -> None:
    base, adapter = (spoken / f"samples/01-{voice}-t1.wav" for voice in ("base", "adapter"))
    assert base.read_bytes() != adapter.read_bytes()


def test_unmeasured_values_are_null(spoken: Path) -> None:
    generation = read_json(spoken / "eval/generation.json")
    assert generation["speech_models"] == {"asr": None, "speaker": None, "dnsmos": None}
    for voice in generation["voices"]:
        for name in ("word_error_rate", "speaker_similarity", "dnsmos"):
            assert voice["measures"][name] is None
    measures = read_json(spoken / "eval/verdict.json")["measures"]
    outcomes = {measure["name"]: measure["outcome"] for measure in measures}
    assert outcomes["word_error_rate"] == "not measured"
    assert outcomes["stop_rate"] == "no evidence"  # three clips


def test_a_clip_longer_than_the_cap_is_not_spoken(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    run(corpus, adapter, tmp_path, num_prompts=5, max_seconds=1.2)
    rows = pq.read_table(tmp_path / "eval/generation.parquet").to_pylist()
    assert {row["clip_id"] for row in rows} == {"clip-03"}  # 0.89 s; the others 1.28 s and 1.67 s


def test_dialogues_and_conversations_are_spoken_as_packed(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    """The turns 6 and 3 of a dialogue, and clip 9, whose conversation asks for clip 0 first."""
    changes: dict[str, dict[str, Any]] = {
        "clip-06": {"dialogue_id": "talk", "turn": 0},
        "clip-03": {"dialogue_id": "talk", "turn": 1},
        "clip-09": {"conversation": CONVERSATION.to_json()},
        "clip-00": {"split": "reference"},
    }
    changed = corpus.changed(tmp_path / "corpus", changes)
    tasks = {"speech": 0.001, "cloning": 0, "dialogue": 1000, "dialogue_cloning": 0}
    changed.pack(tmp_path / "corpus" / "packed", max_tokens=512, tasks=tasks)
    run(changed, adapter, tmp_path, num_prompts=5, max_seconds=4.0)
    rows = pq.read_table(tmp_path / "eval/generation.parquet").to_pylist()
    recorded = {row["task"]: row for row in rows if row["voice"] == "recording"}
    assert set(recorded) == {"dialogue", "conversation"}
    dialogue, conversation = recorded["dialogue"], recorded["conversation"]
    assert dialogue["text"] == (
        "[SPEAKER0] Tone number 6, held for a while\n[SPEAKER1] Tone number 3, held for a while"
    )
    assert dialogue["speaker"] == "low, high"
    first, second = 0.5 + 0.13 * 6, 0.5 + 0.13 * 3
    whole_frames = np.ceil(first * 25) / 25  # as its codes
    assert dialogue["duration_seconds"] == pytest.approx(whole_frames + second, abs=1e-3)
    assert conversation["text"] == "Say the first."
    assert conversation["duration_seconds"] == pytest.approx(0.5, abs=1e-3)


def test_prompts_too_long_to_speak_are_counted(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    run(corpus, adapter, tmp_path, num_prompts=5, max_seconds=1.2)
    generation = read_json(tmp_path / "eval/generation.json")
    assert (generation["num_prompts"], generation["num_too_long"]) == (1, 2)


def test_another_seed_gives_other_takes_of_the_same_prompts(
    corpus: PackedCorpus, adapter: Path, spoken: Path, tmp_path: Path
) -> None:
    settings: Any = {"num_prompts": 5, "max_seconds": 2.0, "temperatures": [1.0, 0.5]}
    run(corpus, adapter, tmp_path, seed=1, **settings)
    name = "01-base-t1.wav"
    assert (tmp_path / "samples" / name).read_bytes() != (spoken / "samples" / name).read_bytes()
    name = "01-recording.wav"
    assert (tmp_path / "samples" / name).read_bytes() == (spoken / "samples" / name).read_bytes()


def test_two_evaluations_give_the_same_bytes(
    corpus: PackedCorpus, adapter: Path, spoken: Path, tmp_path: Path
) -> None:
    settings: Any = {"num_prompts": 5, "max_seconds": 2.0, "temperatures": [1.0, 0.5]}
    run(corpus, adapter, tmp_path, **settings)
    names = sorted(path.relative_to(spoken) for path in spoken.rglob("*") if path.is_file())
    assert len(names) > 20
    for name in names:
        assert (tmp_path / name).read_bytes() == (spoken / name).read_bytes(), name


def test_the_earlier_adapter_is_measured_without_changing_the_others(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    """It has the numbers of its own evaluation and does not change those of the others."""
    earlier = Path(shutil.copytree(adapter, tmp_path / "earlier"))
    path = earlier / "adapter_model.safetensors"
    save_file({name: tensor * 0.5 for name, tensor in load_file(path).items()}, path)
    alone, _ = run(corpus, earlier, tmp_path / "alone")
    before, _ = run(corpus, adapter, tmp_path / "before")
    both, _ = run(corpus, adapter, tmp_path / "both", ancestor=earlier)
    assert before.keys() == {"adapter", "base"}
    assert {name: both[name] for name in before} == before
    assert both["ancestor"] == alone["adapter"] != both["adapter"]


def test_an_earlier_adapter_of_another_shape_is_refused(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    earlier = Path(shutil.copytree(adapter, tmp_path / "earlier"))
    path = earlier / "adapter_model.safetensors"
    save_file({name: tensor[:, :-1].clone() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"earlier has other tensors"):
        run(corpus, adapter, tmp_path / "both", ancestor=earlier)


@pytest.mark.slow
# Dynamo instantiates the autograd functions that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_layers_give_the_same_losses_of_adapter_and_base(
    corpus: PackedCorpus,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, _ = run(corpus, adapter, tmp_path / "plain")
    with_backend = partial(torch.compile, backend="eager")  # traces all, compiles nothing
    monkeypatch.setattr(torch, "compile", with_backend)
    torch._dynamo.reset()
    logging.getLogger("higgs_pipe").propagate = True
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        found, _ = run(corpus, adapter, tmp_path / "compiled", compile=True)
    assert "compiled the layers in" in caplog.text
    for model in ("adapter", "base"):
        assert found[model] == pytest.approx(expected[model], rel=1e-9)
