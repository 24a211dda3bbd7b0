"""The package: complete, proved in a fresh process, and usable without this project."""

import hashlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import torch
from helpers import ROOT, edit_result, environment_with, tone, write_stage_config
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus

from higgs_pipe import evaluate, package
from higgs_pipe import train as train_stage
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.lora import load_adapter
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.speech_prompts import SpeechPrompt
from higgs_pipe.higgs.v2.miniature import AUDIO_TOKENIZER

EVAL = {"device": "cpu", "num_prompts": 3, "max_seconds": 2.0, "temperatures": [1.0, 0.5]}
# Text that would be markup, in a card that did not escape it.
DESCRIPTION = "A <img src=x onerror=alert(1)> voice\n# of `ours` | [link](https://example.org) $x$"
PACKAGE = {"license": "cc0-1.0", "description": DESCRIPTION}

pytestmark = pytest.mark.usefixtures("processes_as_forks")


@pytest.fixture(scope="module")
def experiment(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results directory after train and eval."""
    results = tmp_path_factory.mktemp("results")
    base = {"base_model": str(corpus.base)}
    codec = {"codec": str(corpus.base / "audio_tokenizer")}
    config = results / "config"
    write_stage_config(config / "validate.json", manifest="manifest.jsonl")
    write_stage_config(config / "tokenize.json", **codec)
    write_stage_config(config / "pack.json", **base)
    write_stage_config(config / "eval.json", **base, eval=EVAL)
    write_stage_config(config / "package.json", **base, **codec, package=PACKAGE)
    train = write_stage_config(
        config / "train.json", **base, train={"device": "cpu", "learning_rate": 5e-3}
    )
    (corpus.base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
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
    yield results
    (corpus.base / "README.md").unlink()  # other tests use the base, too


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
    """The package, in results that know the folders of base and codec."""
    results = tmp_path_factory.mktemp("packaged")
    for setting, folder in (("base_model", corpus.base), ("codec", corpus.base / AUDIO_TOKENIZER)):
        pinned = PinnedModel.of(Pretrained(setting, str(folder)))
        pinned.write(results / f"models/{setting}.json")
    return run_package(corpus, experiment, results / "adapters")


def files_of(package: Path) -> dict[str, bytes]:
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file()
    }


def test_package_and_archive_are_complete_and_identical(packaged: Path) -> None:
    files = files_of(packaged)
    assert set(files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
        "README.md",
        "metrics.json",
        "provenance.json",
        "verdict.json",
        "loss.svg",
        "files.json",
        "SHA256SUMS",
        *(f"samples/{i:02d}-{voice}.wav" for i in (1, 2, 3) for voice in ("adapter", "base")),
    }
    with zipfile.ZipFile(packaged.with_suffix(".zip")) as archive:
        assert {f"default/{name}": content for name, content in files.items()} == {
            name: archive.read(name) for name in archive.namelist()
        }


def test_checksums_match_the_files(packaged: Path) -> None:
    lines = (packaged / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 15
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((packaged / name).read_bytes()).hexdigest() == digest


def test_the_model_card_has_the_hubs_metadata_and_the_metrics(packaged: Path) -> None:
    card = ModelCard.load(packaged / "README.md", ignore_metadata_errors=False)
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "peft"
    assert metadata["license"] == "cc0-1.0"
    assert {"pipeline_tag", "tags"} <= metadata.keys()
    assert "base_model" not in metadata  # the Hub would link a folder's name to another model
    assert metadata["widget"][0]["output"]["url"] == "samples/01-adapter.wav"
    metrics = json.loads((packaged / "metrics.json").read_text())
    found = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert found["eval_loss"] == metrics["adapter"]["eval_loss"]
    assert found["eval_stop_loss"] == metrics["adapter"]["eval_stop_loss"]
    row = f"| {metrics['base']['eval_loss']:.4f} | {metrics['adapter']['eval_loss']:.4f} |"
    assert row in card.text


def shown(card: Path) -> str:
    """The text that a reader of the card sees, with its markup as HTML."""
    page = card.read_text().partition("\n---\n")[2]
    return str(MarkdownIt("commonmark").enable("table").render(page))


def test_the_model_card_quotes_the_verdict(packaged: Path, experiment: Path) -> None:
    path = experiment / "experiments/default/eval/verdict.json"
    assert (packaged / "verdict.json").read_bytes() == path.read_bytes()
    sentences = json.loads(path.read_text())["sentences"]
    listed = re.findall("<li>(.*)</li>", shown(packaged / "README.md"))
    assert [html.unescape(line) for line in listed] == sentences


def test_the_card_reports_forgetting_without_revealing_paths(
    corpus: PackedCorpus, experiment: Path, tmp_path: Path
) -> None:
    results = shutil.copytree(experiment, tmp_path / "results")
    config = results / "config/package.json"
    given = json.loads(config.read_text()) | {"eval": {"other_manifest": "secret/other.jsonl"}}
    config.write_text(json.dumps(given))
    evaluated = results / "experiments/default/eval"
    shutil.copytree(evaluated, tmp_path / "other")
    other = (tmp_path / "other").rename(evaluated / "other")
    edit_result(other / "verdict.json", sentences=["It has forgotten."])
    folder = run_package(corpus, results, tmp_path / "adapters")
    page = shown(folder / "README.md")
    part = page[page.index("<h2>Forgetting</h2>") :]
    assert "On 3 recordings" in part
    assert "<li>It has forgotten.</li>" in part
    losses = json.loads((other / "metrics.json").read_text())
    base, adapter = (losses[model]["eval_audio_loss"] for model in ("base", "adapter"))
    assert re.search(rf"\b{base:.4f}\b[^.]* base [^.]*\b{adapter:.4f}\b[^.]* adapter\b", part)
    assert not any(b"secret" in content for content in files_of(folder).values())


def test_the_description_is_shown_as_written(packaged: Path) -> None:
    page = shown(packaged / "README.md")
    assert f"<p>{html.escape(DESCRIPTION.replace(chr(10), ' '))}</p>" in page
    assert "<img src=x" not in page


def test_the_card_gives_the_licence_of_each_model_and_no_folder(packaged: Path) -> None:
    page = shown(packaged / "README.md")
    assert re.findall(
        "<td>(?:base|codec)</td>\n<td>(.*)</td>\n<td>(.*)</td>\n<td>(.*)</td>", page
    ) == [
        ("tiny-higgs", "a local folder", "apache-2.0"),
        ("audio_tokenizer", "a local folder", "not stated in its files"),
    ]


def test_samples_are_the_takes_of_eval_at_the_first_temperature(
    packaged: Path, experiment: Path
) -> None:
    spoken = experiment / "experiments/default/samples"
    for number in ("01", "02", "03"):
        for voice in ("adapter", "base"):
            published = packaged / f"samples/{number}-{voice}.wav"
            assert published.read_bytes() == (spoken / f"{number}-{voice}-t1.wav").read_bytes()
    card = (packaged / "README.md").read_text()
    links = re.findall(r"\[listen\]\((.*?)\) \| \[listen\]\((.*?)\)", card)
    assert links == [(f"samples/0{n}-base.wav", f"samples/0{n}-adapter.wav") for n in (1, 2, 3)]
    assert "| text | base | adapter |" in card


def test_the_package_reveals_no_folder_person_or_clip(packaged: Path, corpus: PackedCorpus) -> None:
    private = [str(corpus.directory), str(corpus.base.parent), str(Path.cwd()), "manifest.jsonl"]
    private += ["clip-0", "clip-1", '"high": {', '"low": {', "| high |", "audio/"]
    for name, content in files_of(packaged).items():
        found = [text for text in private if text.encode() in content]
        assert found == [], name


def test_speakers_and_the_earlier_adapter_are_named(
    corpus: PackedCorpus, experiment: Path, tmp_path: Path
) -> None:
    """Speakers are named only if package.show_speakers is set, as here."""
    results = Path(shutil.copytree(experiment, tmp_path / "results"))
    settings = results / "config/package.json"
    changed = json.loads(settings.read_text())
    changed["package"] |= {"show_speakers": True, "num_samples": 1}
    settings.write_text(json.dumps(changed))
    run = results / "experiments/default/train/run.json"
    ancestor = {"name": "<b>Ada", "fingerprint": "f" * 64}
    edit_result(run, ancestor=ancestor)
    package = run_package(corpus, results, tmp_path / "adapters")
    assert "the adapter &lt;b&gt;Ada (SHA-256 of its weights ffffffff" in shown(
        package / "README.md"
    )
    assert "<td>high</td>" in shown(package / "README.md")
    provenance = json.loads((package / "provenance.json").read_text())
    assert provenance["ancestor"] == ancestor
    assert provenance["data"]["speakers"].keys() == {"high", "low"}
    assert len(list((package / "samples").iterdir())) == 2


def test_provenance_records_config_data_versions_and_weights(
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


def code_blocks(markdown: Path, language: str) -> list[str]:
    """The examples of a page."""
    parts = markdown.read_text().split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


@pytest.fixture(scope="module")
def beside(packaged: Path, corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with package, base and reference, as a reader of the card has them."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(packaged, folder / "default")
    shutil.copytree(corpus.base, folder / "tiny-higgs")
    tone(folder / "reference.wav", seconds=1.7)  # 42.5 frames
    return folder


def run_alone(script: str, folder: Path) -> None:
    """Run a Python script where ``higgs_pipe`` cannot be imported."""
    (folder / "script.py").write_text(
        f"{script}\nimport sys\nassert not any(n.startswith('higgs_pipe') for n in sys.modules)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "script.py"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("page", ["README.md", "model card"])
def test_the_documented_example_runs_without_this_package(
    packaged: Path, corpus: PackedCorpus, beside: Path, page: str
) -> None:
    """The card's example runs unchanged; the README's with the base and adapter of the demo."""
    code = code_blocks(ROOT / page if page == "README.md" else packaged / "README.md", "python")[0]
    if page == "README.md":
        code = code.replace("bosonai/higgs-audio-v2-generation-3B-base", str(corpus.base))
        code = code.replace("results/adapters/default", "default")
    again = "inputs =" + code.partition("inputs =")[2].replace("speech.wav", "alone.wav")
    lines = (
        "import torch",
        "torch.manual_seed(0)",
        code,
        "torch.save(dict(inputs), 'speech.pt')",
        "del messages[1:3]",
        again,
        "torch.save(dict(inputs), 'alone.pt')",
    )
    run_alone("\n".join(lines), beside)
    speaker = Speaker.load(adapter=packaged)
    assert speaker.codec_info.codec == str(corpus.base / "audio_tokenizer")
    voice = speaker.voice(beside / "reference.wav", "What the reference says.")
    for name, voices in (("speech", (voice,)), ("alone", ())):
        samples, rate = sf.read(beside / f"{name}.wav")
        assert rate == 24_000
        assert len(samples) >= 960
        assert abs(samples).max() > 0
        # The prompt is that of training, with the codes of the reference.
        prompt = speaker.prompt(SpeechPrompt("The sun rises in the east.", voices))
        inputs = torch.load(beside / f"{name}.pt")
        assert inputs["input_ids"][0].tolist() == prompt.input_ids.tolist()
        if voices:
            assert inputs["audio_input_ids"][0].tolist() == prompt.audio_input_ids.tolist()


def test_the_merge_recipe_of_the_card_gives_the_adapters_logits(
    packaged: Path, corpus: PackedCorpus, beside: Path
) -> None:
    """Includes the logits of the text head, which a merge easily loses."""
    run_alone(code_blocks(packaged / "README.md", "python")[1], beside)
    base, merged = (
        load_base(Pretrained("base_model", str(beside / name)), torch.float32)
        for name in ("tiny-higgs", "merged")
    )
    batch = collate([PackedRows(corpus.eval_rows)[0]], base.config)
    with torch.inference_mode():
        expected = DualLossModel(load_adapter(base, packaged)).logits(batch)
        found = DualLossModel(merged).logits(batch)
    for name, of_adapter, of_merged in zip(("text", "audio"), expected, found, strict=True):
        assert torch.allclose(of_merged, of_adapter, atol=1e-3), name


def test_the_speak_command_of_the_card_works_next_to_the_base(packaged: Path, beside: Path) -> None:
    [command] = code_blocks(packaged / "README.md", "bash")
    words = [sys.executable, *shlex.split(command)[1:], "--max-seconds", "2"]
    environment = environment_with()
    finished = subprocess.run(
        words, check=False, capture_output=True, text=True, env=environment, cwd=beside
    )
    assert finished.returncode == 0, finished.stderr
    assert sf.info(beside / "spoken.wav").samplerate == 24_000


def changed_adapter(experiment: Path, output: Path, change: Any) -> Path:
    """A copy of the results whose adapter is changed after eval."""
    copy = output / "results"
    shutil.copytree(experiment, copy)
    path = copy / "experiments/default/train/adapter/adapter_model.safetensors"
    save_file({key: change(key, tensor) for key, tensor in load_file(path).items()}, path)
    edit_result(path.with_name("base_model.json"))  # as if it had been trained so
    return copy


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0, r"default: the adapter has no effect.*--forcerun train_adapter"),
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


def test_an_adapter_trained_on_other_weights_is_not_packaged(
    corpus: PackedCorpus, experiment: Path, tmp_path: Path
) -> None:
    results = shutil.copytree(experiment, tmp_path / "results")
    path = results / "experiments/default/train/adapter/base_model.json"
    edit_result(path, fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"default .* 000000000000"):
        run_package(corpus, results, tmp_path / "adapters")
