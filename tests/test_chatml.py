from pathlib import Path

import numpy as np
import pytest
import torch
from reference import audio_labels, delayed_frames, text_labels
from transformers import AutoProcessor

from higgs_pipe.config import DEFAULT_SYSTEM_PROMPT as PROMPT
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.chatml import PromptRenderer, clean_text, conversation


@pytest.fixture(scope="module")
def renderer(tiny_base: Path) -> PromptRenderer:
    return PromptRenderer(str(tiny_base))


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (num_frames, 8)).astype(np.int16)


@pytest.mark.parametrize("scene", [None, "A quiet room."])
@pytest.mark.parametrize("reference_text", [None, "This is how I sound."])
def test_labels_agree_with_the_written_definition(renderer, scene, reference_text):
    codes = [random_codes(9, seed=1), random_codes(12, seed=2)][reference_text is None :]
    messages = conversation("Good: morning.", PROMPT, scene, reference_text)
    sample = renderer.sample(renderer.prompt_ids([messages])[0], codes)

    tokens = renderer.tokenizer.convert_ids_to_tokens(sample.input_ids.tolist())
    labels = [
        None if label == -100 else renderer.tokenizer.convert_ids_to_tokens(int(label))
        for label in sample.labels
    ]
    assert labels == text_labels(tokens)
    target = codes[-1].tolist()
    num_target_frames = len(delayed_frames(target, 1024, 1025))
    assert sample.audio_labels[-num_target_frames:].tolist() == audio_labels(target, 1024, 1025)
    assert (sample.audio_labels[:-num_target_frames] == -100).all()


@pytest.mark.parametrize("reference_text", [None, "This is how I sound."])
def test_a_sample_is_what_the_native_processor_makes_of_the_same_recordings(
    renderer, tiny_base, reference_text
):
    processor = AutoProcessor.from_pretrained(tiny_base)
    waveforms = [np.random.default_rng(i).normal(0, 0.1, 960 * (20 + i)) for i in range(2)]
    waveforms = waveforms[reference_text is None :]
    messages = conversation("Good morning.", PROMPT, "A quiet room.", reference_text)
    native = processor(
        text=processor.apply_chat_template(messages, tokenize=False),
        audio=[waveform.astype(np.float32) for waveform in waveforms],
        return_tensors="pt",
        add_special_tokens=False,
    )
    with torch.no_grad():
        codes = [
            processor.audio_tokenizer.encode(torch.from_numpy(w.astype(np.float32))[None, None])
            .audio_codes[0]
            .T.numpy()
            .astype(np.int16)
            for w in waveforms
        ]
    sample = renderer.sample(renderer.prompt_ids([messages])[0], codes)
    assert sample.input_ids.tolist() == native["input_ids"][0].tolist()
    assert sample.audio_input_ids.tolist() == native["audio_input_ids"][0].tolist()


def test_the_length_is_known_before_the_codes_are(renderer):
    codes = [random_codes(5), random_codes(31)]
    prompt_ids = renderer.prompt_ids([conversation("Yes.", PROMPT, None, "No.")])[0]
    sample = renderer.sample(prompt_ids, codes)
    assert renderer.sample_length(prompt_ids, [5, 31]) == len(sample.input_ids)
    assert (sample.input_ids == renderer.tokens.audio).sum() == 5 + 2 + 31 + 2
    assert (sample.input_ids == renderer.tokens.audio_delay).sum() == 2 * 7


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("你好，世界。", "你好, 世界."),
        ("It was 20°C (warm)", "It was 20 degrees Celsius warm."),
        ("Ha [laugh]", "Ha <SE>[Laughter]</SE>"),
        ("[music start] la [music end]", "<SE_s>[Music]</SE_s> la <SE_e>[Music]</SE_e>"),
        ("  two   spaces\n\n next ", "two spaces\nnext."),
        ("Really?", "Really?"),
        ("[SPEAKER0] Hi: there", "[SPEAKER0] Hi: there."),
    ],
)
def test_text_is_cleaned_as_at_inference(written, cleaned):
    assert clean_text(written) == cleaned
    assert clean_text(cleaned) == cleaned


def test_a_missing_checkpoint_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"base_model .*nowhere.* cannot be loaded"):
        PromptRenderer(str(tmp_path / "nowhere"))


def test_a_template_without_audio_turns_is_refused(renderer):
    prompt_ids = renderer.prompt_ids([conversation("Yes.", PROMPT)])[0]
    without_audio = prompt_ids[prompt_ids != renderer.tokens.audio]
    with pytest.raises(UserError, match="gave 0 audio placeholders for 1 audio turns"):
        renderer.sample(without_audio, [random_codes(3)])
