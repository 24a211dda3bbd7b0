"""The audio tokenizer: waveforms in, codes out, independent of the batch."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerModel
from transformers.models.dac.modeling_dac import DacResidualUnit, Snake1d

from higgs_pipe.config.settings import CodecDtype
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.resampling import resample
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codec_checkpoint import codec_model
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.devices import pick_dtype
from higgs_pipe.higgs.pretrained import weight_fingerprint

SNAKE_BLOCK_NUM_VALUES = 2**18  # 1 MB: it fits the cache of a core


class BlockedSnake(nn.Module):
    """The activation x + sin²(alpha x) / alpha, computed in blocks, for inference on a CPU.

    The native one writes four intermediates as large as x, which is most of the encoder's memory.
    This one keeps each block in the cache. The values are equal, bit for bit.

    Args:
        native: The module to replace; provides alpha.
        in_place: Overwrite x, which saves the time of allocating memory.
    """

    def __init__(self, native: Snake1d, in_place: bool = False) -> None:
        super().__init__()
        self.alpha = native.alpha  # (1, C, 1)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n) -> (B, C, n)."""
        factor = (self.alpha + 1e-9).reciprocal()
        result = x if self.in_place else torch.empty_like(x)
        num_rows = max(1, SNAKE_BLOCK_NUM_VALUES // x.shape[2])
        for row in range(0, x.shape[1], num_rows):
            rows = slice(row, row + num_rows)
            for start in range(0, x.shape[2], SNAKE_BLOCK_NUM_VALUES):
                columns = slice(start, start + SNAKE_BLOCK_NUM_VALUES)
                x_block = x[:, rows, columns]
                block = torch.mul(self.alpha[:, rows], x_block)
                block.sin_().square_().mul_(factor[:, rows])
                torch.add(block, x_block, out=result[:, rows, columns])
        return result


class LeanResidualUnit(nn.Module):
    """The encoder's residual unit for inference on a CPU, with one allocation less per step."""

    def __init__(self, native: DacResidualUnit) -> None:
        super().__init__()
        self.snake1, self.conv1 = BlockedSnake(native.snake1), native.conv1
        self.snake2, self.conv2 = BlockedSnake(native.snake2, in_place=True), native.conv2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n) -> (B, C, n)."""
        change: Tensor = self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return change.add_(x)


def load_codec(
    pretrained: Pretrained, device: torch.device, dtype: CodecDtype = "float32"
) -> tuple[HiggsAudioV2TokenizerModel, CodecInfo]:
    """Load the codec for inference.

    Args:
        pretrained: The codec, or a base with the codec in its bundle.
        device: The device that it runs on.
        dtype: The dtype that it computes in on a GPU; on a CPU it is always float32.

    Returns:
        The model, and its identity for the tables of codes.

    Raises:
        UserError: It cannot be loaded, or some of its weights are missing.
    """
    model = codec_model(pretrained)
    config = model.config
    compute_dtype = torch.float32 if device.type == "cpu" else pick_dtype(dtype, device)
    info = CodecInfo(
        codec=pretrained.name,
        revision=pretrained.revision,
        fingerprint=weight_fingerprint(pretrained),
        num_codebooks=config.num_quantizers,
        codebook_size=config.codebook_size,
        frame_rate_hz=config.sample_rate / config.hop_length,
        sample_rate_hz=config.sample_rate,
        hop_length=config.hop_length,
        dtype=str(compute_dtype).removeprefix("torch."),
    )
    # By default a GPU rounds the inputs of float32 convolutions to 10 bits, which changes codes.
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cpu":
        encoder = model.acoustic_encoder
        for name, module in list(encoder.named_modules()):
            if isinstance(module, DacResidualUnit):
                encoder.set_submodule(name, LeanResidualUnit(module))
        for name, module in list(encoder.named_modules()):
            if isinstance(module, Snake1d):  # between blocks, outside residual units
                encoder.set_submodule(name, BlockedSnake(module, in_place=True))
    return model.to(device).requires_grad_(False).eval(), info


def load_codec_of(
    made_by: CodecInfo, device: torch.device
) -> tuple[HiggsAudioV2TokenizerModel, CodecInfo]:
    """Load the codec that made codes.

    Args:
        made_by: What the table of the codes is stamped with.
        device: Where the codec runs.

    Raises:
        UserError: It cannot be loaded, or its weights changed since.
    """
    codec, info = load_codec(Pretrained("codec", made_by.codec, made_by.revision), device)
    if info.fingerprint != made_by.fingerprint:
        raise UserError(
            f"codec {info.codec!r}: the weights changed since it made the codes of the packed "
            "rows; run: snakemake --forcerun pin_model"
        )
    return codec, info


def to_codec_input(
    samples: npt.NDArray[np.float32], sample_rate_hz: int, info: CodecInfo
) -> torch.Tensor:
    """Return audio as mono at the codec's rate, zero-padded at the end to whole frames.

    The padding matters: the native codec pads a length that is not a multiple of the hop
    differently from the original and gives other codes.

    Args:
        samples: (num_samples, num_channels).
        sample_rate_hz: Their sample rate.
        info: The codec.

    Returns:
        (T * hop_length,) float32.
    """
    mono = resample(torch.from_numpy(samples.mean(axis=1)), sample_rate_hz, info.sample_rate_hz)
    num_frames = math.ceil(len(mono) / info.hop_length)
    return torch.nn.functional.pad(mono, (0, num_frames * info.hop_length - len(mono)))


@torch.inference_mode()
def encode(
    model: HiggsAudioV2TokenizerModel, waveforms: torch.Tensor, info: CodecInfo
) -> list[Codes]:
    """Encode waveforms of equal length; padding inside a batch would change the codes.

    Args:
        model: The codec.
        waveforms: (B, T * hop_length), as :func:`to_codec_input` gives them.
        info: The codec.

    Returns:
        B arrays of (T, K).
    """
    dtype: torch.dtype = getattr(torch, info.dtype)
    # Autocast, because a codec cast to bfloat16 would also resample in bfloat16.
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        codes = model.encode(waveforms[:, None].to(model.device)).audio_codes  # (B, K, T)
    num_frames = waveforms.shape[1] // info.hop_length
    expected = (len(waveforms), info.num_codebooks, num_frames)
    if tuple(codes.shape) != expected:
        raise UserError(
            f"codec {info.codec!r} gave codes of shape {tuple(codes.shape)}, but its config "
            f"says {expected} (clips, codebooks, frames); use the codec of the base model."
        )
    return list(codes.transpose(1, 2).to(torch.int16).cpu().numpy())  # (B, T, K)


@torch.inference_mode()
def decode(
    model: HiggsAudioV2TokenizerModel, codes: Codes, info: CodecInfo
) -> npt.NDArray[np.float32]:
    """Decode the codes of one recording.

    Args:
        model: The codec.
        codes: (T, K).
        info: The codec.

    Returns:
        (T * hop_length,), mono, nominally between -1 and 1.
    """
    if len(codes) == 0:
        return np.empty(0, np.float32)
    batch = torch.from_numpy(codes.T.astype(np.int64))[None].to(model.device)  # (1, K, T)
    samples: npt.NDArray[np.float32] = model.decode(batch).audio_values.flatten().cpu().numpy()
    return samples
