"""The contents of a package, number by number, compared with their source files."""

import hashlib
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
import yaml
from helpers import Seen, edit_result, has_line_with, write_stage_config
from report_inputs import blank_row
from safetensors.torch import load_file
from trainings import PackedCorpus

from higgs_pipe import evaluate, package, verify
from higgs_pipe import train as train_stage
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.data.tables import read_codec_info, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import AdapterBase
from higgs_pipe.higgs.lora import load_adapter
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.listening.spoken import GENERATED
from higgs_pipe.publishing.card import CardFacts, licence_of, metadata, metric_rows, model_card
from higgs_pipe.publishing.samples import PublishedSample, publish_samples
from higgs_pipe.training.results import EvalMetrics, Proof

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODEC_COMMIT = COMMIT[::-1]
SETTINGS = {"device": "cpu", "tracker": "none", "preflight": False, "learning_rate": 5e-3}
HOURS = {"train": 12.5, "eval": 1.25}  # in place of a few seconds
PACKAGE = {
    "forms": ["peft", "merged"],
    "license": "mit",
    "description": "A high tone.",
    "show_speakers": True,
}
OVERRIDES = {"max_steps": 1, "warmup_fraction": 0.0, "lora": {"r": 4}}


def verified(adapter_dir: Path, config: Path, eval_rows: Path, metrics: Path) -> Proof:
    """Run the proof in this process, as if the base came from the Hub."""
    verify.run(config, adapter_dir, eval_rows, metrics, adapter_dir.parent / "proof.json")
    proof = Proof.read(adapter_dir.parent / "proof.json")
    return proof.model_copy(update={"base_revision": COMMIT, "max_logit_change": 0.125})


def codec_info_of_the_hub(table: Path) -> CodecInfo:
    return replace(read_codec_info(table), revision=CODEC_COMMIT)


@pytest.fixture(scope="module")
def made(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CardFacts]:
    """Results up to the package ``voice`` of an experiment with overrides; the facts of its card.

    Eval's files for the other recordings, those for the held-out clips with other numbers.
    """
    folder = tmp_path_factory.mktemp("results")
    base = {"base_model": str(corpus.base)}
    codec = {"codec": str(corpus.base / "audio_tokenizer")}
    sections: dict[str, dict[str, Any]] = {
        "validate": {"manifest": "manifest.jsonl"},
        "tokenize": codec,
        "pack": base | {"pack": {"system_prompt": "Say it.", "clean_text": False}},
        "eval": base | {"eval": {"device": "cpu", "num_prompts": 0}},
        "package": base | codec | {"package": PACKAGE, "eval": {"other_manifest": "other.jsonl"}},
        "train": base | {"train": SETTINGS},
    }
    configs = {
        name: write_stage_config(folder / f"config/{name}.json", **values)
        for name, values in sections.items()
    }
    experiment = folder / "experiments/voice"
    rows = corpus.train_rows, corpus.eval_rows
    train_stage.run(configs["train"], *rows, experiment / "train", json.dumps(OVERRIDES))
    shutil.copytree(corpus.directory / "data", folder / "data")
    summary = json.loads((folder / "data/validation.json").read_text())
    for split, hours in HOURS.items():
        summary["splits"][split]["hours"] = hours
    counts = {"splits": summary["splits"], "num_rejected_by_reason": {"too_short": 2}}
    counts |= {"num_rejected": 41, "overlap": summary["overlap"] | {"context": 6}}
    edit_result(folder / "data/validation.json", **counts)
    outputs = experiment / "eval", experiment / "samples"
    adapter = experiment / "train/adapter"
    evaluate.run(configs["eval"], corpus.clips, corpus.eval_rows, adapter, *outputs)
    other = shutil.copytree(experiment / "eval", experiment / "eval/other")
    metrics = EvalMetrics.read(other / "metrics.json")
    changed = {
        model: getattr(metrics, model).model_copy(update={"num_clips": 29, "eval_audio_loss": loss})
        for model, loss in (("base", 6.25), ("adapter", 5.25))
    }
    metrics.model_copy(update=changed).write(other / "metrics.json")
    edit_result(other / "verdict.json", sentences=["Others sound alike."])
    return folder, make_package(folder, corpus, configs["package"], folder / "adapters/voice")


@pytest.fixture(scope="module")
def results(made: tuple[Path, CardFacts]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def facts(made: tuple[Path, CardFacts]) -> CardFacts:
    return made[1]


def make_package(results: Path, corpus: PackedCorpus, config: Path, output: Path) -> CardFacts:
    rendered: list[CardFacts] = []

    def render(facts: CardFacts) -> str:
        rendered.append(facts)
        return model_card(facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "model_card", render)
        patch.setattr(package, "verify_in_fresh_process", verified)
        patch.setattr(package, "read_codec_info", codec_info_of_the_hub)
        package.run(
            config=config,
            name="voice",
            data_dir=results / "data",
            packed_dir=corpus.directory / "packed",
            experiment_dir=results / "experiments/voice",
            config_dir=results / "config",
            package_dir=output,
            archive=output.with_suffix(".zip"),
        )
    [facts] = rendered
    return facts


@pytest.fixture(scope="module")
def card(results: Path) -> list[str]:
    return (results / "adapters/voice/README.md").read_text().splitlines()


@pytest.fixture(scope="module")
def provenance(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "adapters/voice/provenance.json").read_text())
    return found


def evaluated(results: Path) -> Any:
    return json.loads((results / "experiments/voice/eval/metrics.json").read_text())


def test_the_card_has_base_and_adapter_losses_in_their_own_columns(
    results: Path, card: list[str]
) -> None:
    assert "| | base | adapter |" in card
    metrics = evaluated(results)
    for key, words in (
        ("eval_loss", "loss (text + audio)"),
        ("eval_text_loss", "text"),
        ("eval_audio_loss_codebook_0", "audio, codebook 0"),
        ("eval_stop_loss", "stop"),
    ):
        base, adapter = (f"{metrics[model][key]:.4f}" for model in ("base", "adapter"))
        assert base != adapter
        assert f"| {words} | {base} | {adapter} |" in card


def test_the_package_has_the_files_of_eval_and_the_adapter_of_train(results: Path) -> None:
    experiment, packaged = results / "experiments/voice", results / "adapters/voice"
    for name in ("metrics.json", "verdict.json"):
        assert (packaged / name).read_bytes() == (experiment / "eval" / name).read_bytes()
    adapter = experiment / "train/adapter/adapter_model.safetensors"
    assert (packaged / adapter.name).read_bytes() == adapter.read_bytes()
    beside = json.loads((packaged / "base_model.json").read_text())["sha256_beside"]
    assert beside == {
        name: hashlib.sha256((packaged / name).read_bytes()).hexdigest()
        for name in ("adapter_config.json", adapter.name)
    }


@pytest.mark.parametrize("changed", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_changed_since_training_is_not_packaged(tmp_path: Path, changed: str) -> None:
    trained, staged = tmp_path / "trained", tmp_path / "staged"
    for folder in (trained, staged):
        folder.mkdir()
    (trained / "adapter_config.json").write_text('{"base_model_name_or_path": "/x/base"}')
    (trained / "adapter_model.safetensors").write_text("as trained")
    base = AdapterBase(
        setting="base_model", name="/x/base", revision=None, fingerprint="f", config_fingerprint="c"
    )
    base.write(trained / "base_model.json", ["adapter_config.json", "adapter_model.safetensors"])
    package.copy_adapter(trained, staged)
    assert AdapterBase.read(staged / "base_model.json").name == "base"
    (trained / changed).write_text('{"base_model_name_or_path": "/y/base"}')
    with pytest.raises(UserError, match=rf"{changed}: changed .*--forcerun train_adapter"):
        package.copy_adapter(trained, staged)


def test_the_packaged_adapter_names_its_base_without_its_path(results: Path) -> None:
    trained, packaged = (
        {
            json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"],
            json.loads((folder / "base_model.json").read_text())["name"],
        }
        for folder in (results / "experiments/voice/train/adapter", results / "adapters/voice")
    )
    [path] = trained
    assert Path(path).is_absolute()
    assert packaged == {Path(path).name}


def test_provenance_has_the_hash_of_each_table(
    corpus: PackedCorpus, provenance: dict[str, Any]
) -> None:
    paths = (corpus.clips, corpus.train_rows, corpus.eval_rows)
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert provenance["data"]["sha256"] == expected


def test_provenance_has_the_counts_of_validate_and_pack(
    corpus: PackedCorpus, provenance: dict[str, Any]
) -> None:
    packing = json.loads((corpus.directory / "packed/packing.json").read_text())
    data = provenance["data"]
    assert data["packed"] == {split: packing[split] for split in ("train", "eval")}
    assert packing["train"]["num_samples"] != packing["eval"]["num_samples"]
    assert data["num_rejected_by_reason"] == {"too_short": 2}


def test_provenance_and_card_have_the_settings_of_the_experiment(
    provenance: dict[str, Any], card: list[str]
) -> None:
    train = provenance["config"]["train"]["train"]
    assert (train["max_steps"], train["warmup_fraction"], train["lora"]["r"]) == (1, 0.0, 4)
    assert (train["learning_rate"], train["lora"]["alpha"]) == (5e-3, 32)  # of `train`, a default
    lines = ("| max_steps | 1 |", "| lora r | 4 |", "| lora alpha | 32 |", "| preflight | False |")
    for line in lines:
        assert line in [shown.replace("\\", "") for shown in card]
    assert provenance["config"]["pack"]["pack"]["system_prompt"] == "Say it."
    stages = {"validate", "tokenize", "pack", "train", "eval", "package"}
    assert provenance["config"].keys() == stages


def test_the_commit_of_the_base_is_in_provenance_and_card(
    corpus: PackedCorpus, provenance: dict[str, Any], card: list[str]
) -> None:
    base = provenance["base_model"]
    assert (base["name"], base["revision"]) == ("tiny-higgs", COMMIT)
    pinned = PinnedModel.of(Pretrained("base_model", str(corpus.base)))
    assert base["fingerprint"] == pinned.fingerprint
    assert any(line.startswith(f'revision = "{COMMIT}"') for line in card)
    assert "base_model: tiny-higgs" in card


def test_the_card_gives_name_commit_and_fingerprint_of_each_model(
    provenance: dict[str, Any], card: list[str]
) -> None:
    base, codec = (provenance[model] for model in ("base_model", "codec"))
    assert (codec["codec"], codec["revision"]) == ("audio_tokenizer", CODEC_COMMIT)
    words = "not stated in its files"
    for label, name, model in (("base", "tiny-higgs", base), ("codec", codec["codec"], codec)):
        line = f"| {label} | {name} | {model['revision']} | {words} | {model['fingerprint'][:16]} |"
        assert line in [shown.replace("\\", "") for shown in card]


def test_the_counts_on_the_card_match_the_result_files(results: Path, card: list[str]) -> None:
    text, metrics = " ".join(card), evaluated(results)["adapter"]
    packing = json.loads((results / "adapters/voice/provenance.json").read_text())["data"]["packed"]
    for sentence in (
        "Held-out loss on 3 clips that were not trained on",
        f"{metrics['num_text_labels']} text labels and {metrics['num_audio_labels']} audio labels",
        "41 rows of the manifest were rejected",
        "the logits differ from the base's by up to 0.125,",
        ", ".join(f"{task} {number}" for task, number in packing["train"]["tasks"].items()) + ".",
    ):
        assert sentence in text
    metadata = yaml.safe_load("\n".join(card[1 : card.index("---", 1)]))
    [of_model] = metadata["model-index"]
    for result in of_model["results"]:
        assert result["dataset"]["name"] == "3 held-out clips"
        for metric in result["metrics"]:
            assert metric["value"] == metrics[metric["type"]]
    named = [metric["name"] for result in of_model["results"] for metric in result["metrics"]]
    assert named[1:3] == ["text, nats per label", "audio, mean of codebooks, nats per label"]


def test_a_local_base_is_an_option_of_the_command_and_not_linked(facts: CardFacts) -> None:
    local = replace(facts, base=replace(facts.base, revision=None))
    of_hub, of_folder = model_card(facts), model_card(local)
    assert (metadata(facts).base_model, metadata(facts).model_name) == ("tiny-higgs", "voice")
    assert metadata(local).base_model is None
    assert "speak --adapter voice --text" in of_hub
    assert "speak --adapter voice --base tiny-higgs --text" in of_folder
    spaced = replace(local, base=replace(local.base, name="my base"))
    assert "speak --adapter voice --base 'my base' --text" in model_card(spaced)


def test_the_hub_finds_a_card_by_tags_and_languages(facts: CardFacts) -> None:
    data = facts.provenance.data.model_copy(
        update={"languages": dict.fromkeys(("pt-BR", "en", "pt-PT"))}
    )
    named = facts.provenance.model_copy(update={"data": data})
    found = metadata(replace(facts, provenance=named))
    assert found.tags == ["higgs-audio-v2", "lora", "text-to-speech"]
    assert found.language == ["en", "pt"]


def test_a_family_without_text_loss_has_no_text_loss_line(facts: CardFacts) -> None:
    without = facts.metrics.adapter.model_copy(update={"eval_text_loss": None})
    rows = metric_rows(facts.metrics.model_copy(update={"adapter": without}))
    assert rows[0] == ("eval_loss", "loss")
    assert "eval_text_loss" not in dict(rows)


def test_a_card_names_each_form_of_the_family_once(facts: CardFacts) -> None:
    forms = {"merged": facts.family.forms["merged"]}
    settings = facts.settings.model_copy(update={"forms": ["merged", "original", "merged"]})
    family = replace(facts.family, forms=forms)
    text = model_card(replace(facts, family=family, settings=settings))
    assert [line[:11] for line in text.splitlines() if line.startswith("| `-")] == ["| `-merged`"]


def generated(*rows: tuple[str, str, float | None]) -> list[dict[str, Any]]:
    return [
        blank_row(GENERATED)
        | {"clip_id": clip_id, "text": f"Text {clip_id}", "voice": voice}
        | {"temperature": temperature, "sample": f"{clip_id}-{voice}-{temperature}.wav"}
        for clip_id, voice, temperature in rows
    ]


def test_the_first_prompts_are_published_at_the_first_temperature(tmp_path: Path) -> None:
    drawn = [(voice, t) for t in (0.5, 1.0) for voice in ("base", "adapter")]
    voices: list[tuple[str, float | None]] = [("recording", None), *drawn]
    table = generated(*((name, voice, t) for name in ("c", "a", "b") for voice, t in voices))
    write_table(tmp_path / "generation.parquet", GENERATED, table)
    for number, row in enumerate(table):
        sf.write(tmp_path / row["sample"], np.zeros(10 + number), 8000)
    (tmp_path / "package").mkdir()
    found = publish_samples(tmp_path / "generation.parquet", tmp_path, tmp_path / "package", 2)
    assert found == [
        PublishedSample("Text c", "samples/01-base.wav", "samples/01-adapter.wav"),
        PublishedSample("Text a", "samples/02-base.wav", "samples/02-adapter.wav"),
    ]
    copied = {path.name: path.read_bytes() for path in (tmp_path / "package/samples").iterdir()}
    assert copied == {
        f"0{number}-{voice}.wav": (tmp_path / f"{name}-{voice}-0.5.wav").read_bytes()
        for number, name in ((1, "c"), (2, "a"))
        for voice in ("base", "adapter")
    }
    (tmp_path / "c-base-0.5.wav").unlink()
    with pytest.raises(UserError, match=r"c-base-0\.5\.wav .*--forcerun eval_adapter"):
        publish_samples(tmp_path / "generation.parquet", tmp_path, tmp_path / "package", 2)


def test_the_widget_of_the_card_plays_the_adapters_samples(facts: CardFacts) -> None:
    yes, no = (
        PublishedSample(f"{text}.", f"{text}-base.wav", f"{text}-adapter.wav")
        for text in ("Yes", "No")
    )
    spoken = replace(facts, samples=[yes, no])
    assert metadata(spoken)["widget"] == [
        {"text": "Yes.", "output": {"url": "Yes-adapter.wav"}},
        {"text": "No.", "output": {"url": "No-adapter.wav"}},
    ]
    assert "| Yes. | [listen](Yes-base.wav) | [listen](Yes-adapter.wav) |" in model_card(spoken)
    assert "| No. | [listen](No-base.wav) | [listen](No-adapter.wav) |" in model_card(spoken)


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ("license: other\nlicense_name: boson", "boson"),
        ("license: apache-2.0", "apache-2.0"),
        ("tags: [a]", None),
    ],
)
def test_the_licence_of_a_model_is_read_from_its_own_card(
    tmp_path: Path, lines: str, licence: str | None
) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text(f"---\n{lines}\n---\n# A base\n")
    assert licence_of(tmp_path) == licence


def test_the_package_checks_that_its_rows_were_packed_together(
    results: Path, corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*rows: Path) -> None:
        raise Seen(*rows)

    monkeypatch.setattr(package, "check_packed_together", look)
    with pytest.raises(Seen) as seen:
        make_package(results, corpus, results / "config/package.json", tmp_path / "voice")
    assert seen.value.args == (corpus.train_rows, corpus.eval_rows)


def test_the_proof_has_the_numbers_of_the_packaged_adapter(
    results: Path, corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_hub(*arguments: Any) -> PinnedModel:
        return base_of_rows(*arguments).model_copy(update={"revision": COMMIT})

    monkeypatch.setattr(verify, "base_of_rows", of_the_hub)
    monkeypatch.setattr(verify, "_max_logit_change", lambda *_: 0.25)
    experiment, packaged = results / "experiments/voice", results / "adapters/voice"
    inputs = corpus.eval_rows, experiment / "eval/metrics.json"
    verify.run(results / "config/eval.json", packaged, *inputs, tmp_path / "proof.json")
    proof = Proof.read(tmp_path / "proof.json")
    weights = load_file(packaged / "adapter_model.safetensors")
    base = PinnedModel.of(Pretrained("base_model", str(corpus.base)))
    assert vars(proof) == {
        "num_adapter_tensors": len(weights),
        "max_logit_change": 0.25,
        "eval_loss": pytest.approx(evaluated(results)["adapter"]["eval_loss"]),
        "base_fingerprint": base.fingerprint,
        "base_revision": COMMIT,
    }


@pytest.mark.parametrize(
    ("dtype", "name", "factor", "is_evals"),
    [
        *(("float32", "loss", 1 + error, True) for error in (5e-5, -5e-5)),
        *(("float32", "loss", 1 + error, False) for error in (2e-4, -2e-4)),
        *(("float64", "audio_loss", 1 + error, False) for error in (1e-7, -1e-7)),
        ("bfloat16", "loss", 1.009, True),
        ("bfloat16", "loss", 1.011, False),
        ("bfloat16", "audio_loss", 0.9985, True),
        ("bfloat16", "audio_loss", 0.9975, False),
    ],
)
def test_the_held_out_loss_of_the_proof_must_match_eval_within_rounding(
    results: Path,
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    name: str,
    factor: float,
    is_evals: bool,
) -> None:
    """A loss of eval is 8 nats or so; that of the proof is ``factor`` times as high."""
    metrics = results / "experiments/voice/eval/metrics.json"
    evals = EvalMetrics.read(metrics).adapter
    losses = {"loss": evals.eval_loss, "audio_loss": evals.eval_audio_loss}
    losses[name] *= factor
    base = {"base_model": str(corpus.base)}
    config = write_stage_config(
        tmp_path / "eval.json", **base, eval={"device": "cpu", "dtype": dtype}
    )
    monkeypatch.setattr(verify, "held_out_sums", lambda *_: {})
    monkeypatch.setattr(verify, "total_of", lambda _: None)
    monkeypatch.setattr(verify, "named_losses", lambda _: losses)
    proof = tmp_path / "proof.json"
    arguments = config, results / "adapters/voice", corpus.eval_rows, metrics, proof
    if is_evals:
        verify.run(*arguments)
        assert Proof.read(proof).eval_loss == losses["loss"]
    else:
        with pytest.raises(UserError, match=f"the held-out {name.replace('_', ' ')} is"):
            verify.run(*arguments)


def test_a_tensor_that_differs_once_loaded_fails_the_proof(
    results: Path, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = results / "adapters/voice"
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.float32)
    adapted = load_adapter(base, packaged)
    in_file = load_file(packaged / "adapter_model.safetensors")
    [moved, added, *_] = in_file
    changed = in_file | {moved: in_file[moved] + 1, f"{added}.more": in_file[added]}
    monkeypatch.setattr(verify, "load_file", lambda _: changed)
    with pytest.raises(UserError, match="2 adapter tensors") as error:
        verify._check_tensors(adapted, packaged)
    assert has_line_with(str(error.value), moved)
    assert has_line_with(str(error.value), f"{added}.more")


def test_the_chart_on_the_card_describes_the_held_out_loss(results: Path, card: list[str]) -> None:
    log = (results / "experiments/voice/train/metrics.jsonl").read_text().splitlines()
    losses = [line["eval_loss"] for line in map(json.loads, log) if "eval_loss" in line]
    ends = f"held-out from {losses[0]:.3f} at step 0 to {losses[-1]:.3f} at step 1"
    assert ends in " ".join(card).replace("\\", "")


def test_the_logit_change_is_the_largest_in_either_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adapter lowers one logit by 3 and raises another by 2."""
    logits = [torch.tensor([1.0, 5.0]), torch.tensor([4.0, 3.0])]
    seen: list[Any] = []

    class Model:
        shape, model = None, SimpleNamespace(disable_adapter=nullcontext)

        def parameters(self) -> Any:
            return iter(logits)

        def logits(self, _: Any) -> Any:
            return None, logits.pop(0)

    def collate(rows: Any, _: Any) -> torch.Tensor:
        seen.append(rows)
        return logits[0]

    monkeypatch.setattr(verify, "collate", collate)
    model: Any = Model()
    assert verify._max_logit_change(model, ["first", "second"]) == 3  # type: ignore[arg-type]
    assert seen == [["first"]]


def test_the_card_reports_the_results_on_other_recordings(results: Path, card: list[str]) -> None:
    of_verdict, start, end = map(
        card.index, ("## Is it better than the base?", "## Forgetting", "## Data")
    )
    text = " ".join(card[start:end])
    assert "On 29 recordings" in text
    assert re.search(r"\b6\.2500\b[^.]* base [^.]*\b5\.2500\b[^.]* adapter\b", text)
    assert "- Others sound alike." in card[start:end]
    verdict = json.loads((results / "experiments/voice/eval/verdict.json").read_text())
    shown = [line.replace("\\", "") for line in card[of_verdict:start] if line[:2] == "- "]
    assert shown == [f"- {sentence}" for sentence in verdict["sentences"]]


def test_hours_and_clips_on_the_card_are_those_of_the_training_split(
    corpus: PackedCorpus, card: list[str]
) -> None:
    clips = pq.read_table(corpus.clips).to_pylist()
    seconds = {
        speaker: sum(c["duration_seconds"] for c in clips if c["speaker"] == speaker)
        for speaker in ("high", "low")
    }
    text = " ".join(card)
    assert "trained on 12.50 hours of speech (11 clips, 2 speakers)" in text
    assert "11 clips (12.500 hours) for training, 3 (1.250 hours) held out; " in text
    assert "held out; **recordings in both: 6**." in text
    for speaker, of_speaker in seconds.items():
        assert f"| {speaker} | 7 | {of_speaker / 3600:.3f} |" in card


def test_the_card_has_licence_description_and_system_prompt_from_the_settings(
    card: list[str],
) -> None:
    assert "license: mit" in card
    assert "A high tone." in card
    assert '    {"role": "system", "content": "Say it."},' in card
    assert "trained on cleaned text" not in " ".join(card)
    assert any('PeftModel.from_pretrained(model, "voice")' in line for line in card)


def test_markup_in_the_settings_is_escaped_on_the_card(
    results: Path, corpus: PackedCorpus, tmp_path: Path
) -> None:
    given = json.loads((results / "config/package.json").read_text())
    hostile = {
        "license": "mit\n---\nbase_model: evil/base\n",
        "description": "---\n# Large\n<script>alert(1)</script> [here](javascript:alert(1))",
    }
    config = write_stage_config(tmp_path / "package.json", **given | {"package": PACKAGE | hostile})
    make_package(results, corpus, config, tmp_path / "voice")
    card = (tmp_path / "voice/README.md").read_text().splitlines()
    end = card.index("---", 1)
    metadata = yaml.safe_load("\n".join(card[1:end]))
    assert metadata["license"] == hostile["license"]
    usual = (results / "adapters/voice/README.md").read_text().splitlines()
    of_usual = yaml.safe_load("\n".join(usual[1 : usual.index("---", 1)]))
    assert metadata | {"license": None} == of_usual | {"license": None}
    body = card[end + 1 :]
    assert not {"---", "# Large"} & set(body)
    assert "<script>" not in "\n".join(body)
    assert "](javascript" not in "\n".join(body)


def test_the_card_names_full_checkpoints_instead_of_a_manual_merge(card: list[str]) -> None:
    rows = [line for line in card if line.startswith("| `-")]
    assert rows == ["| `-merged` | with the tensor names of the base |"]
    assert not any("merge_and_unload" in line for line in card)


def test_the_provenance_has_the_settings_of_each_stage(tmp_path: Path) -> None:
    base: dict[str, Any] = {"base_model": "acme/higgs", "base_model_revision": "v2"}
    codec: dict[str, Any] = {"codec": "acme/codec", "codec_revision": "v1"}
    given: dict[str, dict[str, Any]] = {
        "validate": {"data": {"split_seed": 3}, "validate": {"min_clip_seconds": 0.7}},
        "tokenize": codec | {"tokenize": {"max_batch_seconds": 9.0}},
        "pack": base | {"pack": {"seed": 4}},
        "eval": base | {"eval": {"num_processes": 3}},
        "package": base | codec | {"package": PACKAGE},
    }
    for stage, sections in given.items():
        named = {"manifest": "m.jsonl"} if stage == "validate" else {}
        write_stage_config(tmp_path / f"{stage}.json", **named, **sections)
    write_stage_config(tmp_path / "train/config.json", **base, train={"seed": 6})
    found = package.all_settings(tmp_path, tmp_path)
    assert found["train"] == base | {"train": {"seed": 6}}
    for stage, sections in given.items():
        for key, value in sections.items():
            has = found[stage][key]
            assert (has | value if isinstance(value, dict) else value) == has, (stage, key)
