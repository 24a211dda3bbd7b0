"""A small random codec, the same in the miniatures of all families."""

import math

import torch
from transformers import (
    DacConfig,
    HiggsAudioV2TokenizerConfig,
    HiggsAudioV2TokenizerModel,
    HubertConfig,
)

SAMPLE_RATE_HZ = 24_000


def build_codec(seed: int, hidden_size: int = 16) -> HiggsAudioV2TokenizerModel:
    """A small random codec with the real one's rates (24 kHz, hop 960, 8 codebooks of 1024)."""
    torch.manual_seed(seed)
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2],  # 2 kbit/s at 25 frames/s: 8 codebooks
        codebook_size=1024,
        codebook_dim=8,
        acoustic_model_config=DacConfig(
            encoder_hidden_size=2,
            decoder_hidden_size=64,
            hidden_size=hidden_size,
            downsampling_ratios=[8, 5, 4, 2, 3],
            upsampling_ratios=[8, 5, 4, 2, 3],
        ),
        semantic_model_config=HubertConfig(
            hidden_size=hidden_size,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * hidden_size,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            mask_time_prob=0.0,
        ),
    )
    codec = HiggsAudioV2TokenizerModel(config).eval()
    calibrate_codebooks(codec, seed)
    return codec


@torch.no_grad()
def calibrate_codebooks(codec: HiggsAudioV2TokenizerModel, seed: int) -> None:
    """Make a random codec's codes depend on the audio.

    The class starts with codebooks of zeros, so that each code is 0. Here the projections get a
    unit gain and the codebooks are drawn from the vectors that a synthetic clip produces.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    quantizers = codec.quantizer.quantizers
    projections = [p for q in quantizers for p in (q.project_in, q.project_out)]
    for layer in [codec.fc, codec.fc1, codec.fc2, *projections]:
        gain = 1 / math.sqrt(layer.weight.shape[1])
        layer.weight.copy_(gain * torch.randn(layer.weight.shape, generator=generator))

    clip = _synthetic_clip(generator)[None, None]
    semantic = codec.encoder_semantic(codec._extract_semantic_features(clip).transpose(1, 2))
    acoustic = codec.acoustic_encoder(torch.nn.functional.pad(clip, (codec.pad, codec.pad)))
    num_frames = min(semantic.shape[2], acoustic.shape[2])
    semantic, acoustic = semantic[..., :num_frames], acoustic[..., :num_frames]
    split = codec.config.acoustic_model_config.hidden_size
    codec.fc.weight[:, :split] /= acoustic.std().clamp_min(1e-6)
    codec.fc.weight[:, split:] /= semantic.std().clamp_min(1e-6)

    features = torch.cat([acoustic, semantic], 1).transpose(1, 2)
    residual = codec.fc(features).transpose(1, 2)
    for quantizer in quantizers:
        vectors = quantizer.project_in(residual.transpose(1, 2)).flatten(0, 1)
        pick = torch.randint(0, len(vectors), (codec.config.codebook_size,), generator=generator)
        noise = torch.randn(len(pick), vectors.shape[1], generator=generator)
        quantizer.codebook.embed.copy_(vectors[pick] + 0.3 * vectors.std() * noise)
        quantizer.codebook.embed_avg.copy_(quantizer.codebook.embed)
        quantizer.codebook.cluster_size.fill_(1.0)
        quantizer.project_out.weight.mul_(0.3)
        residual = residual - quantizer.decode(quantizer.encode(residual))


def _synthetic_clip(generator: torch.Generator, seconds: int = 8) -> torch.Tensor:
    """A rising tone that swells three times a second, in noise: (num_samples,)."""
    time = torch.arange(SAMPLE_RATE_HZ * seconds) / SAMPLE_RATE_HZ
    swell = 0.3 * (1 + torch.sin(2 * math.pi * 3 * time)) / 2
    tone = torch.sin(2 * math.pi * (80 + 500 * time) * time) * swell
    return tone + 0.1 * torch.randn(time.shape, generator=generator)
