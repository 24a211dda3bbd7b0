"""The estimate of tokens, steps and memory, against what packing and the model itself count."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import has_line_with, write_stage_config
from real_shape import real_shape
from trainings import PackedCorpus

from higgs_pipe import estimate
from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import speech_conversation
from higgs_pipe.data.packing.turns import Recording
from higgs_pipe.higgs import text_tokens
from higgs_pipe.higgs.memory import MemoryFormula
from higgs_pipe.higgs.parameters import count_parameters, memory_formula
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.higgs.text_tokens import count_text_tokens
from higgs_pipe.higgs.v2 import miniature
from higgs_pipe.higgs.v2.miniature import AUDIO_TOKENIZER


def run(folder: Path, corpus: PackedCorpus, base: str, **sections: Any) -> dict[str, Any]:
    sections = {
        "codec": str(corpus.base / AUDIO_TOKENIZER),
        "pack": {"max_tokens": 512},
        **sections,
    }
    config = write_stage_config(folder / "estimate.json", base_model=base, **sections)
    data = corpus.directory / "data"
    estimate.run(config, data / "validation.json", corpus.clips, folder / "out.json")
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def only_base(found: dict[str, Any]) -> dict[str, Any]:
    """Return the estimate for the only base."""
    [base] = found["bases"]
    assert isinstance(base, dict)
    return base


def test_estimated_tokens_and_rows_are_close_to_packs(corpus: PackedCorpus, tmp_path: Path) -> None:
    packed = json.loads((corpus.directory / "packed/packing.json").read_text())["train"]
    found = only_base(run(tmp_path, corpus, str(corpus.base)))["train"]
    assert found["num_clips"] == packed["num_samples"]
    tokens = found["num_audio_frames"] + found["num_text_tokens"]
    assert tokens == pytest.approx(packed["num_tokens"], rel=0.1)
    assert found["num_packed_rows"] == pytest.approx(packed["num_rows"], abs=1)


def test_a_longer_system_message_and_faster_frames_are_counted(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    codec = Path(shutil.copytree(corpus.base / AUDIO_TOKENIZER, tmp_path / "codec"))
    plain = run(tmp_path, corpus, str(corpus.base), codec=str(codec))
    edited = json.loads((codec / "config.json").read_text())
    edited["acoustic_model_config"] |= {"downsampling_ratios": [8, 5, 2, 2, 3], "hop_length": 480}
    (codec / "config.json").write_text(json.dumps(edited))
    pack = {"max_tokens": 512, "system_prompt": "Speak slowly. " * 9}
    found = run(tmp_path, corpus, str(corpus.base), codec=str(codec), pack=pack)
    assert (plain["frame_rate_hz"], found["frame_rate_hz"]) == (25, 50)
    before, after = only_base(plain)["train"], only_base(found)["train"]
    assert after["num_text_tokens"] >= before["num_text_tokens"] + 11 * 8
    assert after["num_audio_frames"] > 1.5 * before["num_audio_frames"]


def test_the_reference_of_a_row_is_counted_with_it(corpus: PackedCorpus, tmp_path: Path) -> None:
    clips = [f"clip-{i:02d}" for i in range(14) if i not in (3, 6, 9)]
    changes = {clip: {"reference_id": "clip-03"} for clip in clips} | {
        "clip-03": {"split": "reference"}
    }
    bringing = corpus.changed(tmp_path, changes)
    packed = bringing.pack(tmp_path / "packed", max_tokens=512)["train"]
    assert packed["tasks"] == {"speech": 0, "cloning": 11}
    found = only_base(run(tmp_path, bringing, str(corpus.base)))["train"]
    tokens = found["num_audio_frames"] + found["num_text_tokens"]
    assert tokens == pytest.approx(packed["num_tokens"], rel=0.15)
    held_out = {"clip-06": {"reference_id": "clip-03"}}
    bringing = corpus.changed(tmp_path / "held out", changes | held_out)
    assert only_base(run(tmp_path, bringing, str(corpus.base)))["train"] == found


def test_frame_counts_include_the_margin_frames_of_each_family(
    corpus: PackedCorpus, v3_base: Path, tmp_path: Path
) -> None:
    v2, v3 = (
        only_base(run(tmp_path, corpus, str(base)))["train"]["num_audio_frames"]
        for base in (corpus.base, v3_base)
    )
    assert v2 - v3 == 11 * 1.5 * 2  # clips, half of them after a reference, at both ends


def test_tokens_around_the_texts_match_a_rendered_prompt(tiny_base: Path) -> None:
    renderer = renderer_of(Pretrained("base_model", str(tiny_base)))
    texts, recording = ["What is said.", "What the voice says."], Recording((0,))
    prompt = renderer.prompt(
        speech_conversation("Speak.", (), [(texts[1], recording)], texts[0], recording, str)
    )
    counted = count_text_tokens(texts, "Speak.", renderer)
    num_tokens = counted.texts + counted.per_sample + counted.per_reference
    assert num_tokens == len(prompt.ids) - 2  # a placeholder for each recording


def test_without_a_tokenizer_the_tokens_are_known_by_their_bytes() -> None:
    found = count_text_tokens(["äöüß", "Said."], "Speak.", None)
    assert (found.texts, found.per_sample, found.per_reference) == (3, 20 + 6 / 4, 13)


def test_the_tokens_of_all_batches_of_texts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenizer(texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[7] * (len(text) + add_special_tokens) for text in texts]}

    sizes = {0: 10, 1: 15}  # with a placeholder for each recording
    monkeypatch.setattr(text_tokens, "NUM_TEXTS_PER_BATCH", 2)
    monkeypatch.setattr(text_tokens, "_num_tokens", lambda _, __, number: sizes[number])
    renderer: Any = SimpleNamespace(tokenizer=tokenizer)
    found = count_text_tokens(["a", "bb", "ccc", "dddd", "eeeee"], "Speak.", renderer)
    assert (found.texts, found.per_sample, found.per_reference) == (15, 9, 4)


def test_each_experiment_has_its_own_steps_and_parameters(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    experiments = {"small": {"lora": {"r": 4}}, "long": {"num_epochs": 6, "lora": {"r": 8}}}
    train = {"rows_per_step": 2, "num_epochs": 3}
    settings = {"train": train, "experiments": experiments}
    found = only_base(run(tmp_path, corpus, str(corpus.base), **settings))
    small, long = (found["experiments"][name] for name in experiments)
    num_rows = found["train"]["num_packed_rows"]
    assert (small["num_steps"], long["num_steps"]) == (-(-num_rows // 2) * 3, -(-num_rows // 2) * 6)
    # By hand, of 2 layers: hidden 64, queries 64, keys and values 32, two FFNs of 128.
    sizes = [(64, 64), (64, 32), (64, 32), (64, 64), *[(64, 128), (64, 128), (128, 64)] * 2]
    by_hand = 2 * sum(4 * (inputs + outputs) for inputs, outputs in sizes)
    assert small["parameters"]["trainable"] == by_hand
    assert long["parameters"]["trainable"] == 2 * by_hand


def test_each_base_is_estimated_with_the_experiments_that_use_it(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    miniature.build(wide, hidden_size=128, num_layers=2, seed=1)
    experiments = {"a": {}, "b": {"base_model": str(wide), "seed": 1}, "c": {"seed": 2}}
    own, other = run(tmp_path, corpus, str(corpus.base), experiments=experiments)["bases"]
    assert (own["base_model"], [*own["experiments"]]) == (str(corpus.base), ["a", "c"])
    assert (other["base_model"], [*other["experiments"]]) == (str(wide), ["b"])
    narrow, broad = own["experiments"]["a"], other["experiments"]["b"]
    assert broad["parameters"]["base"] > 1.5 * narrow["parameters"]["base"]


def test_the_published_model_shape_has_the_published_size(tiny_base: Path) -> None:
    parameters = count_parameters(real_shape(tiny_base), TrainConfig())
    assert parameters.base == pytest.approx(5.77e9, rel=0.002)
    formula = memory_formula(real_shape(tiny_base), TrainConfig(), parameters.trainable, True)
    memory = formula.memory(2048, 28)
    assert memory.weights == pytest.approx(11.5e9 / 2**30, rel=0.01)
    parts = [gib for purpose, gib in memory.model_dump().items() if purpose != "total"]
    assert memory.total == pytest.approx(sum(parts))


@pytest.mark.parametrize(
    ("settings", "recomputed", "weights_gb", "activations_gb"),
    [
        # A layer has 6 x 3072 + 2 x 1024 + 4 x 8192 + 7 x 16 values of 2 bytes a position; without
        # compiled layers 1.60 times as much is kept, and 0.42 times as much in use.
        ({}, 0, 11.54, (28 * 1.6 + 0.42) * 53_360 * 2 * 2048 / 1e9),
        ({}, 14, 11.54, (14 * 3072 + (15 * 1.6 + 0.42) * 53_360) * 2 * 2048 / 1e9),
        # 4.93 of 5.77 thousand million parameters are matrices of the layers.
        ({"quantization": "8bit"}, 28, 11.54 - 4.93, None),
        ({"quantization": "4bit"}, 28, 11.54 - 1.5 * 4.93, None),
    ],
)
def test_memory_of_the_published_shape_matches_a_hand_calculation(
    tiny_base: Path,
    settings: dict[str, Any],
    recomputed: int,
    weights_gb: float,
    activations_gb: float | None,
) -> None:
    train = TrainConfig(**settings)
    found = memory_formula(real_shape(tiny_base), train, 10**7, is_compiled=False)
    assert found.weights == pytest.approx(weights_gb * 1e9, rel=0.01)
    if activations_gb is not None:
        activations = found.activations(2048, recomputed)
        assert activations == pytest.approx(activations_gb * 1e9, rel=0.01)
    assert found.logits == pytest.approx(64e6)
    memory = found.memory(2048, recomputed)
    assert memory.adapter_and_optimizer == pytest.approx(16 * 10**7 / 2**30)


def test_training_settings_change_the_memory_formula(tiny_base: Path) -> None:
    def formula(**settings: Any) -> MemoryFormula:
        train = TrainConfig.model_validate(settings)
        return memory_formula(real_shape(tiny_base), train, 10**7, is_compiled=False)

    plain = formula()
    assert formula(max_logits_mb=5).logits == pytest.approx(5e6)
    assert formula(dtype="float32").weights == pytest.approx(2 * plain.weights)
    ranks = 7 * (64 - 16) * 2 * 1.6  # more of the seven projections, kept in 2 bytes each
    assert formula(lora={"r": 64}).layer_kept - plain.layer_kept == pytest.approx(ranks)


# Values in the matrices of the miniature's layers: hidden 64, 2 layers, FFNs of 128.
MATRICES = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 6 * 64 * 128)


@pytest.mark.parametrize(
    ("lora", "num_trained"),
    [
        ({"target_modules": ["o_proj"]}, 2 * 16 * (64 + 64)),
        ({"target_modules": ["o_proj"], "r": 3}, 2 * 3 * (64 + 64)),
        ({"target_modules": ["o_proj"], "use_dora": True}, 2 * (16 * (64 + 64) + 64)),
        (
            {"target_modules": ["o_proj"], "train_in_full": ["audio_head"]},
            2 * 16 * (64 + 64) + 8 * 1026 * 64,
        ),
        (
            {"target_modules": ["o_proj"], "trainable_tokens": ["<|eot_id|>", "<|AUDIO|>"]},
            2 * 16 * (64 + 64) + 2 * 64,
        ),
    ],
    ids=str,
)
def test_trainable_parameters_match_a_hand_count(
    corpus: PackedCorpus, tmp_path: Path, lora: dict[str, Any], num_trained: int
) -> None:
    found = only_base(run(tmp_path, corpus, str(corpus.base), train={"lora": lora}))
    assert found["experiments"]["default"]["parameters"]["trainable"] == num_trained


def cards_of(corpus: PackedCorpus, folder: Path, **train: Any) -> list[dict[str, Any]]:
    found = only_base(run(folder, corpus, str(corpus.base), train=train))
    cards: list[dict[str, Any]] = found["experiments"]["default"]["cards"]
    return cards


def test_dtype_quantization_and_logits_budget_change_the_memory(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    def gib(purpose: str, **train: Any) -> float:
        [first, *_] = cards_of(corpus, tmp_path, **train)
        return float(first["memory_gib"][purpose])

    plain = gib("weights")
    assert gib("weights", dtype="float32") == pytest.approx(2 * plain)
    saved = {"8bit": 1.0, "4bit": 1.5}  # bytes of a value
    for kind, num_bytes in saved.items():
        less = plain - gib("weights", quantization=kind)
        assert less == pytest.approx(num_bytes * MATRICES / 2**30)
    assert gib("logits", max_logits_mb=5) == pytest.approx(5e6 / 2**30)


def test_activation_memory_is_proportional_to_max_tokens(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    train = {"rows_per_micro_batch": 1, "gradient_checkpointing": False, "compile": False}

    def gib(max_tokens: int) -> float:
        pack = {"max_tokens": max_tokens}
        found = only_base(run(tmp_path, corpus, str(corpus.base), pack=pack, train=train))
        return float(found["experiments"]["default"]["cards"][0]["memory_gib"]["activations"])

    assert gib(1024) == pytest.approx(4 * gib(256))


def test_the_forecast_follows_the_training_settings(corpus: PackedCorpus, tmp_path: Path) -> None:
    def values(key: str, **train: Any) -> set[Any]:
        return {card[key] for card in cards_of(corpus, tmp_path, **train)}

    for layers, expected in ((1, 1), (True, 2), (False, 0)):
        assert values("recomputed_layers", gradient_checkpointing=layers) == {expected}
    assert values("rows_per_micro_batch", rows_per_micro_batch=3) == {3}
    for is_on in (True, False):
        assert values("is_compiled", compile=is_on) == {is_on}
    alone, [two, *_] = cards_of(corpus, tmp_path)[0], cards_of(corpus, tmp_path, num_processes=2)
    assert two["dollars"] / two["hours"] == pytest.approx(2 * alone["dollars"] / alone["hours"])


def test_the_number_of_steps_follows_the_settings(corpus: PackedCorpus, tmp_path: Path) -> None:
    def steps(**train: Any) -> int:
        found = only_base(run(tmp_path, corpus, str(corpus.base), train=train))
        return int(found["experiments"]["default"]["num_steps"])

    assert steps(max_steps=7) == 7
    num_rows = steps(rows_per_step=1, num_epochs=1)
    assert num_rows > 3
    assert steps(rows_per_step=2, num_epochs=3) == 3 * -(-num_rows // 2)


def test_task_weights_and_reference_dropout_change_the_frame_count(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    """A clip's frames are counted twice if all samples have a reference, 1.5 times if half do."""

    def frames(dropout: float = 0, **tasks: float) -> int:
        pack = {"max_tokens": 512, "tasks": tasks, "reference_dropout": dropout}
        found = only_base(run(tmp_path, corpus, str(corpus.base), pack=pack))
        return int(found["train"]["num_audio_frames"])

    alone = frames(cloning=0)
    assert frames() == pytest.approx(1.5 * alone, abs=1)
    assert frames(speech=0) == pytest.approx(2 * alone, abs=1)
    assert frames(speech=3) == pytest.approx(1.25 * alone, abs=1)
    assert frames(0.25, speech=0) == pytest.approx(1.75 * alone, abs=1)


def test_longer_rows_mean_fewer_rows(corpus: PackedCorpus, tmp_path: Path) -> None:
    def num_rows(max_tokens: int) -> int:
        pack = {"max_tokens": max_tokens}
        found = only_base(run(tmp_path, corpus, str(corpus.base), pack=pack))
        return int(found["train"]["num_packed_rows"])

    assert num_rows(256) == pytest.approx(4 * num_rows(1024), abs=4)


def test_an_estimate_gives_memory_time_and_cost_per_card(
    corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("higgs_pipe").propagate = True
    with caplog.at_level("INFO", logger="higgs_pipe"):
        found = run(tmp_path, corpus, str(corpus.base), train={"compile": False})
    experiment = only_base(found)["experiments"]["default"]
    trainable, cards = experiment["parameters"]["trainable"], experiment["cards"]
    assert has_line_with(caplog.text, f"default: {experiment['num_steps']} steps", f"{trainable:,}")
    assert [card["memory_gb"] for card in cards] == [16, 24, 40, 48, 80, 141]
    assert all(card["fits"] and card["hours"] > 0 and card["dollars"] > 0 for card in cards)
    assert has_line_with(caplog.text, "141 GB (H200)", "rows at once, not compiled")
    assert "computed and not measured" in caplog.text


def test_an_unreachable_base_leaves_its_memory_unknown(
    corpus: PackedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("higgs_pipe").propagate = True
    nowhere = str(tmp_path / "nowhere")  # neither a folder nor a Hub id
    with caplog.at_level("INFO", logger="higgs_pipe"):
        found = run(tmp_path, corpus, nowhere, codec=nowhere)
    assert found["frame_rate_hz"] == 25
    assert f"{nowhere} cannot be read" in found["frame_rate_assumed_because"]
    known = run(tmp_path, corpus, str(corpus.base))  # of 8 codebooks, as those that are published
    assert known["frame_rate_assumed_because"] is None
    frames = [only_base(each)["train"]["num_audio_frames"] for each in (found, known)]
    assert frames[0] == frames[1]
    experiment = only_base(found)["experiments"]["default"]
    assert (experiment["parameters"], experiment["cards"]) == (None, [])
    assert f"{nowhere} cannot be read" in experiment["unknown_because"]
    assert f"GPU memory unknown: {nowhere} cannot be read" in caplog.text
    assert "hours kept" not in caplog.text  # validate has printed that table


def test_conversations_that_pack_would_reject_are_named_before_encoding(
    corpus: PackedCorpus,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "NUM_TEXTS_PER_BATCH", 2)
    sayable = '[{"role": "user", "parts": [{"text": "Hi"}], "is_target": false}, '
    sayable += '{"role": "assistant", "parts": [{"clip_id": "clip-01"}], "is_target": true}]'
    refused = '[{"role": "user", "parts": [{"clip_id": "%s"}], "is_target": false}]'
    changes = {"clip-01": {"conversation": sayable}} | {
        name: {"conversation": refused % name} for name in ("clip-02", "clip-04")
    }
    conversing = corpus.changed(tmp_path, changes)
    with caplog.at_level(logging.WARNING):
        found = run(tmp_path, conversing, str(corpus.base))
    messages = only_base(found)["not_in_chat_template"]
    for line, message in zip((3, 5), messages, strict=True):
        assert f"manifest.jsonl:{line}: the chat template gives 0 audio placeholders" in message
        assert message in caplog.text
    packed = conversing.pack(tmp_path / "packed", max_tokens=512)
    places = [rejected["message"].split(": ")[0] for rejected in packed["rejected"]]
    assert places == [message.split(": ")[0] for message in messages]
