"""Settings of eval and accept, each tested by what the stages compute and speak."""

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from helpers import Seen, write_stage_config
from trainings import PackedCorpus

from higgs_pipe import accept, evaluate
from higgs_pipe.config.settings import EvaluateConfig, LoraSettings, Sampling
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import generation
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.frame_losses import FrameLosses
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import LossSums
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.listening import speaking
from higgs_pipe.listening.clip_losses import ClipLosses
from higgs_pipe.listening.clusters import Clusters
from higgs_pipe.listening.held_out import HeldOutClips, HeldOutSample
from higgs_pipe.listening.intervals import Difference
from higgs_pipe.listening.spoken import (
    ADAPTER,
    BASE,
    RECORDING,
    Generation,
    VoiceDifferences,
    VoiceTotals,
    temperatures_of,
)
from higgs_pipe.listening.text_use import OtherTexts
from higgs_pipe.listening.verdict import HEADLINES, Verdict, judge
from higgs_pipe.training.held_out import held_out_sums
from higgs_pipe.training.results import EvalMetrics


@pytest.fixture(scope="module")
def adapter(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the base."""
    directory = tmp_path_factory.mktemp("adapter")
    base = Pretrained("base_model", str(corpus.base))
    model = add_lora(load_base(base, torch.float32), LoraSettings(), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    model.save_pretrained(directory)
    PinnedModel.of(base).write(directory / BASE_FILE)
    return directory


def run(corpus: PackedCorpus, adapter: Path, output: Path, **settings: Any) -> Path:
    """Evaluate; returns the folder of the results."""
    config = write_stage_config(
        output / "eval.json",
        base_model=str(corpus.base),
        eval={"device": "cpu", "num_prompts": 0, **settings},
    )
    outputs = output / "eval", output / "samples"
    evaluate.run(config, corpus.clips, corpus.eval_rows, adapter, *outputs)
    return output / "eval"


def test_evaluation_uses_the_configured_batch_size_and_dtype(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, torch.dtype]] = set()
    backbone = DualLossModel.backbone

    def looked_at(self: DualLossModel, batch: Any) -> torch.Tensor:
        seen.add((len(batch.sample_ids), self.native.dtype))
        return backbone(self, batch)

    monkeypatch.setattr(DualLossModel, "backbone", looked_at)
    num_samples = [len(ids) for ids in pq.read_table(corpus.eval_rows)["sample_ids"].to_pylist()]
    for rows_per_batch, dtype in ((1, "bfloat16"), (100, "float64")):
        seen.clear()
        run(corpus, adapter, tmp_path, rows_per_batch=rows_per_batch, dtype=dtype)
        sizes = set(num_samples) if rows_per_batch == 1 else {sum(num_samples)}
        assert seen == {(size, getattr(torch, dtype)) for size in sizes}


def test_speech_follows_the_sampling_settings(
    corpus: PackedCorpus, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, Sampling, int]] = []
    speak = generation.speak

    def noted(*arguments: Any) -> Any:
        *_, prompts, sampling, batch_size = arguments
        asked.append((len(prompts), sampling, batch_size))
        return speak(*arguments)

    monkeypatch.setattr(speaking, "speak", noted)
    settings = {"num_prompts": 1, "prompts_per_batch": 3, "max_seconds": 1.5, "seed": 5}
    found = run(corpus, adapter, tmp_path, **settings, temperatures=[0.7, 0])
    wanted = [Sampling(temperature=t, max_seconds=1.5, seed=5) for t in (0.7, 0)]
    assert asked == [(1, sampling, 3) for _ in range(2) for sampling in wanted]
    written = json.loads((found / "generation.json").read_text())
    assert (written["seed"], written["max_seconds"]) == (5, 1.5)
    rows = pq.read_table(found / "generation.parquet").to_pylist()
    assert len({row["clip_id"] for row in rows}) == 1


def test_the_listener_uses_the_configured_speech_models(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(models: Any, _: Any) -> None:
        raise Seen(models.model_dump())

    monkeypatch.setattr(evaluate, "Listener", look)
    models = {"asr": "some/recogniser", "speaker": "some/voice", "dnsmos": "some.onnx"}
    with pytest.raises(Seen) as seen:
        run(corpus, tmp_path, tmp_path, speech_models=models)
    assert seen.value.args == (models,)


@pytest.mark.parametrize("setting", [True, False])
def test_the_compile_setting_reaches_evaluation(
    corpus: PackedCorpus,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: bool,
) -> None:
    def look(*arguments: Any) -> None:
        raise Seen(arguments[1], arguments[3])

    monkeypatch.setattr(evaluate, "compile_where_it_pays", look)
    with pytest.raises(Seen) as seen:
        run(corpus, adapter, tmp_path, compile=setting)
    lengths = pq.read_table(corpus.eval_rows)["sample_lengths"].to_pylist()
    # Adapter and base, their texts and others'; a forward pass is a third of a step of training.
    num_positions = 4 * sum(map(sum, lengths)) / 3
    assert seen.value.args == (setting, pytest.approx(num_positions))


def test_every_audio_label_is_counted(corpus: PackedCorpus, adapter: Path, tmp_path: Path) -> None:
    found = run(corpus, adapter, tmp_path)
    metrics = json.loads((found / "metrics.json").read_text())
    held_out = pq.read_table(corpus.eval_rows).to_pylist()
    labels = [code for row in held_out for frame in row["audio_labels"] for code in frame]
    expected = sum(code != -100 for code in labels)
    assert [metrics[m]["num_audio_labels"] for m in ("adapter", "base")] == [expected] * 2
    clips = pq.read_table(found / "clips.parquet").to_pylist()
    assert sum(clip["num_audio_labels"] for clip in clips) == expected


def test_the_compile_cache_folder_reaches_evaluation(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(folder: Path) -> None:
        raise Seen(folder)

    monkeypatch.setattr(evaluate, "keep_compiled_code", look)
    config = write_stage_config(tmp_path / "eval.json", base_model=str(corpus.base))
    outputs = tmp_path / "eval", tmp_path / "samples"
    code = tmp_path / "code"
    with pytest.raises(Seen) as seen:
        evaluate.run(config, corpus.clips, corpus.eval_rows, tmp_path, *outputs, compile_cache=code)
    assert seen.value.args == (code,)


@dataclass
class Noted:
    """The values that an evaluation of other recordings passed on."""

    verdict: Path
    speakers_of_texts: list[Any] = field(default_factory=list)
    grouped: list[Any] = field(default_factory=list)
    judged: list[tuple[float, int, Difference]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    losses: list[ClipLosses] = field(default_factory=list)


@pytest.fixture(scope="module")
def noted(corpus: PackedCorpus, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Noted:
    folder = tmp_path_factory.mktemp("noted")
    found, group = Noted(folder / "eval/verdict.json"), Clusters.of

    def texts(rows: Any, speakers: Any, place: Any) -> Any:
        found.speakers_of_texts.append(speakers)
        return OtherTexts(rows, speakers, place)

    def groups(*names: Any) -> Any:
        found.grouped.append(names)
        return replace(group(*names), by="recording")

    def judged(*differences: Any, **facts: Any) -> Any:
        found.judged.append((facts["audio_loss"], facts["num_entries"], facts["text_use"]))
        return judge(*differences, **facts)

    def losses(**parts: Any) -> ClipLosses:
        found.losses.append(ClipLosses(**parts))
        return found.losses[-1]

    config = write_stage_config(
        folder / "eval.json",
        base_model=str(corpus.base),
        eval={"device": "cpu", "num_prompts": 0},
    )
    outputs = folder / "eval", folder / "samples"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "OtherTexts", texts)
        patch.setattr(evaluate, "judge", judged)
        patch.setattr(evaluate, "ClipLosses", losses)
        patch.setattr(Clusters, "of", groups)
        patch.setattr(evaluate.logger, "info", lambda text, *parts: found.told.append(text % parts))
        clips_of = "eval.other_manifest"
        evaluate.run(config, corpus.clips, corpus.eval_rows, adapter, *outputs, clips_of=clips_of)
    return found


NONE = (None, None)
IDS, SPEAKERS = ["clip-03", "clip-06", "clip-09"], ["high", "low", "high"]


def test_clips_are_grouped_and_judged_by_what_they_are(noted: Noted) -> None:
    assert noted.speakers_of_texts[0] == dict(zip(IDS, SPEAKERS, strict=True))
    found_ids, recordings, found_speakers = noted.grouped[0]
    assert (found_ids, found_speakers) == (IDS, SPEAKERS)
    assert [Path(path).name for path in recordings] == [f"{name}.wav" for name in IDS]
    verdict = Verdict.read(noted.verdict)
    assert verdict.clustered_by == "recording"
    sentences = verdict.sentences
    assert sentences[0] == HEADLINES["eval.other_manifest"].no_evidence
    assert noted.told[-len(sentences) :] == sentences
    metrics = EvalMetrics.read(noted.verdict.with_name("metrics.json"))
    text_use = noted.losses[0].text_use()
    # 1024 codes, and both ends of a stream
    assert noted.judged == [(metrics.adapter.eval_audio_loss, 1026, text_use)]


def test_base_and_adapter_are_both_scored_on_swapped_texts(
    corpus: PackedCorpus, noted: Noted
) -> None:
    base = DualLossModel(load_base(Pretrained("base_model", str(corpus.base)), torch.float32))
    speakers = dict(zip(IDS, SPEAKERS, strict=True))
    rows = OtherTexts(PackedRows(corpus.eval_rows), speakers, base.place_of_text)
    expected = held_out_sums(base, rows, Accelerator(cpu=True), 1)
    [losses] = noted.losses
    for sums, of_base, of_adapter in zip(
        expected.values(), losses.base_other_text, losses.adapter_other_text, strict=True
    ):
        assert torch.allclose(sums.loss, of_base.loss)
        assert not torch.allclose(sums.loss, of_adapter.loss)


def test_a_row_of_clips_has_the_values_of_both_models() -> None:
    """A dialogue's target: 4 nats over 2 text labels, 3 and 6 over 3 labels of two codebooks."""
    turns = [{"speaker": "ada", "duration_seconds": 2.0}, {"speaker": "ben", "duration_seconds": 3}]
    named: Any = {"clip_id": "a", "speaker": "ada", "language": "de", "duration_seconds": 2.0}
    sample: Any = SimpleNamespace(sample_id="a")
    text = "[SPEAKER0] Yes.\n[SPEAKER1] No."
    described = evaluate._described(HeldOutSample(sample, named, "dialogue", text, tuple(turns)))
    assert described == {
        **{"clip_id": "a", "task": "dialogue", "text": text, "speaker": "ada, ben"},
        **{"language": "de", "duration_seconds": 5},
    }
    count = torch.tensor([2.0, 3.0, 3.0, 2.0])
    adapter, base = (
        FrameLosses(LossSums(loss, count), np.ones(2), np.ones(2), at_end, before_end)
        for loss, at_end, before_end in (
            (torch.tensor([4.0, 3.0, 6.0, 1.0]), 0.75, 0.125),
            (torch.tensor([6.0, 9.0, 6.0, 8.0]), 0.25, 0.5),
        )
    )
    alone = Clusters.of(["a"], [None], [None])
    losses = ClipLosses([described], alone, [adapter], [base], [adapter.sums], [base.sums])
    [row] = evaluate.clip_rows(losses)
    assert row == {
        **{"clip_id": "a", "speaker": "ada, ben", "language": "de", "task": "dialogue"},
        **{"adapter_loss": 3.5, "adapter_text_loss": 2.0, "adapter_audio_loss": 1.5},
        **{"adapter_stop_loss": 0.5, "adapter_stop_at_end": 0.75},
        **{"adapter_stop_before_end": 0.125, "base_loss": 5.5, "base_text_loss": 3.0},
        **{"base_audio_loss": 2.5, "base_stop_loss": 4.0, "base_stop_at_end": 0.25},
        **{"base_stop_before_end": 0.5, "num_text_labels": 2, "num_audio_labels": 6},
    }
    without = [replace(m, sums=replace(m.sums, has_text=False)) for m in (adapter, base)]
    parts: Any = {"adapter": without[:1], "base": without[1:]}
    [row] = evaluate.clip_rows(replace(losses, **parts))
    assert (row["adapter_loss"], row["adapter_text_loss"], row["num_text_labels"]) == (1.5, *NONE)


def test_the_losses_of_both_models_are_written_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip of 2 text labels and 3 of one codebook, one of them its end."""
    monkeypatch.setattr(logging.getLogger("higgs_pipe"), "propagate", True)
    count, correct = torch.tensor([2.0, 3.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    both = []
    for loss in ([4.0, 3.0, 0.5], [6.0, 9.0, 2.0]):
        sums = LossSums(torch.tensor(loss), count, correct)
        both.append(FrameLosses(sums, np.ones((3, 1)), np.ones((3, 1)), 0.5, 0.25))
    adapter, base = both
    clip = {"clip_id": "a", "text": "Yes.", "speaker": None, "language": None, "task": "speech"}
    losses = ClipLosses(
        clips=[clip | {"duration_seconds": 1.0}],
        clusters=Clusters.of(["a"], [None], [None]),
        adapter=[adapter],
        base=[base],
        adapter_other_text=[adapter.sums],
        base_other_text=[base.sums],
    )
    without_text = replace(base.sums, has_text=False)
    ancestor = evaluate.summarize({"a": without_text})
    with caplog.at_level(logging.INFO, logger="higgs_pipe"):
        metrics = evaluate.write_losses(tmp_path, losses, ancestor)
    assert [record.getMessage() for record in caplog.records] == [
        "adapter   eval_loss 3.0000  text 2.0000  audio 1.0000  stop 0.5000  (1 clips)",
        "base      eval_loss 6.0000  text 3.0000  audio 3.0000  stop 2.0000  (1 clips)",
        "ancestor  eval_loss 3.0000  audio 3.0000  stop 2.0000  (1 clips)",
    ]
    assert EvalMetrics.read(tmp_path / "metrics.json") == metrics
    assert (metrics.adapter.eval_loss, metrics.base.eval_loss) == (3, 6)
    assert metrics.ancestor == ancestor
    assert metrics.adapter.eval_text_accuracy == 0.5


def test_spoken_takes_are_measured_and_written(tmp_path: Path) -> None:
    """Six prompts of five speakers: their clusters are the speakers'."""
    seen: list[Any] = []
    measures: Any = [{"stop_rate": None}, {"runaway_rate": None}]

    class Spoken:
        prompts: ClassVar[list[Any]] = [
            SimpleNamespace(
                sample=SimpleNamespace(sample_id=f"clip {number}"),
                clip={"audio_path": f"{number}.wav", "speaker": speaker},
            )
            for number, speaker in enumerate("abcdee")
        ]

        def listen(self, listener: Any) -> None:
            seen.append(listener)

        def totals(self, clusters: Clusters) -> list[VoiceTotals]:
            seen.append((clusters.by, clusters.index.tolist()))
            return [VoiceTotals(voice=RECORDING, temperature=None, measures={})]

        def differences(self, clusters: Clusters) -> list[VoiceDifferences]:
            seen.append((clusters.by, clusters.index.tolist()))
            both = zip((0.5, 1.0), measures, strict=True)
            return [VoiceDifferences(temperature=t, measures=found) for t, found in both]

        def write(self, folder: Path) -> None:
            (folder / "01-base.wav").touch()

        def rows(self) -> list[dict[str, Any]]:
            return []

    settings = EvaluateConfig(
        num_prompts=9, max_seconds=3.0, seed=4, speech_models={"asr": "some/asr"}
    )
    spoken: Any = Spoken()
    listener: Any = "the listener"
    folders = tmp_path / "eval", tmp_path / "samples"
    assert evaluate.write_speech(*folders, spoken, settings, listener, 2) == measures[0]
    by_speaker = ("speaker", [0, 1, 2, 3, 4, 4])
    assert seen == ["the listener", by_speaker, by_speaker]
    found = Generation.read(tmp_path / "eval/generation.json")
    assert (found.num_prompts, found.num_too_long, found.seed) == (6, 2, 4)
    assert found.max_seconds == 3
    assert found.speech_models == {"asr": "some/asr", "speaker": None, "dnsmos": None}
    assert [each.temperature for each in found.differences] == [0.5, 1.0]
    assert [path.name for path in folders[1].iterdir()] == ["01-base.wav"]


def test_a_held_out_dialogue_excludes_turns_of_the_training_split(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    turns = {"clip-03": {"turn": 1}, "clip-04": {"turn": 2}, "clip-09": {"turn": 3}}  # 4: training
    changed = corpus.changed(
        tmp_path, {name: turn | {"dialogue_id": "d"} for name, turn in turns.items()}
    )
    prompt = SimpleNamespace(audio_input_ids=np.zeros((0, 8)))
    packed: Any = SimpleNamespace(sample_id="clip-03", codes=np.zeros((999, 8)), prompt=prompt)
    found = HeldOutClips.read(changed.clips).sample(packed, frame_rate_hz=25.0)
    assert [clip["clip_id"] for clip in found.recordings] == ["clip-03", "clip-09"]


def test_measures_of_a_voice_are_looked_up_by_temperature() -> None:
    voices = [
        VoiceTotals(voice=voice, temperature=temperature, measures={str(number): None})
        for number, (voice, temperature) in enumerate(
            [(RECORDING, None), (BASE, 1.0), (ADAPTER, 1.0), (BASE, 0.5), (ADAPTER, 0.5)]
        )
    ]
    settings: Any = {"num_prompts": 1, "num_too_long": 0, "max_seconds": 1.0, "seed": 0}
    spoken = Generation(**settings, speech_models={}, voices=voices, differences=[])
    found = [spoken.totals(ADAPTER, t) for t in (None, 1.0, 0.5, 0.7)]
    assert found == [{"2": None}, {"2": None}, {"4": None}, {}]
    assert spoken.totals(RECORDING) == {"0": None}


def test_temperature_0_is_listed_among_the_spoken_temperatures() -> None:
    rows = [{"temperature": temperature} for temperature in (None, 0.0, 1.0, 0.0)]
    assert temperatures_of(rows) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("overall", "refused_by"),
    [("better", []), ("no evidence", ["better"]), ("worse", ["better", "not_worse"])],
)
def test_an_adapter_needs_the_required_verdict(
    tmp_path: Path, overall: str, refused_by: list[str]
) -> None:
    verdict = {
        "overall": overall,
        "sentences": ["Said.", "Meant."],
        "clustered_by": "clip",
        "measures": [],
    }
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    for required in (None, "not_worse", "better"):
        config = write_stage_config(tmp_path / "accept.json", eval={"require": required})
        accepted = tmp_path / f"{required}.txt"
        if required in refused_by:
            with pytest.raises(UserError, match=f"eval.require is {required}"):
                accept.run(config, tmp_path / "verdict.json", accepted)
            assert not accepted.exists()
        else:
            accept.run(config, tmp_path / "verdict.json", accepted)
            assert accepted.read_text() == "Said.\nMeant.\n"
