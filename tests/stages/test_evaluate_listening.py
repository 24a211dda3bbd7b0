"""The speech models of an evaluation, through the stage: each setting gives its measures."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from speech_checkpoints import dnsmos_file, write_resemblyzer, write_tiny_models
from trainings import PackedCorpus, evaluate_in

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.listening.verdict import Verdict

MEASURES = {
    "word_error_rate",
    "character_error_rate",
    "speaker_similarity",
    "speaker_similarity_to_reference",
    "speaker_similarity_to_others",
    "quality_shortfall",
}


@pytest.fixture(scope="module")
def adapter(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of no step."""
    directory = tmp_path_factory.mktemp("adapter")
    pretrained = Pretrained("base_model", str(corpus.base))
    add_lora(load_base(pretrained, torch.float32), LoraSettings(), seed=0).save_pretrained(
        directory
    )
    PinnedModel.of(pretrained).write(directory / BASE_FILE)
    return directory


def evaluated(
    corpus: PackedCorpus, adapter: Path, output: Path, **models: str
) -> tuple[list[dict[str, Any]], set[str]]:
    """Returns the rows of generation.parquet, and the measures that were taken."""
    settings: dict[str, Any] = {"num_prompts": 2, "max_seconds": 1.8, "speech_models": models}
    folder = evaluate_in(output, corpus, adapter, **settings)
    measures = Verdict.read(folder / "verdict.json").measures
    taken = {measure.name for measure in measures if measure.outcome != "not measured"}
    return pq.read_table(folder / "generation.parquet").to_pylist(), taken


def test_each_speech_model_adds_its_measures(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    models = {
        "asr": write_tiny_models(tmp_path / "tiny")["asr"],
        "speaker": str(write_resemblyzer(tmp_path / "speaker")),
        "dnsmos": str(dnsmos_file()),
    }
    _, without = evaluated(corpus, adapter, tmp_path / "without")
    rows, taken = evaluated(corpus, adapter, tmp_path / "with", **models)
    assert taken - without == MEASURES
    recordings = [row for row in rows if row["voice"] == "recording"]
    assert {row["num_words"] for row in recordings} == {7}  # Tone number 3, held for a while
    assert all(row["num_word_errors"] > 0 for row in rows)
    assert [row["similarity_to_recording"] for row in recordings] == pytest.approx([1] * 2)
    assert all(1 < row["dnsmos"] < 4 for row in recordings)


def test_a_missing_speech_model_stops_before_anything_is_computed(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"eval\.speech_models\.dnsmos .*nowhere"):
        evaluated(corpus, adapter, tmp_path, dnsmos=str(tmp_path / "nowhere"))
    assert not (tmp_path / "eval").exists()
