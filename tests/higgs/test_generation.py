"""Generation: equal to the native model's, in any batch, and without effect on training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from reference import base_with_lora
from torch import nn
from trainings import PackedCorpus
from transformers import GenerationConfig

from higgs_pipe.config.settings import Sampling
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import PackedRows, collate
from higgs_pipe.higgs.generation import (
    RecordedSample,
    Spoken,
    generate,
    native_forward,
    recorded_samples,
)
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.prompts import ModelPrompt
from higgs_pipe.higgs.sampler import Sampler
from higgs_pipe.higgs.v2.generation import generate_batch, generated_codes
from higgs_pipe.higgs.v2.native import shape_of

RATE_HZ = 25.0
GREEDY = Sampling(temperature=0, max_seconds=1)
SAMPLED = Sampling(max_seconds=1)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Any:
    return load_base(Pretrained("base_model", str(tiny_base)), torch.float32)


@pytest.fixture(scope="module")
def samples(corpus: PackedCorpus, base: Any) -> list[RecordedSample]:
    """Prompts of several lengths, with and without a reference."""
    rows = PackedRows(corpus.train_rows)
    found = [s for i in range(len(rows)) for s in recorded_samples(rows[i], shape_of(base.config))]
    assert {len(s.prompt.audio_input_ids) > 0 for s in found} == {True, False}
    return found[:4]


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b)


def test_a_packed_sample_splits_into_its_prompt_and_its_recording(
    corpus: PackedCorpus, base: Any
) -> None:
    rows = PackedRows(corpus.train_rows)
    for row in (rows[i] for i in range(len(rows))):
        start = frame = 0
        for found, length in zip(
            recorded_samples(row, shape_of(base.config)), row.sample_lengths, strict=True
        ):
            ids = row.input_ids[start : start + length].tolist()
            bos = len(ids) - 1 - ids[::-1].index(base.config.audio_bos_token_id)
            assert found.prompt.input_ids.tolist() == ids[: bos + 1]
            num_prompt = len(found.prompt.audio_input_ids)
            frames = row.audio_input_ids[frame : frame + num_prompt + len(found.codes) + 9]
            assert equal(found.prompt.audio_input_ids, frames[:num_prompt])
            for k in range(8):
                first = num_prompt + k + 1
                assert equal(found.codes[:, k], frames[first : first + len(found.codes), k])
            start, frame = start + length, frame + len(frames)
        assert frame == len(row.audio_input_ids)


def native_codes(base: Any, prompt: ModelPrompt, num_steps: int) -> np.ndarray:
    """Return the codes of ``generate`` of Transformers: (G, K)."""
    inputs = {"input_ids": torch.from_numpy(prompt.input_ids.astype(np.int64))[None]}
    if num_frames := len(prompt.audio_input_ids):
        inputs["audio_input_ids"] = torch.from_numpy(prompt.audio_input_ids.astype(np.int64))[None]
        inputs["audio_input_ids_mask"] = torch.ones(1, num_frames, dtype=torch.bool)
    generated = base.generate(**inputs, max_new_tokens=num_steps, do_sample=False, ras_win_len=None)
    return generated[0, num_frames:].numpy()


def test_greedy_codes_match_native_generation(
    tiny_base: Path, samples: list[RecordedSample]
) -> None:
    base = load_base(Pretrained("base_model", str(tiny_base)), torch.float32)
    for k in range(8):  # the native generation may take stream BOS amid the codes
        base.audio_lm_head.weight[1026 * k + base.config.audio_stream_bos_id] = 0.0
    prompts = [sample.prompt for sample in samples]
    for prompt, found in zip(prompts, generate(base, prompts, GREEDY, RATE_HZ), strict=True):
        native = native_codes(base, prompt, 25 + 8 + 1)
        for k in range(8):
            assert equal(found.codes[:, k], native[k + 1 : k + 1 + len(found.codes), k])
        ends = [native[k + 1 + len(found.codes), k] for k in range(8)]
        assert found.has_stopped == (base.config.audio_stream_eos_id in ends)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(max_seconds=1, ras_win_len=0)])
def test_generation_does_not_depend_on_the_other_prompts_of_a_batch(
    base: Any, samples: list[RecordedSample], sampling: Any
) -> None:
    prompts = [sample.prompt for sample in samples]
    together = generate(base, prompts, sampling, RATE_HZ, batch_size=len(prompts))
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = generate(base, [prompt], sampling, RATE_HZ)
        assert equal(found.codes, alone.codes)
        assert found.has_stopped == alone.has_stopped


@pytest.mark.parametrize("max_frames", [1, 3])
def test_generation_runs_until_the_delayed_last_codebook_could_end(
    base: Any, samples: list[RecordedSample], max_frames: int
) -> None:
    [frames] = generate_batch(base, [samples[0].prompt], GREEDY, max_frames, "speaking")
    # BOS, the codes, 7 frames of delay, and the one that would tell that it has stopped.
    assert len(frames) == 1 + max_frames + 7 + 1


def test_the_seed_of_a_prompt_depends_on_its_whole_content() -> None:
    ids, frames = np.arange(3, dtype=np.int32), np.zeros((2, 8), np.int16)
    prompt = ModelPrompt(ids, frames)
    assert prompt.seed(1) == ModelPrompt(ids.copy(), frames.copy()).seed(1)
    others = (
        ModelPrompt(ids + 1, frames),
        ModelPrompt(ids, frames + 1),
        ModelPrompt(ids, frames[:1]),
    )
    assert len({prompt.seed(1), prompt.seed(2), *(other.seed(1) for other in others)}) == 5


def test_equal_seeds_give_equal_codes_and_different_seeds_different_ones(
    base: Any, samples: list[RecordedSample]
) -> None:
    prompts = [samples[0].prompt]
    first, again, other = (
        generate(base, prompts, Sampling(seed=seed, max_seconds=1), RATE_HZ)[0]
        for seed in (1, 1, 2)
    )
    assert equal(first.codes, again.codes)
    assert not equal(first.codes, other.codes)


def test_generation_defaults_of_the_checkpoint_are_ignored(
    base: Any, samples: list[RecordedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [sample.prompt for sample in samples]
    expected = generate(base, prompts, SAMPLED, RATE_HZ)
    own = {"do_sample": True, "temperature": 0.1, "top_k": 2, "ras_win_len": 3, "max_length": 20}
    defaults = GenerationConfig(repetition_penalty=1.3, **own)
    monkeypatch.setattr(base, "generation_config", defaults)
    found = generate(base, prompts, SAMPLED, RATE_HZ)
    assert all(equal(a.codes, b.codes) for a, b in zip(found, expected, strict=True))
    assert base.generation_config is defaults


def all_parameters(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_speaking_during_training_uses_the_adapter_and_changes_nothing(
    corpus: PackedCorpus, samples: list[RecordedSample]
) -> None:
    prompts = [sample.prompt for sample in samples]
    adapted = base_with_lora(corpus.base).float()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(3))
    expected = generate(adapted, prompts, GREEDY, RATE_HZ)
    with adapted.disable_adapter():
        of_base = generate(adapted, prompts, GREEDY, RATE_HZ)

    model = DualLossModel(adapted).train()
    next(iter(model.native.model.layers)).eval()
    modes = [module.training for module in model.modules()]
    batch = collate([PackedRows(corpus.train_rows)[0]], model.native.config)
    loss_before, parameters = model(batch)[0].loss, all_parameters(model)
    random_state = torch.get_rng_state()
    found = generate(model, prompts, SAMPLED, RATE_HZ)
    assert torch.equal(torch.get_rng_state(), random_state)
    found = generate(model, prompts, GREEDY, RATE_HZ)
    assert all(equal(a.codes, b.codes) for a, b in zip(found, expected, strict=True))
    assert not all(equal(a.codes, b.codes) for a, b in zip(of_base, expected, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert all(map(torch.equal, all_parameters(model), parameters))
    assert torch.equal(model(batch)[0].loss, loss_before)


def test_an_error_while_speaking_leaves_the_training_unchanged(corpus: PackedCorpus) -> None:
    model = DualLossModel(base_with_lora(corpus.base)).train()
    batch = collate([PackedRows(corpus.train_rows)[0]], model.native.config)
    loss = model(batch)[0].loss
    with pytest.raises(KeyError), native_forward(model):
        raise KeyError
    assert torch.equal(model(batch)[0].loss, loss)
    assert model.native.model.training


def delayed(*streams: list[int]) -> np.ndarray:
    """Generated frames of K = 2 codebooks: BOS is 8, EOS 9."""
    first, second = streams
    return np.array([[8, *first, 9], [8, 8, *second]], np.int16).T


def test_codes_end_where_the_first_codebook_ends() -> None:
    stopped = generated_codes(delayed([1, 2, 3, 9], [4, 5, 6, 9]), max_frames=5, stream_eos=9)
    assert (stopped.codes.tolist(), stopped.has_stopped) == ([[1, 4], [2, 5], [3, 6]], True)
    late = generated_codes(delayed([1, 2, 9, 9], [4, 5, 6, 9]), max_frames=5, stream_eos=9)
    assert (late.codes.tolist(), late.has_stopped) == ([[1, 4], [2, 5]], True)
    at_once = generated_codes(delayed([9, 9], [9, 9]), max_frames=5, stream_eos=9)
    assert (at_once.codes.shape, at_once.has_stopped) == ((0, 2), True)


def test_codes_at_the_cap_count_as_stopped_only_if_eos_comes_next() -> None:
    frames = np.array([[8, 1, 2, 3, 4], [8, 8, 5, 6, 7]], np.int16).T
    capped = generated_codes(frames, max_frames=2, stream_eos=9)
    assert (capped.codes.tolist(), capped.has_stopped) == ([[1, 5], [2, 6]], False)
    frames[3, 0] = 9
    assert generated_codes(frames, max_frames=2, stream_eos=9).has_stopped


@pytest.mark.parametrize(("seconds", "num_frames"), [(0.01, 1), (0.4, 10), (1.16, 29), (1.19, 29)])
def test_max_seconds_is_rounded_down_to_whole_frames_but_at_least_one(
    seconds: float, num_frames: int
) -> None:
    assert Sampling(max_seconds=seconds).max_frames(RATE_HZ) == num_frames


class TwoCodebooks:
    """The part of a config that a sampler reads, with codes 0 to 3."""

    num_codebooks, codebook_size = 2, 6
    audio_stream_bos_id, audio_stream_eos_id = 4, 5


LOGITS = torch.tensor([[1.0, 0.5, -0.5, -2.0, 5.0, -1.0], [0.0, 0.0, 2.0, 0.0, 0.0, 0.0]])


def draws(num_steps: int, scores: torch.Tensor = LOGITS, **settings: Any) -> torch.Tensor:
    """(num_steps, K) drawn codes."""
    settings = {"top_k": 0, "top_p": 1, "ras_win_len": 0} | settings
    config: Any = TwoCodebooks
    sampler = Sampler(Sampling(**settings), config, [7], lambda: None)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    return torch.stack([sampler(ids, scores).argmax(dim=-1) for _ in range(num_steps)])


def shares(drawn: torch.Tensor, num_codes: int = 6) -> torch.Tensor:
    return torch.stack([torch.bincount(d, minlength=num_codes) for d in drawn.T]) / len(drawn)


def softmax_without_bos(logits: torch.Tensor) -> torch.Tensor:
    return logits.index_fill(1, torch.tensor([4]), -torch.inf).softmax(dim=-1)


def test_codes_are_drawn_from_the_softmax_at_the_temperature() -> None:
    for temperature in (1.0, 0.5):
        found = shares(draws(20_000, temperature=temperature))
        expected = softmax_without_bos(LOGITS / temperature)
        assert (found - expected).abs().max() < 0.015


def test_top_k_and_top_p_keep_only_the_likeliest_codes() -> None:
    assert set(draws(2000, top_k=2)[:, 0].tolist()) == {0, 1}
    # softmax without BOS: 0.50, 0.30, 0.11, 0.02, EOS 0.07
    assert set(draws(2000, top_p=0.45)[:, 0].tolist()) == {0}
    assert set(draws(2000, top_p=0.85)[:, 0].tolist()) == {0, 1, 2}
    assert set(draws(2000, top_p=0.95)[:, 0].tolist()) == {0, 1, 2, 5}


def test_temperature_0_takes_the_likeliest_code_despite_repetition() -> None:
    greedy = draws(50, temperature=0, ras_win_len=7)
    assert greedy.tolist() == [[0, 2]] * 50


def test_a_code_repeated_too_often_is_redrawn_from_all_codes() -> None:
    sure = torch.tensor([[9.0, 8.0, 7.0, 7.0, 0.0, 0.0]]).repeat(2, 1)
    assert set(draws(300, sure, top_k=1).flatten().tolist()) == {0}
    again = draws(300, sure, top_k=1, ras_win_len=7, ras_win_max_num_repeat=2)
    assert {0, 1, 2} <= set(again.flatten().tolist())
    # Two of the same in the window are allowed, and a draw again may find it once more.
    assert (again[:2] == 0).all()
    seldom = draws(300, sure, top_k=1, ras_win_len=7, ras_win_max_num_repeat=5)
    assert (seldom != 0).sum() < (again != 0).sum()


def test_only_the_repeating_codebook_is_redrawn_and_eos_never() -> None:
    """Codebook 0 repeats a code, codebook 1 its end."""
    scores = torch.tensor([[9.0, 8.0, 8.0, 8.0, 0.0, 0.0], [8.0, 8.0, 0.0, 0.0, 0.0, 9.0]])
    drawn = draws(200, scores, top_k=1, ras_win_len=7, ras_win_max_num_repeat=1)
    assert len(set(drawn[:, 0].tolist())) > 1
    assert set(drawn[:, 1].tolist()) == {5}


def test_eos_does_not_count_as_repetition_and_forced_codes_are_kept() -> None:
    forced = torch.full((2, 6), -torch.inf)
    forced[0, 5], forced[1, 4] = 0.0, 0.0  # EOS and BOS, as the delay pattern forces them
    drawn = draws(20, forced, ras_win_len=7, ras_win_max_num_repeat=1)
    assert drawn.tolist() == [[5, 4]] * 20


def test_speech_is_written_as_16_bit_pcm_clipped_at_full_scale(tmp_path: Path) -> None:
    sound = np.array([0.0, 0.5, 2.0, -2.0], np.float32)
    spoken = Spoken(sound, 24_000, np.zeros((1, 8), np.int16), has_stopped=True)
    assert spoken.duration_seconds == 4 / 24_000
    spoken.write(tmp_path / "a.wav")
    info = sf.info(tmp_path / "a.wav")
    assert (info.format, info.subtype, info.samplerate) == ("WAV", "PCM_16", 24_000)
    assert sf.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [0, 16_384, 32_767, -32_768]
