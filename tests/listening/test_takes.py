"""The recordings of prompts, as the codec got them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers import PackedCorpus

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow
from higgs_pipe.higgs.codes import delay
from higgs_pipe.higgs.generation import recorded_samples
from higgs_pipe.higgs.renderers import renderer_of
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


@pytest.mark.parametrize("base", ["tiny_base", "v3_base"])
def test_each_reference_of_a_prompt_is_decoded(
    request: pytest.FixtureRequest, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = renderer_of(Pretrained("base", str(request.getfixturevalue(base)))).shape
    codes = [np.full((n, 8), n, np.int16) for n in (3, 5, 4)]
    parts = [delay([part], 1024, 1025, shape.num_margin_frames) for part in codes]
    ids = [[9, *[shape.audio_token_id] * len(part)] for part in parts]
    labels = [np.full_like(part, -100) for part in parts[:2]]
    row = PackedRow(
        np.concatenate(ids).astype(np.int32),
        np.full(sum(map(len, ids)), -100, np.int32),
        np.concatenate(parts),
        np.concatenate([*labels, parts[2]]),
        ("a",),
        np.array([sum(map(len, ids))], np.int32),
    )
    [sample] = recorded_samples(row, shape)
    monkeypatch.setattr(takes, "decode", lambda codec, part, info: part)
    prompt: Any = SimpleNamespace(sample=sample)
    nothing: Any = None
    found = takes.references_of(prompt, nothing, nothing)
    assert [part.tolist() for part in found] == [part.tolist() for part in codes[:2]]
    assert sample.codes.tolist() == codes[2].tolist()
