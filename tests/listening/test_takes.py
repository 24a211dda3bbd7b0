"""The recordings of prompts, as the codec got them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers import PackedCorpus

from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codes import delay
from higgs_pipe.listening import takes
from higgs_pipe.listening.takes import Takes, recording_of

RATE = 24_000
WHOLE = {"start_seconds": None, "end_seconds": None, "channel": None}


@pytest.fixture
def stereo(tmp_path: Path) -> dict[str, Any]:
    """A recording whose channels cancel in their mean, the second louder."""
    sound = 0.2 * np.random.default_rng(0).standard_normal(2 * RATE)
    sf.write(tmp_path / "a.wav", np.stack([-0.5 * sound, sound], axis=1), RATE, subtype="FLOAT")
    return WHOLE | {"audio_path": str(tmp_path / "a.wav")}


def test_a_recording_is_heard_by_the_channel_that_was_encoded(
    corpus: PackedCorpus, stereo: dict[str, Any]
) -> None:
    info = read_codec_info(corpus.eval_rows)
    left, right = sf.read(stereo["audio_path"], dtype="float32")[0].T
    assert np.allclose(recording_of([stereo], info), (left + right) / 2)
    assert np.array_equal(recording_of([stereo | {"channel": 1}], info), right)


def test_a_segment_is_heard_without_the_codecs_padding(
    corpus: PackedCorpus, stereo: dict[str, Any]
) -> None:
    info = read_codec_info(corpus.eval_rows)
    part = stereo | {"channel": 0, "start_seconds": 0.5, "end_seconds": 1.01}
    left = sf.read(stereo["audio_path"], dtype="float32")[0][:, 0]
    assert np.array_equal(recording_of([part], info), left[12_000:24_240])


def test_a_recording_that_is_gone_names_the_rule(corpus: PackedCorpus, tmp_path: Path) -> None:
    clip = WHOLE | {"audio_path": str(tmp_path / "gone.wav")}
    with pytest.raises(UserError, match=r"gone\.wav does not exist; .*--forcerun list_rows"):
        recording_of([clip], read_codec_info(corpus.eval_rows))


def test_a_speakers_other_recordings_are_those_of_other_prompts() -> None:
    def prompt(speakers: str | None, has_one_voice: bool = True) -> Any:
        return SimpleNamespace(speakers=speakers, has_one_voice=has_one_voice)

    prompts = [prompt("ada"), prompt("ben"), prompt("ada"), prompt("ada", False), prompt(None)]
    spoken: Any = Takes(prompts, info=None, takes={}, references=[])  # type: ignore[arg-type]
    heard: Any = ["0", "1", "2", "3", "4"]
    assert [spoken._others(number, heard) for number in range(5)] == [["2"], [], ["0"], [], []]


def test_each_reference_of_a_prompt_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [np.full((n, 8), n, np.int16) for n in (3, 5)]
    delayed = np.concatenate([delay([part], 1024, 1025) for part in codes])
    sample = SimpleNamespace(prompt=SimpleNamespace(audio_input_ids=delayed))
    monkeypatch.setattr(takes, "decode", lambda codec, part, info: part)
    prompt: Any = SimpleNamespace(sample=sample)
    nothing: Any = None
    found = takes.references_of(prompt, nothing, nothing)
    assert [part.tolist() for part in found] == [part.tolist() for part in codes]
