"""Facts about a packed held-out sample: task, words and recordings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from higgs_pipe.config.settings import EvaluateConfig, Sampling
from higgs_pipe.data.conversation import ClipId, Conversation, Turn
from higgs_pipe.listening import held_out, speaking
from higgs_pipe.listening.held_out import HeldOutClips, HeldOutSample, read_samples
from higgs_pipe.listening.speaking import choose_prompts, speak_prompts

RATE_HZ = 25.0
TOO_LONG = {"a": 24, "b": 25, "c": 26}  # frames; all but a and b


def clip(clip_id: str, **columns: Any) -> dict[str, Any]:
    """A row of CLIPS of 1.3 s, which is 33 codec frames."""
    unknown = dict.fromkeys(("speaker", "language", "dialogue_id", "turn", "conversation"))
    return unknown | {"clip_id": clip_id, "text": clip_id, "duration_seconds": 1.3} | columns


def packed(clip_id: str, num_frames: int, num_reference_frames: int = 0) -> Any:
    prompt = SimpleNamespace(audio_input_ids=np.zeros((num_reference_frames, 8)))
    codes = np.zeros((num_frames, 8), np.int16)
    return SimpleNamespace(sample_id=clip_id, codes=codes, prompt=prompt)


TURNS = [
    clip("z", speaker="ben", dialogue_id="d", turn=2),
    clip("a", speaker="zoe", dialogue_id="d", turn=1),
    clip("c", speaker="ben", dialogue_id="d", turn=3),
]


@pytest.mark.parametrize(
    ("num_frames", "num_reference_frames", "task"),
    [(34, 0, "speech"), (33, 40, "cloning"), (99, 0, "dialogue"), (99, 40, "dialogue_cloning")],
)
def test_a_turn_packed_on_its_own_is_not_a_dialogue(
    num_frames: int, num_reference_frames: int, task: str
) -> None:
    sample = packed("a", num_frames, num_reference_frames)
    found = HeldOutClips(TURNS).sample(sample, RATE_HZ)
    assert found.task == task
    assert [c["clip_id"] for c in found.recordings] == (["a"] if num_frames < 99 else [*"azc"])


def test_the_words_of_a_dialogue_are_in_turn_order_without_tags() -> None:
    found = HeldOutClips(TURNS).sample(packed("a", 99), RATE_HZ)
    assert found.text == "[SPEAKER0] a\n[SPEAKER1] z\n[SPEAKER1] c"
    assert (found.words, found.speakers) == ("a\nz\nc", "zoe, ben")
    assert found.duration_seconds == pytest.approx(3.9)
    assert not found.has_one_voice


@pytest.mark.parametrize(
    ("text", "has_one_voice", "words"),
    [
        ("Yes.", True, "Yes."),
        ("[SPEAKER0] Yes.\n[SPEAKER0] No.", True, "Yes.\nNo."),
        ("[SPEAKER0] Yes.\n[SPEAKER12] No.", False, "Yes.\nNo."),
    ],
)
def test_a_text_of_several_turns_may_have_one_voice(
    text: str, has_one_voice: bool, words: str
) -> None:
    sample = HeldOutSample(packed("a", 33), clip("a"), "speech", text, (clip("a"),))
    assert (sample.has_one_voice, sample.words) == (has_one_voice, words)


def test_the_first_target_of_a_conversation_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recordings of its turns are in no split of their own."""
    turns: tuple[Turn[ClipId], ...] = (
        Turn("user", (ClipId("u"), "First.")),
        Turn("assistant", (ClipId("r"),), is_target=True),
        Turn("user", ("Last.",)),
        Turn("assistant", (ClipId("x"),), is_target=True),
    )
    row = clip("x", text="Last.", conversation=Conversation(turns).to_json())
    rows = [row | {"split": "eval"}, clip("r", duration_seconds=0.5, split="reference")]
    monkeypatch.setattr(held_out, "read_table", lambda *_: pa.Table.from_pylist(rows))
    found = HeldOutClips.read(Path("clips.parquet")).sample(packed("x", 12), RATE_HZ)
    assert (found.task, found.text) == ("conversation", "First.")
    assert [each["clip_id"] for each in found.recordings] == ["r"]
    assert found.duration_seconds == 0.5


def test_samples_of_all_rows_are_read_in_the_order_of_their_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Rows(list[Any]):
        codec_info = SimpleNamespace(frame_rate_hz=RATE_HZ)

    monkeypatch.setattr(held_out, "recorded_samples", lambda row, config: row)
    rows: Any = Rows([[packed("c", 9), packed("a", 9)], [packed("b", 9)]])
    texts = {"a": "3", "b": "2", "c": "1"}
    clips = HeldOutClips([clip(name, text=text) for name, text in texts.items()])
    found = read_samples(rows, clips, config=None)
    assert {each.sample.sample_id: each.text for each in found} == texts
    assert [each.sample.sample_id for each in found] == [*"abc"]


def test_a_clip_exactly_as_long_as_the_cap_is_spoken() -> None:
    samples: list[Any] = [SimpleNamespace(sample=packed(name, n)) for name, n in TOO_LONG.items()]
    found = choose_prompts(samples, num_prompts=9, max_frames=25.0)
    assert {each.sample.sample_id for each in found.chosen} == {"a", "b"}
    assert found.num_too_long == 1
    assert choose_prompts(samples, num_prompts=0, max_frames=25.0).num_too_long == 0


def test_prompts_are_drawn_from_all_clips_and_not_the_first_by_name() -> None:
    names = [f"clip-{number:02d}" for number in range(40)]
    samples: list[Any] = [SimpleNamespace(sample=packed(name, 9)) for name in names]
    drawn = choose_prompts(samples, num_prompts=10, max_frames=25.0).chosen
    again = choose_prompts(samples[::-1], num_prompts=10, max_frames=25.0).chosen
    ids = [each.sample.sample_id for each in drawn]
    assert ids == [each.sample.sample_id for each in again]
    assert set(ids) & set(names[20:])
    assert ids != sorted(ids)


def test_each_process_speaks_its_share_and_results_are_gathered_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This is the second of two processes; a duplicate temperature is spoken once."""
    asked: list[Any] = []

    def speak(*arguments: Any) -> list[str]:
        *models, prompts, sampling, batch_size = arguments
        asked.append((models, prompts, sampling, batch_size))
        return [f"{prompt} at {sampling.temperature}" for prompt in prompts]

    def gather(found: list[Any]) -> list[Any]:
        others = [(t, n, f"prompt {n} at {t}") for t in (0.5, 0.0) for n in (0, 2, 4)]
        return others + found

    monkeypatch.setattr(speaking, "speak", speak)
    monkeypatch.setattr(speaking, "gather_object", gather)
    prompts: Any = [SimpleNamespace(sample=SimpleNamespace(prompt=f"prompt {n}")) for n in range(5)]
    settings = EvaluateConfig(
        temperatures=[0.5, 0.0, 0.5], max_seconds=3.0, seed=7, prompts_per_batch=4
    )
    second: Any = SimpleNamespace(process_index=1, num_processes=2)
    model: Any = "model"
    codec: Any = "codec"
    info: Any = "info"
    found: Any = speak_prompts(model, codec, info, prompts, settings, second)
    assert found == {t: [f"prompt {n} at {t}" for n in range(5)] for t in (0.5, 0.0)}
    samplings = [Sampling(temperature=t, max_seconds=3.0, seed=7) for t in (0.5, 0.0)]
    assert asked == [
        (["model", "codec", "info"], ["prompt 1", "prompt 3"], each, 4) for each in samplings
    ]
