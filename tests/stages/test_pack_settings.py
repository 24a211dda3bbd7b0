"""Settings of pack, each tested by the texts and recordings of the packed samples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from trainings import PackedCorpus
from transformers import AutoTokenizer

from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.specs import codes_spec
from higgs_pipe.data.tables import read_codec_info, write_table
from higgs_pipe.errors import UserError

CLONING_ONLY = {"speech": 0, "cloning": 1}
SAID = "held for a while"  # the texts have no full stop


def prompts(packed: Path, base: Path) -> dict[str, str]:
    """The text of each training sample by its id."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = {}
    for row in pq.read_table(packed / "train.parquet").to_pylist():
        start = 0
        for sample_id, length in zip(row["sample_ids"], row["sample_lengths"], strict=True):
            found[sample_id] = tokenizer.decode(row["input_ids"][start : start + length])
            start += length
    return found


def packed_with(corpus: PackedCorpus, folder: Path, **settings: Any) -> dict[str, str]:
    corpus.pack(folder, **settings)
    return prompts(folder, corpus.base)


def test_reference_text_is_never_cleaned(corpus: PackedCorpus, tmp_path: Path) -> None:
    for text in packed_with(corpus, tmp_path, tasks=CLONING_ONLY).values():
        assert text.count(f"{SAID}<|eot_id|>") == 1
        assert text.index(f"{SAID}<|eot_id|>") < text.index(f"{SAID}.<|eot_id|>")


def test_texts_stay_unchanged_when_clean_text_is_off(corpus: PackedCorpus, tmp_path: Path) -> None:
    texts = packed_with(corpus, tmp_path, tasks=CLONING_ONLY, clean_text=False).values()
    assert {text.count(f"{SAID}<|eot_id|>") for text in texts} == {2}


def test_clean_text_applies_to_the_user_turns_of_a_conversation(
    corpus: PackedCorpus, tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "parts": [{"text": "Who（is）it"}], "is_target": False},
        {"role": "assistant", "parts": [{"clip_id": "clip-01"}], "is_target": True},
    ]
    talk = corpus.changed(tmp_path, {"clip-01": {"conversation": json.dumps(turns)}})
    for clean_text, said in ((True, "Who is it."), (False, "Who（is）it")):
        found = packed_with(talk, tmp_path / f"{clean_text}", clean_text=clean_text)
        assert f"{said}<|eot_id|>" in found["clip-01"]


def is_cloning(prompt: str) -> bool:
    return prompt.count("<|start_header_id|>assistant") == 2


def test_another_seed_draws_other_tasks(corpus: PackedCorpus, tmp_path: Path) -> None:
    drawn = [
        {
            name: is_cloning(prompt)
            for name, prompt in packed_with(corpus, tmp_path / f"{seed}", seed=seed).items()
        }
        for seed in range(3)
    ]
    assert drawn[0] != drawn[1] != drawn[2]
    assert {True, False} == set(drawn[0].values())


def test_another_seed_draws_other_references(corpus: PackedCorpus, tmp_path: Path) -> None:
    drawn = [
        packed_with(corpus, tmp_path / f"{seed}", seed=seed, tasks=CLONING_ONLY)
        for seed in range(3)
    ]
    assert drawn[0] != drawn[1] != drawn[2]


def test_the_seed_decides_the_order_of_rows(corpus: PackedCorpus, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 3):
        folder = tmp_path / f"{seed}"
        corpus.pack(folder, max_tokens=256, seed=seed, tasks={"cloning": 0})
        rows = pq.read_table(folder / "train.parquet")["sample_ids"].to_pylist()
        first = [sample_ids[0] for sample_ids in rows]
        assert first == sorted(first, key=lambda name: unit_hash("row", seed, name))
        orders.append(first)
    assert orders[0] != orders[1]


# Ten of the eleven clips to train on.
DIALOGUES = {
    f"clip-{clip:02d}": {"dialogue_id": f"{number}", "turn": turn, "scene": "A hall."}
    for number, pair in enumerate([(0, 1), (2, 4), (5, 7), (8, 10), (11, 12)])
    for turn, clip in enumerate(pair)
}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("speech", {"speech": 11}),
        ("cloning", {"cloning": 11}),
        ("dialogue", {"dialogue": 5, "cloning": 1}),
        ("dialogue_cloning", {"dialogue_cloning": 5, "cloning": 1}),
    ],
)
def test_samples_get_the_task_with_the_dominant_weight(
    corpus: PackedCorpus, tmp_path: Path, task: str, expected: dict[str, int]
) -> None:
    """Single-clip tasks split the dialogues into their turns."""
    inputs = corpus.changed(tmp_path, DIALOGUES)
    weights = {"cloning": 1000, task: 10**6}
    found = inputs.pack(tmp_path / "packed", max_tokens=1024, tasks=weights)["train"]["tasks"]
    assert {name: number for name, number in found.items() if number} == expected


def test_scene_dropout_applies_to_dialogues(corpus: PackedCorpus, tmp_path: Path) -> None:
    inputs = corpus.changed(tmp_path, DIALOGUES)
    settings: Any = {"max_tokens": 1024, "tasks": {"dialogue": 10**6}}
    for share, num_scenes in ((0, 5), (1, 0)):
        texts = packed_with(inputs, tmp_path / f"{share}", **settings, scene_dropout=share)
        spoken = [text for text in texts.values() if "[SPEAKER0]" in text]
        assert len(spoken) == 5
        assert sum("A hall." in text for text in spoken) == num_scenes


@pytest.mark.parametrize("dropout", ["scene_dropout", "reference_dropout"])
def test_a_dropout_removes_its_share_as_the_seed_decides(
    corpus: PackedCorpus, tmp_path: Path, dropout: str
) -> None:
    part = "<|scene_desc_start|>" if dropout == "scene_dropout" else f"{SAID}<|eot_id|>"
    scenes = {f"clip-{n:02d}": {"scene": "A hall."} for n in range(14)}
    inputs = corpus.changed(tmp_path, scenes)
    found = []
    changes: Any = ({}, {dropout: 1}, {dropout: 0.5}, {dropout: 0.5, "seed": 1})
    for number, settings in enumerate(changes):
        folder = tmp_path / f"{number}"
        prompts = packed_with(inputs, folder, tasks=CLONING_ONLY, **settings)
        found.append({name for name, prompt in prompts.items() if part in prompt})
    everything, nothing, half, other_half = found
    assert (len(everything), len(nothing)) == (11, 0)
    assert 0 < len(half) < 11
    assert half != other_half


@pytest.mark.parametrize(
    ("key", "found", "other"), [("num_codebooks", 8, 7), ("codebook_size", 1024, 2048)]
)
def test_codes_of_a_codec_that_does_not_fit_the_base_are_refused(
    corpus: PackedCorpus, tmp_path: Path, key: str, found: int, other: Any
) -> None:
    (tmp_path / "data").symlink_to(corpus.directory / "data")
    for path in corpus.codes_dir.glob("*.parquet"):
        info = read_codec_info(path)
        assert getattr(info, key) == found
        info = replace(info, **{key: other})
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["codes"] = [frame[: info.num_codebooks] for frame in row["codes"]]
        spec = codes_spec(info.num_codebooks)
        write_table(tmp_path / "codes" / path.name, spec, rows, info.as_metadata())
    with pytest.raises(UserError, match=f"codec .* {other} .* base model expects"):
        PackedCorpus(tmp_path, corpus.base).pack(tmp_path / "packed")
