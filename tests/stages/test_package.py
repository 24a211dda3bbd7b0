"""The package: complete, proved in a fresh process, and usable without this project."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import torch
import yaml
from helpers import ROOT, PackedCorpus, tone, write_stage_config
from safetensors.torch import load_file, save_file

from higgs_pipe import evaluate, package
from higgs_pipe import train as train_stage
from higgs_pipe.config.stages import PackageStage, PackStage, load_stage
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.speech_prompts import SpeechPrompt
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.training.results import EvalMetrics


@pytest.fixture(scope="module")
def experiment(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results directory after train and eval."""
    results = tmp_path_factory.mktemp("results")
    base = {"base_model": str(corpus.base)}
    codec = {"codec": str(corpus.base / "audio_tokenizer")}
    config = results / "config"
    write_stage_config(config / "validate.json", manifest="manifest.jsonl")
    write_stage_config(config / "tokenize.json", **codec)
    write_stage_config(config / "pack.json", **base)
    write_stage_config(config / "eval.json", **base, eval={"device": "cpu", "num_prompts": 0})
    write_stage_config(config / "package.json", **base, **codec, package={"license": "cc0-1.0"})
    train = write_stage_config(
        config / "train.json", **base, train={"device": "cpu", "learning_rate": 5e-3}
    )
    directory = results / "experiments/default"
    train_stage.run(train, corpus.train_rows, corpus.eval_rows, directory / "train")
    evaluate.run(
        config / "eval.json",
        corpus.clips,
        corpus.eval_rows,
        directory / "train/adapter",
        eval_dir=directory / "eval",
        samples_dir=directory / "samples",
    )
    return results


def run_package(corpus: PackedCorpus, results: Path, output: Path) -> Path:
    package.run(
        config=results / "config/package.json",
        name="default",
        data_dir=corpus.directory / "data",
        packed_dir=corpus.directory / "packed",
        experiment_dir=results / "experiments/default",
        config_dir=results / "config",
        package_dir=output / "default",
        archive=output / "default.zip",
    )
    return output / "default"


@pytest.fixture(scope="module")
def packaged(
    corpus: PackedCorpus, experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return run_package(corpus, experiment, tmp_path_factory.mktemp("adapters"))


def test_the_package_is_complete_and_the_archive_is_the_same(packaged: Path) -> None:
    names = {path.name for path in packaged.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
        "README.md",
        "metrics.json",
        "provenance.json",
        "verdict.json",
        "SHA256SUMS",
    }
    with zipfile.ZipFile(packaged.with_suffix(".zip")) as archive:
        assert {f"default/{name}" for name in names} == set(archive.namelist())
        for name in names:
            assert archive.read(f"default/{name}") == (packaged / name).read_bytes()


def test_checksums_are_those_of_the_files(packaged: Path) -> None:
    lines = (packaged / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 7
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((packaged / name).read_bytes()).hexdigest() == digest


def test_the_model_card_has_the_hubs_metadata_and_the_metrics(packaged: Path) -> None:
    card = (packaged / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "peft"
    assert metadata["license"] == "cc0-1.0"
    assert {"base_model", "pipeline_tag", "language", "tags"} <= metadata.keys()
    metrics = json.loads((packaged / "metrics.json").read_text())
    assert f"{metrics['adapter']['eval_loss']:.4f}" in card
    assert f"{metrics['base']['eval_stop_loss']:.4f}" in card


def test_the_model_card_says_the_verdict(packaged: Path, experiment: Path) -> None:
    path = experiment / "experiments/default/eval/verdict.json"
    assert (packaged / "verdict.json").read_bytes() == path.read_bytes()
    sentences = json.loads(path.read_text())["sentences"]
    lines = (packaged / "README.md").read_text().splitlines()
    assert [line[2:] for line in lines if line[2:] in sentences] == sentences


def test_provenance_names_config_data_versions_and_weights(
    packaged: Path, corpus: PackedCorpus
) -> None:
    provenance = json.loads((packaged / "provenance.json").read_text())
    assert provenance["config"]["train"]["train"]["learning_rate"] == 5e-3
    assert provenance["config"]["pack"]["pack"]["max_tokens"] == 2048  # the default, spelled out
    packed = hashlib.sha256(corpus.train_rows.read_bytes()).hexdigest()
    assert provenance["data"]["sha256"]["train.parquet"] == packed
    weights = hashlib.sha256((corpus.base / "model.safetensors").read_bytes()).hexdigest()
    expected = hashlib.sha256(f"{weights}  model.safetensors\n".encode()).hexdigest()
    assert provenance["base_model"]["fingerprint"] == expected
    assert len(provenance["codec"]["fingerprint"]) == 64
    assert {"torch", "transformers", "peft"} <= provenance["packages"].keys()
    assert provenance["verification"]["num_adapter_tensors"] == 40


def test_packaging_twice_gives_the_same_archive(
    corpus: PackedCorpus, experiment: Path, packaged: Path, tmp_path: Path
) -> None:
    again = run_package(corpus, experiment, tmp_path)
    assert again.with_suffix(".zip").read_bytes() == packaged.with_suffix(".zip").read_bytes()


def code_block(markdown: Path) -> str:
    """The first Python example in a page."""
    return markdown.read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("page", ["README.md", "model card"])
def test_the_documented_example_speaks_in_a_process_that_does_not_know_us(
    packaged: Path, corpus: PackedCorpus, tmp_path: Path, page: str
) -> None:
    """As a reader would copy it, with the demo's base and adapter in place of the names."""
    code = code_block(ROOT / page if page == "README.md" else packaged / "README.md")
    code = code.replace("bosonai/higgs-audio-v2-generation-3B-base", str(corpus.base))
    code = code.replace("results/adapters/default", "default")
    again = "inputs =" + code.partition("inputs =")[2].replace("speech.wav", "alone.wav")
    shutil.copytree(packaged, tmp_path / "default")
    tone(tmp_path / "reference.wav", seconds=1.7)  # 42.5 frames
    lines = (
        "import sys, torch",
        "torch.manual_seed(0)",
        code,
        "torch.save(dict(inputs), 'speech.pt')",
        "del messages[1:3]",
        again,
        "torch.save(dict(inputs), 'alone.pt')",
        "assert not any(name.startswith('higgs_pipe') for name in sys.modules)",
    )
    (tmp_path / "speak.py").write_text("\n".join(lines))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "speak.py"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    speaker = Speaker.load(adapter=packaged)
    assert speaker.codec_info.codec == str(corpus.base / "audio_tokenizer")
    voice = speaker.voice(tmp_path / "reference.wav", "What the reference says.")
    for name, voices in (("speech", (voice,)), ("alone", ())):
        samples, rate = sf.read(tmp_path / f"{name}.wav")
        assert rate == 24_000
        assert len(samples) >= 960
        assert abs(samples).max() > 0
        # The prompt is that of training, with the codes of the reference.
        prompt = speaker.prompt(SpeechPrompt("The sun rises in the east.", voices))
        inputs = torch.load(tmp_path / f"{name}.pt")
        assert inputs["input_ids"][0].tolist() == prompt.input_ids.tolist()
        if voices:
            assert inputs["audio_input_ids"][0].tolist() == prompt.audio_input_ids.tolist()


def changed_adapter(experiment: Path, output: Path, change: Any) -> Path:
    """A copy of the results whose adapter is changed after eval."""
    copy = output / "results"
    shutil.copytree(experiment, copy)
    path = copy / "experiments/default/train/adapter/adapter_model.safetensors"
    save_file({key: change(key, tensor) for key, tensor in load_file(path).items()}, path)
    return copy


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0, r"default: the adapter does nothing.*--forcerun train_adapter"),
        (2, r"default: .* loss is [\d.]+, in .*metrics.json .*[\d.]+; .*--forcerun eval_adapter"),
    ],
)
def test_an_adapter_that_fails_its_proof_is_not_packaged(
    corpus: PackedCorpus, experiment: Path, tmp_path: Path, factor: int, message: str
) -> None:
    results = changed_adapter(experiment, tmp_path, lambda key, tensor: tensor * factor)
    with pytest.raises(UserError, match=message):
        run_package(corpus, results, tmp_path / "adapters")
    assert list((tmp_path / "adapters").iterdir()) == []


def test_an_adapter_with_renamed_keys_is_not_packaged(
    corpus: PackedCorpus, experiment: Path, tmp_path: Path
) -> None:
    results = changed_adapter(experiment, tmp_path, lambda key, tensor: tensor)
    path = results / "experiments/default/train/adapter/adapter_model.safetensors"
    renamed = {key.replace("self_attn", "attention"): t for key, t in load_file(path).items()}
    save_file(renamed, path)
    with pytest.raises(UserError, match=r"default: 32 adapter tensors.*\n"):
        run_package(corpus, results, tmp_path / "adapters")


def test_an_adapter_of_other_weights_is_not_packaged(
    corpus: PackedCorpus, experiment: Path, tmp_path: Path
) -> None:
    results = shutil.copytree(experiment, tmp_path / "results")
    path = results / "experiments/default/train/adapter/base_model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(UserError, match=r"default was trained on other weights .*000000000000"):
        run_package(corpus, results, tmp_path / "adapters")


def test_the_model_card_pins_the_commit_of_the_base(packaged: Path, experiment: Path) -> None:
    provenance = package.Provenance.read(packaged / "provenance.json")
    base = provenance.base_model.model_copy(update={"revision": "0123abc"})
    card = package.model_card(
        provenance.model_copy(update={"base_model": base}),
        load_stage(PackageStage, experiment / "config/package.json"),
        load_stage(PackStage, experiment / "config/pack.json").pack,
        EvalMetrics.read(packaged / "metrics.json"),
        Verdict.read(packaged / "verdict.json"),
    )
    code = card.split("```python\n")[1].split("```")[0]
    assert 'revision = "0123abc"' in code
    assert code.count("revision=revision") == 2
    compile(code, "card", "exec")
    assert "revision" not in code_block(packaged / "README.md")
