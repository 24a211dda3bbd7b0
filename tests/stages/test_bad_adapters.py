"""Deliberately bad adapters never get "better", and the measure that should get worse does.

Everything through the real stages, on the miniature. Held out are ten tones with a text each; the
good adapter has learned them by heart, and most of the bad ones start from a base that has.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import write_stage_config
from trainings import PackedCorpus, evaluate_in

import higgs_pipe.train
from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.lora import add_lora, load_adapter
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.listening.verdict import Verdict

pytestmark = pytest.mark.slow

TEXTS = (
    "Good morning!",
    "Where is my left shoe?",
    "Rain again.",
    "Seven apples and a pear",
    "Stop that, please.",
    "The kettle sings on Sunday.",
    "Blue paint dries slowly.",
    "How far is the moon?",
    "Nobody told the gardener.",
    "Yes.",
)
KNOWN = [f"clip-{i:02d}" for i in range(len(TEXTS))]  # 0.5 to 1.7 s
PACKING = {"max_tokens": 512, "reference_dropout": 1.0}
BY_HEART: dict[str, Any] = {
    "lora": {
        "r": 64,
        "alpha": 128,
        "dropout": 0.0,
        "train_in_full": ["audio_head", "audio_embeddings"],
    },
    "learning_rate": 3e-3,
    "num_epochs": 90,
}
BRIEFLY: dict[str, Any] = {"learning_rate": 2e-3, "num_epochs": 40}


def packed(
    corpus: PackedCorpus, directory: Path, base: Path, texts: Sequence[str] = TEXTS
) -> PackedCorpus:
    """Hold out the known clips with these texts; the four others are for training."""
    changes: dict[str, dict[str, Any]] = {
        clip_id: {"split": "train", "scene": None}
        for clip_id in pq.read_table(corpus.clips)["clip_id"].to_pylist()
    }
    for clip_id, text in zip(KNOWN, texts, strict=True):
        changes[clip_id] |= {"split": "eval", "text": text}
    changed = replace(corpus.changed(directory, changes), base=base)
    changed.pack(directory / "packed", **PACKING)
    return changed


def train(base: Path, rows: Path, output: Path, settings: dict[str, Any]) -> Path:
    """Returns the adapter."""
    config = write_stage_config(
        output / "train.json",
        base_model=str(base),
        train={
            "device": "cpu",
            "tracker": "none",
            "rows_per_step": 8,
            "eval_steps": 1000,
            **settings,
        },
    )
    higgs_pipe.train.run(config, rows, rows, output)
    return output / "adapter"


def verdict_of(corpus: PackedCorpus, adapter: Path, output: Path) -> tuple[Verdict, dict[str, str]]:
    """Returns the verdict, and the outcome of each measure."""
    spoken: dict[str, Any] = {"temperatures": [0.0], "max_seconds": 2.0, "num_prompts": 10}
    verdict = Verdict.read(evaluate_in(output, corpus, adapter, **spoken) / "verdict.json")
    return verdict, {measure.name: measure.outcome for measure in verdict.measures}


@pytest.fixture(scope="module")
def fresh(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    return packed(corpus, tmp_path_factory.mktemp("fresh"), corpus.base)


@pytest.fixture(scope="module")
def good(fresh: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(fresh.base, fresh.eval_rows, tmp_path_factory.mktemp("good"), BY_HEART)


@pytest.fixture(scope="module")
def learned(
    corpus: PackedCorpus, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> PackedCorpus:
    """The corpus, with a base that knows the held-out clips by heart."""
    directory = tmp_path_factory.mktemp("learned")
    shutil.copytree(corpus.base, directory / "base")
    model = load_base(Pretrained("base_model", str(corpus.base)), torch.float32)
    load_adapter(model, good).merge_and_unload().save_pretrained(directory / "base")
    return packed(corpus, directory / "corpus", directory / "base")


def test_a_good_adapter_is_better(fresh: PackedCorpus, good: Path, tmp_path: Path) -> None:
    verdict, outcomes = verdict_of(fresh, good, tmp_path)
    assert verdict.overall == "better"
    assert outcomes["audio_loss"] == outcomes["stop_loss"] == outcomes["text_use"] == "better"
    verdict.require("better")


def test_an_untrained_adapter_is_no_evidence(learned: PackedCorpus, tmp_path: Path) -> None:
    pretrained = Pretrained("base_model", str(learned.base))
    base = load_base(pretrained, torch.float32)
    add_lora(base, LoraSettings(), seed=0).save_pretrained(tmp_path / "adapter")
    PinnedModel.of(pretrained).write(tmp_path / "adapter" / BASE_FILE)
    verdict, outcomes = verdict_of(learned, tmp_path / "adapter", tmp_path)
    assert verdict.overall == "no evidence"
    assert set(outcomes.values()) == {"no evidence", "not measured"}


def test_training_on_shuffled_transcripts_makes_text_use_worse(
    corpus: PackedCorpus, learned: PackedCorpus, tmp_path: Path
) -> None:
    shuffled = packed(corpus, tmp_path / "shuffled", learned.base, TEXTS[::-1])
    adapter = train(learned.base, shuffled.eval_rows, tmp_path / "train", BRIEFLY)
    verdict, outcomes = verdict_of(learned, adapter, tmp_path)
    assert verdict.overall == "worse"
    assert outcomes["text_use"] == outcomes["audio_loss"] == "worse"


def test_shuffled_transcripts_do_not_make_a_fresh_base_better(
    corpus: PackedCorpus, fresh: PackedCorpus, tmp_path: Path
) -> None:
    """Its audio loss is better by far: it has learned what the clips are like."""
    shuffled = packed(corpus, tmp_path / "shuffled", fresh.base, TEXTS[::-1])
    adapter = train(fresh.base, shuffled.eval_rows, tmp_path / "train", BY_HEART)
    verdict, outcomes = verdict_of(fresh, adapter, tmp_path)
    assert outcomes["audio_loss"] == "better"
    assert verdict.overall == "no evidence"
    assert any("follows its text" in sentence for sentence in verdict.sentences)


def test_an_adapter_that_never_stops_is_worse_at_stopping(
    learned: PackedCorpus, tmp_path: Path
) -> None:
    """Trained on clips that begin like these but continue, so its audio loss is not worse."""
    longer = going_on(learned, tmp_path / "longer", num_frames=60)  # 2.4 s
    adapter = train(learned.base, longer.eval_rows, tmp_path / "train", BY_HEART)
    verdict, outcomes = verdict_of(learned, adapter, tmp_path)
    assert verdict.overall == "worse"
    assert outcomes["audio_loss"] != "worse"
    for measure in ("stop_loss", "stop_rate", "runaway_rate", "duration_error"):
        assert outcomes[measure] == "worse"


def test_training_on_another_speaker_makes_the_audio_loss_worse(
    learned: PackedCorpus, tmp_path: Path
) -> None:
    adapter = train(learned.base, learned.train_rows, tmp_path / "train", BRIEFLY)
    verdict, outcomes = verdict_of(learned, adapter, tmp_path)
    assert verdict.overall == "worse"
    assert outcomes["audio_loss"] == "worse"


def going_on(corpus: PackedCorpus, directory: Path, num_frames: int) -> PackedCorpus:
    """Repeat each clip's codes up to ``num_frames``, and pack again."""
    longer = corpus.changed(directory, {})
    longer.codes_dir.unlink()
    longer.codes_dir.mkdir()
    for shard in corpus.codes_dir.iterdir():
        table = pq.read_table(shard)
        codes = [np.resize(codes, (num_frames, 8)).tolist() for codes in table["codes"].to_pylist()]
        columns = {"codes": codes, "num_frames": [num_frames] * len(codes)}
        for name, values in columns.items():
            field = table.schema.field(name)
            number = table.schema.get_field_index(name)
            table = table.set_column(number, field, pa.array(values, field.type))
        pq.write_table(table, longer.codes_dir / shard.name)
    longer.pack(directory / "packed", **PACKING)
    return longer
