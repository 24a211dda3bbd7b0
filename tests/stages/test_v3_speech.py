"""Higgs TTS 3 speaks in every stage: samples of a training, evaluation, and as packing wrote it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from trainings import PackedCorpus, evaluate_in, train

from higgs_pipe.config.settings import PackConfig, Sampling
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.planner import SamplePlanner
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.generation import recorded_samples, speak
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.speech_prompts import SpeechPrompt

SHORT: dict[str, Any] = {"temperature": 0, "max_seconds": 0.6}


@pytest.fixture(scope="module")
def trained(v3_corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("v3-spoken")
    settings: dict[str, Any] = {"rows_per_step": 2, "max_steps": 2, "learning_rate": 1e-2}
    train(v3_corpus, output, **settings, sample_steps=2, num_samples=2, sampling=SHORT)
    return output


@pytest.fixture(scope="module")
def speaker(v3_corpus: PackedCorpus, trained: Path, tiny_base: Path) -> Speaker:
    codec = str(tiny_base / "audio_tokenizer")
    return Speaker.load(str(v3_corpus.base), trained / "adapter", codec, device="cpu")


def test_training_samples_match_what_the_adapter_speaks(
    v3_corpus: PackedCorpus, trained: Path, speaker: Speaker
) -> None:
    table = PackedRows(v3_corpus.eval_rows)
    sample = recorded_samples(table[0], speaker.renderer.shape)[0]
    [spoken] = speak(
        speaker.model, speaker.codec, speaker.codec_info, [sample.prompt], Sampling(**SHORT)
    )
    for step in (0, 2):
        assert len(list((trained / f"samples/step-{step:08d}").glob("*.wav"))) == 2
    found, _ = sf.read(trained / "samples/step-00000002/00.wav", dtype="float32")
    assert len(found) == len(spoken.samples) == 15 * 960
    assert np.abs(found - spoken.samples).max() < 1e-3


def test_evaluation_speaks_held_out_prompts_with_base_and_adapter(
    v3_corpus: PackedCorpus, trained: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"num_prompts": 2, "max_seconds": 3, "temperatures": [1.0]}
    evaluate_in(tmp_path, v3_corpus, trained / "adapter", **settings)
    takes = pq.read_table(tmp_path / "eval/generation.parquet").to_pylist()
    assert {take["voice"] for take in takes} >= {"base", "adapter"}
    assert list((tmp_path / "samples").glob("*adapter*.wav"))


def test_prompts_of_speak_match_the_packed_rows(v3_corpus: PackedCorpus, speaker: Speaker) -> None:
    table = PackedRows(v3_corpus.train_rows)
    packed = {
        sample.sample_id: sample.prompt
        for i in range(len(table))
        for sample in recorded_samples(table[i], speaker.renderer.shape)
    }
    clips, kinds = Clips.read(v3_corpus.clips), set()
    paths = {row["clip_id"]: row for row in pq.read_table(v3_corpus.clips).to_pylist()}
    rules = speaker.renderer.rules
    for plan in SamplePlanner(clips, "train", PackConfig(), rules).plans():
        names = [clips.ids[clip].as_py() for clip in plan.clips]
        target, *references = (paths[name] for name in names)
        voices = tuple(speaker.voice(row["audio_path"], row["text"]) for row in references)
        prompt = speaker.prompt(SpeechPrompt(target["text"], voices))
        assert np.array_equal(prompt.input_ids, packed[names[0]].input_ids)
        assert np.array_equal(prompt.audio_input_ids, packed[names[0]].audio_input_ids)
        kinds.add(len(voices))
    assert kinds == {0, 1}
