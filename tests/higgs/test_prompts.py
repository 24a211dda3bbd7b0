import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import audio_labels, delayed_frames, text_labels
from trainings import PackedCorpus
from transformers import AutoProcessor

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT as PROMPT
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.conversation import Conversation, Turn
from higgs_pipe.data.packing.turns import Recording
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.prompts import NotRendered, Prompt, RenderError
from higgs_pipe.higgs.speech_prompts import SpeechPrompt, model_prompt
from higgs_pipe.higgs.text_tokens import count_text_tokens
from higgs_pipe.higgs.v2.chat_template import ASSISTANT_HEADER, PUBLISHED_TEMPLATE, message
from higgs_pipe.higgs.v2.renderer import ChatRenderer


@pytest.fixture(scope="module")
def renderer(tiny_base: Path) -> ChatRenderer:
    return ChatRenderer(Pretrained("base_model", str(tiny_base)))


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_base)


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (num_frames, 8)).astype(np.int16)


SYSTEM: Turn = Turn("system", (PROMPT,))
AUDIO = Recording((0,))


def said(text: str) -> Turn[Recording]:
    return Turn("user", (text,))


def heard(*parts: str | Recording, is_target: bool = False) -> Turn[Recording]:
    return Turn("assistant", parts or (AUDIO,), is_target)


def talk(*turns: Turn[Recording]) -> Conversation[Recording]:
    return Conversation(turns)


def speech(
    text: str, scene: str | None = None, reference_text: str | None = None
) -> Conversation[Recording]:
    scenes: list[Turn] = [Turn("scene", (scene,))] if scene else []
    reference = [said(reference_text), heard()] if reference_text else []
    return talk(SYSTEM, *scenes, *reference, said(text), heard(is_target=True))


def tokens_of(renderer: ChatRenderer, ids: np.ndarray) -> list[str | None]:
    return [
        None if i == -100 else renderer.tokenizer.convert_ids_to_tokens(int(i))
        for i in ids.tolist()
    ]


CONVERSATIONS = {
    "speech": (speech("Good: morning."), [12]),
    "scene": (speech("Good morning.", "A quiet room."), [12]),
    "cloning": (speech("Good morning.", "A quiet room.", "This is how I sound."), [9, 12]),
    "two targets": (
        talk(*speech("One.").turns, said("Two."), heard(), said("Three."), heard(is_target=True)),
        [4, 5, 6],
    ),
    "two targets in a row": (
        talk(*speech("One.").turns, heard(is_target=True), said("And?")),
        [4, 5],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_labels_match_the_documented_definition(renderer: ChatRenderer, name: Any) -> None:
    conversation, num_frames = CONVERSATIONS[name]
    codes = [random_codes(n, seed=n) for n in num_frames]
    sample = renderer.model_inputs([renderer.prompt(conversation)], codes)
    is_target = [turn.is_target for turn in conversation.turns if turn.role == "assistant"]
    tokens = [str(token) for token in tokens_of(renderer, sample.input_ids)]
    expected = text_labels(tokens, is_target)
    assert tokens_of(renderer, sample.labels) == expected
    frames = [delayed_frames(c.tolist(), 1024, 1025) for c in codes]
    assert sample.audio_input_ids.tolist() == [frame for turn in frames for frame in turn]
    wanted = [
        audio_labels(c.tolist(), 1024, 1025) if target else [[-100] * 8] * (len(c) + 9)
        for c, target in zip(codes, is_target, strict=True)
    ]
    assert sample.audio_labels.tolist() == [label for turn in wanted for label in turn]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_training_prompt_equals_the_inference_prompt(
    renderer: ChatRenderer, processor: Any, name: Any
) -> None:
    """The ids before each target match those of the processor for generation."""
    conversation, num_frames = CONVERSATIONS[name]
    waveforms = [np.zeros(960 * n, np.float32) for n in num_frames]
    sample = renderer.model_inputs(
        [renderer.prompt(conversation)], [random_codes(n) for n in num_frames]
    )
    starts = np.flatnonzero(sample.input_ids == renderer.tokens.audio_bos)
    messages = [message(turn) for turn in conversation.turns]
    answers = [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    for number, (i, start) in enumerate(zip(answers, starts, strict=True)):
        inference = processor(
            text=processor.apply_chat_template(
                messages[:i], tokenize=False, add_generation_prompt=True
            ),
            audio=waveforms[:number] or None,
            return_tensors="pt",
            add_special_tokens=False,
        )["input_ids"][0]
        assert sample.input_ids[: start + 1].tolist() == inference.tolist()


@pytest.mark.parametrize("name", ["speech", "cloning", "two targets"])
def test_a_sample_matches_the_native_processor_on_the_same_recordings(
    renderer: ChatRenderer, processor: Any, name: str
) -> None:
    conversation, num_frames = CONVERSATIONS[name]
    waveforms = [
        np.random.default_rng(n).normal(0, 0.1, 960 * (20 + n)).astype(np.float32)
        for n in num_frames
    ]
    native = processor(
        text=processor.apply_chat_template(
            [message(turn) for turn in conversation.turns], tokenize=False
        ),
        audio=waveforms,
        return_tensors="pt",
        add_special_tokens=False,
    )
    with torch.no_grad():
        codes = [
            processor.audio_tokenizer.encode(torch.from_numpy(w)[None, None])
            .audio_codes[0]
            .T.numpy()
            .astype(np.int16)
            for w in waveforms
        ]
    sample = renderer.model_inputs([renderer.prompt(conversation)], codes)
    assert sample.input_ids.tolist() == native["input_ids"][0].tolist()
    assert sample.audio_input_ids.tolist() == native["audio_input_ids"][0].tolist()


def test_the_sample_length_is_known_without_the_codes(renderer: ChatRenderer) -> None:
    prompt = renderer.prompt(speech("Yes.", reference_text="No."))
    sample = renderer.model_inputs([prompt], [random_codes(5), random_codes(31)])
    assert renderer.sample_length(prompt, [5, 31]) == len(sample.input_ids)
    assert (sample.input_ids == renderer.tokens.audio).sum() == 5 + 2 + 31 + 2
    assert (sample.input_ids == renderer.tokens.audio_delay).sum() == 2 * 7


def test_target_text_is_a_label_where_the_template_writes_it(tiny_base: Path) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    audio = "{{- audio_turn -}}"
    assert audio in renderer.tokenizer.chat_template
    renderer.tokenizer.chat_template = renderer.tokenizer.chat_template.replace(
        audio,
        "{%- for part in turn['content'] -%}{{- part['text'] if part['type'] == 'text'"
        " else audio_turn -}}{%- endfor -%}",
    )
    answer = heard("It is me.", AUDIO, is_target=True)
    conversation = talk(SYSTEM, said("Who?"), answer, said("Oh."))
    sample = renderer.model_inputs([renderer.prompt(conversation)], [random_codes(3)])
    labels = renderer.tokenizer.decode(sample.labels[sample.labels != -100])
    assert labels == "It is me.<|audio_out_bos|><|audio_eos|><|eot_id|>"
    [at_once] = renderer.prompts([conversation])
    assert isinstance(at_once, Prompt)
    assert at_once.labels.tolist() == renderer.prompt(conversation).labels.tolist()


@pytest.mark.parametrize(
    ("conversation", "fact"),
    [
        (talk(*speech("Yes.").turns[1:]), "A system message is required"),
        (
            talk(SYSTEM, said("Who?"), heard("It is me.", AUDIO, is_target=True)),
            "leaves out a text",
        ),
        (
            talk(SYSTEM, said("Who?"), heard(AUDIO, AUDIO, is_target=True)),
            "1 audio placeholders for 2",
        ),
        (
            talk(SYSTEM, Turn("user", ("So", AUDIO)), heard(is_target=True)),
            "1 audio placeholders for 2",
        ),
        (talk(SYSTEM, said("Who?"), heard()), "no assistant turn is a target"),
    ],
)
def test_a_conversation_the_template_would_not_render_whole_is_refused(
    renderer: ChatRenderer, conversation: Any, fact: str
) -> None:
    with pytest.raises(RenderError, match=fact):
        renderer.prompt(conversation)
    [found, sound] = renderer.prompts([conversation, speech("Yes.")])
    assert isinstance(found, NotRendered)
    assert isinstance(sound, Prompt)


def test_prompts_rendered_in_a_batch_match_those_rendered_one_by_one(
    renderer: ChatRenderer,
) -> None:
    texts = [
        "One.",
        " Two. ",
        "<SE>[Laughter]</SE>",
        "\ue0000\ue001",
        "你好, 世界.",
        "",
        "[SPEAKER0] A\nB",
    ]
    conversations = [
        speech(text, scene, reference)
        for text in texts
        for scene in (None, "A quiet room.")
        for reference in (None, "Before.")
    ]
    conversations += [conversation for conversation, _ in CONVERSATIONS.values()]
    for conversation, prompt in zip(conversations, renderer.prompts(conversations), strict=True):
        alone = renderer.prompt(conversation)
        assert prompt.ids.tolist() == alone.ids.tolist()
        assert prompt.labels.tolist() == alone.labels.tolist()
        assert prompt.is_target == alone.is_target


def test_braces_in_a_template_or_a_text_are_preserved(tiny_base: Path) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    text = "{{- text_of(turn['content']) -}}"
    assert text in renderer.tokenizer.chat_template
    renderer.tokenizer.chat_template = renderer.tokenizer.chat_template.replace(
        text, "{{- '{0} {' + text_of(turn['content']) + '}' -}}"
    )
    renderer.prompts([speech("One.")])
    [prompt] = renderer.prompts([speech("{1} {two}")])
    assert isinstance(prompt, Prompt)
    assert "{0} {{1} {two}}<|eot_id|>" in renderer.tokenizer.decode(prompt.ids)


def test_a_template_whose_wording_depends_on_the_texts_is_refused(tiny_base: Path) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    renderer.tokenizer.chat_template += (
        "{%- if 'wolf' in messages[1]['content'][0]['text'] -%}!{%- endif -%}"
    )
    renderer.prompts([speech("A sheep.")])
    with pytest.raises(UserError, match="different words"):
        renderer.prompts([speech("A wolf.")])


def test_a_template_without_the_tokens_around_audio_is_refused(tiny_base: Path) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    template = renderer.tokenizer.chat_template
    renderer.tokenizer.chat_template = template.replace(
        "<|audio_out_bos|><|AUDIO_OUT|>", "<|AUDIO_OUT|>"
    )
    with pytest.raises(RenderError, match=r"<\|audio_out_bos\|>.*<\|audio_eos\|>"):
        renderer.prompt(speech("Yes."))


def test_a_template_that_does_not_end_the_turn_is_refused(tiny_base: Path) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    template = renderer.tokenizer.chat_template
    renderer.tokenizer.chat_template = template.replace("<|eot_id|>", "")
    with pytest.raises(RenderError, match=r"<\|eot_id\|> at the end of the turn"):
        renderer.prompt(speech("Yes."))


def test_a_template_with_an_extra_assistant_header_is_refused(tiny_base: Path) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    header = "{{- '" + ASSISTANT_HEADER.replace("\n", "\\n") + "' -}}"
    renderer.tokenizer.chat_template += header
    with pytest.raises(RenderError, match="2 assistant headers for 1"):
        renderer.prompt(speech("Yes."))


def test_pieces_evicted_from_the_cache_are_tokenized_again(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("higgs_pipe.higgs.v2.renderer.MAX_KNOWN_PIECES", 0)
    renderer = ChatRenderer(Pretrained("base_model", str(tiny_base)))
    for text in ("One.", "Two."):
        [prompt] = renderer.prompts([speech(text)])
        assert isinstance(prompt, Prompt)
        assert prompt.ids.tolist() == renderer.prompt(speech(text)).ids.tolist()
    assert "Two." in "".join(renderer._known_pieces)
    assert "One." not in "".join(renderer._known_pieces)


def test_a_token_that_strips_the_following_space_disables_batch_rendering(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["rstrip"] = token["content"] == "<|end_header_id|>"
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    renderer = ChatRenderer(Pretrained("base_model", str(base)))
    header = renderer.tokenized(ASSISTANT_HEADER).tolist()
    assert header == renderer.tokenized(ASSISTANT_HEADER.rstrip()).tolist()
    for text in ("One.", "Two."):
        [prompt] = renderer.prompts([speech(text)])
        assert isinstance(prompt, Prompt)
        assert prompt.ids.tolist() == renderer.prompt(speech(text)).ids.tolist()


@pytest.fixture
def of_few_messages(tiny_base: Path, tmp_path: Path) -> Path:
    """A base whose template fails on a scene or a reference."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    path = base / "chat_template.jinja"
    fault = "{%- if messages | length > 3 -%}{{ 1 // 0 }}{%- endif -%}"
    path.write_text(fault + path.read_text())
    return base


def test_text_the_template_cannot_render_is_a_user_error_in_every_stage(
    of_few_messages: Path, corpus: PackedCorpus, tmp_path: Path
) -> None:
    renderer = ChatRenderer(Pretrained("base_model", str(of_few_messages)))
    with pytest.raises(UserError, match=rf"ZeroDivisionError.*{PUBLISHED_TEMPLATE[:20]}"):
        count_text_tokens(["Hi"], PROMPT, renderer)
    with pytest.raises(UserError, match=r"the text cannot be rendered .*ZeroDivisionError"):
        model_prompt(renderer, SpeechPrompt("Hi", (), "A hall."), PROMPT, str)
    packed = PackedCorpus(corpus.directory, of_few_messages)
    with pytest.raises(UserError, match=r"manifest\.jsonl:\d+: .*ZeroDivisionError"):
        packed.pack(tmp_path / "packed", max_tokens=512)


def test_a_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base_model '.*nowhere'"):
        ChatRenderer(Pretrained("base_model", str(tmp_path / "nowhere")))
