"""Higgs TTS 3 compared with mlx-audio on the same random model.

``tests/oracles/make_mlx_audio_v3.py`` made the numbers, and says how.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import tiny_v3
from safetensors.numpy import save_file

from higgs_pipe.config.settings import Sampling
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.codes import Codes, delay
from higgs_pipe.higgs.generation import generate
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.prompts import ModelPrompt
from higgs_pipe.higgs.v3.generation import generated_codes, num_codec_frames
from higgs_pipe.higgs.v3.native import parts_of, shape_of

BOC, EOC = tiny_v3.BOC, tiny_v3.EOC
GREEDY = Sampling(temperature=0, max_seconds=(tiny_v3.MAX_ROWS - 7) / 25)
EVERY = 57  # of the entries


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    path = Path(tiny_v3.__file__).with_name("mlx_audio_v3.npz")
    with np.load(path) as vectors:
        return dict(vectors)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny-v3")
    (folder / "config.json").write_text(json.dumps(tiny_v3.config()))
    save_file(tiny_v3.weights(), folder / "model.safetensors", {"format": "pt"})
    return load_base(Pretrained("base_model", str(folder)), torch.float32).eval()


def rows_of(codes: Codes) -> Codes:
    return delay([codes], BOC, EOC, 0)


def prompt_of(native: Any, text: str, reference: Codes | None) -> ModelPrompt:
    """A prompt as mlx-audio writes it; a text has a token per byte."""
    ids, frames = [tiny_v3.PROMPT_TOKENS["<|tts|>"]], np.empty((0, 8), np.int16)
    if reference is not None:
        frames = rows_of(reference)
        ids += [tiny_v3.PROMPT_TOKENS["<|ref_text|>"], *tiny_v3.REFERENCE_TEXT.encode()]
        ids += [tiny_v3.PROMPT_TOKENS["<|ref_audio|>"]]
        ids += [shape_of(native.config).audio_token_id] * len(frames)
    ids += [tiny_v3.PROMPT_TOKENS["<|text|>"], *text.encode(), tiny_v3.PROMPT_TOKENS["<|audio|>"]]
    return ModelPrompt(np.array(ids, np.int32), frames)


@torch.no_grad()
def logits_of(native: Any, prompt: ModelPrompt, target: Codes) -> torch.Tensor:
    """The logits (P, K, V) at each position of a prompt with its target."""
    parts, shape = parts_of(native), shape_of(native.config)
    is_audio = torch.from_numpy(prompt.input_ids == shape.audio_token_id)
    ids = torch.from_numpy(prompt.input_ids.astype(np.int64)).masked_fill(is_audio, 0)
    embedded = parts.embed_text(ids)
    embedded[is_audio] = parts.embed_audio(torch.from_numpy(prompt.audio_input_ids).long())
    embedded = torch.cat([embedded, parts.embed_audio(torch.from_numpy(target).long())])
    hidden = parts.body(inputs_embeds=embedded[None]).last_hidden_state[0]
    return parts.audio_head(hidden).view(-1, shape.num_codebooks, shape.codebook_size)


def test_logits_and_losses_match_mlx_audio(native: Any, theirs: Any) -> None:
    prompt = prompt_of(native, tiny_v3.TEXTS[0], tiny_v3.codes(9, seed=1))
    target = rows_of(tiny_v3.codes(22, seed=2))
    logits = logits_of(native, prompt, target)
    assert np.abs(logits[..., ::EVERY].numpy() - theirs["logits"]).max() <= 1e-5
    assert theirs["logits"].max() > 3
    first = len(prompt.input_ids) - 1  # <|audio|> predicts the first frame
    predictions = logits[first : first + len(target)].flatten(0, 1)
    labels = torch.from_numpy(target).long().flatten()
    losses = torch.nn.functional.cross_entropy(predictions, labels, reduction="none")
    assert np.abs(losses.view(-1, 8).numpy() - theirs["losses"]).max() <= 1e-5


def test_prompt_token_ids_match_mlx_audio(native: Any, theirs: Any) -> None:
    prompt = prompt_of(native, tiny_v3.TEXTS[0], tiny_v3.codes(9, seed=1))
    placeholder = shape_of(native.config).audio_token_id
    assert np.where(prompt.input_ids == placeholder, -100, prompt.input_ids).tolist() == (
        theirs["token_ids"].tolist()
    )


def test_generated_codes_and_stops_match_mlx_audio(native: Any, theirs: Any) -> None:
    expected = {}
    for number, text in enumerate(tiny_v3.TEXTS):
        for name, reference in (("speech", None), ("cloning", tiny_v3.codes(9, seed=1))):
            expected[f"generated_{number}_{name}"] = prompt_of(native, text, reference)
    found = generate(native, list(expected.values()), GREEDY, 25.0, batch_size=3)
    lengths = set()
    for name, generated in zip(expected, found, strict=True):
        rows = theirs[name]
        assert generated.has_stopped == (len(rows) < tiny_v3.MAX_ROWS)
        assert np.array_equal(generated.codes, plainly_undelayed(rows)), name
        lengths.add(len(generated.codes))
    assert len(lengths) >= 3  # the cap, and stops at different frames


def plainly_undelayed(rows: Codes) -> Codes:
    codes = [[int(rows[t + k, k]) for k in range(8)] for t in range(len(rows) - 7)]
    return np.array([[0 if code >= BOC else code for code in frame] for frame in codes], np.int16)


@pytest.mark.parametrize("name", tiny_v3.drawn())
def test_the_stopping_rule_matches_mlx_audio(theirs: Any, name: str) -> None:
    rows = theirs[f"replayed_{name}"]
    length = num_codec_frames(rows, EOC)
    found = generated_codes(rows, max_frames=len(rows) - 7, stream_eos=EOC)
    assert found.has_stopped == theirs[f"stopped_{name}"]
    assert np.array_equal(found.codes, plainly_undelayed(rows))
    # An EOC too close to the cap leaves codebooks unfinished.
    assert found.has_stopped == (length is not None and length <= len(rows) - 7)
