"""Build a complete miniature Higgs TTS 3 checkpoint, offline, under the checkpoint's own names.

It has everything that the 4B checkpoint has, and is loaded by the same code: the tensors of the
body, the tied embeddings and the codec in its index, and the two heads, which repeat the
embeddings. Its weights are random: it is a base for the demo and the tests, and cannot speak. The
codec is that of the miniature Higgs Audio v2, so both use the same codes.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import normalizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from higgs_pipe.cli import main
from higgs_pipe.data.files import write_json
from higgs_pipe.higgs.miniature_codec import build_codec
from higgs_pipe.higgs.miniature_parts import byte_level_tokenizer, for_transformers, vary_norms
from higgs_pipe.higgs.shards import INDEX
from higgs_pipe.higgs.v3.codec import CODEC_PREFIX, CONFIG_KEY, UNUSED
from higgs_pipe.higgs.v3.native import (
    AUDIO_HEAD,
    TEXT_HEAD,
    HiggsV3Config,
    HiggsV3Model,
)
from higgs_pipe.higgs.v3.tags import TOKENS as TAG_TOKENS
from higgs_pipe.planning import model_types

# The 84 added tokens, in the order of their ids: 151643 and on in the real tokenizer. Nobody who
# could read it has written down the names of eight of them.
QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
)  # fmt: skip
PROMPT_TOKENS = (
    "<|tts|>", "<|unknown_1|>", "<|unknown_2|>", "<|audio|>", "<|audio_end|>", "<|text|>",
    "<|text_end|>", "<|eoc|>", "<|unknown_3|>", "<|unknown_4|>", "<|unknown_5|>",
    "<|unknown_6|>", "<|ref_audio|>", "<|ref_text|>",
)  # fmt: skip
ADDED_TOKENS = (*QWEN_TOKENS, *PROMPT_TOKENS, *TAG_TOKENS)
NUM_TEXT_TOKENS_FULL = 151_643
NUM_IDS_FULL = 151_936  # rows of the text embeddings; the last ones belong to no token

# Qwen 2's rule for cutting text into words before BPE.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def run(
    output_dir: Path,
    hidden_size: int = 128,
    num_layers: int = 2,
    initializer_range: float = 0.2,
    seed: int = 0,
) -> None:
    """Build the miniature checkpoint in ``output_dir``.

    Args:
        output_dir: Folder to write.
        hidden_size: Width of the body.
        num_layers: Layers of the body.
        initializer_range: Standard deviation of the weights; LoRA visibly changes only large ones.
        seed: Seed of the weights.
    """
    build(output_dir, hidden_size, num_layers, initializer_range, seed)


def build(
    output_dir: Path,
    hidden_size: int = 128,
    num_layers: int = 2,
    initializer_range: float = 0.2,
    seed: int = 0,
    full_vocab: bool = False,
) -> None:
    """Build it as :func:`run` does; ``full_vocab`` gives the tokens their real ids."""
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(full_vocab)
    tokenizer.save_pretrained(output_dir)
    num_ids = NUM_IDS_FULL if full_vocab else 32 * (len(tokenizer) // 32 + 1)
    config = raw_config(num_ids, hidden_size, num_layers, initializer_range)
    torch.manual_seed(seed)
    model = HiggsV3Model(HiggsV3Config(**config))
    vary_norms(model)
    body = dict(model.state_dict())
    codec = build_codec(seed)
    config["audio_encoder_config"][CONFIG_KEY] = codec.config.to_diff_dict()
    write_json(output_dir / "config.json", config)
    heads = {
        TEXT_HEAD: body["tied.embedding.text_embedding.weight"].clone(),
        AUDIO_HEAD: body["tied.embedding.modality_embeddings.0.embedding.weight"].clone(),
    }
    bundled = {f"{CODEC_PREFIX}{name}": tensor for name, tensor in codec.state_dict().items()}
    bundled[UNUSED] = torch.zeros(codec.config.semantic_model_config.hidden_size)
    _save(output_dir, [body, bundled], heads)


def _save(folder: Path, shards: list[dict[str, Tensor]], unindexed: dict[str, Tensor]) -> None:
    """Write a file for each shard, their index, and in the last file what the index leaves out."""
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        stored = shard | (unindexed if number == len(shards) else {})
        contiguous = {key: tensor.contiguous() for key, tensor in stored.items()}
        save_file(contiguous, folder / name, metadata={"format": "pt"})
    num_bytes = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    write_json(folder / INDEX, {"metadata": {"total_size": num_bytes}, "weight_map": weight_map})


def raw_config(
    num_ids: int, hidden_size: int, num_layers: int, initializer_range: float = 0.02
) -> dict[str, Any]:
    """Return ``config.json`` as the published checkpoint spells it."""
    return {
        "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
        "model_type": model_types.V3,
        "audio_token_id": -100,
        "text_config": {
            "model_type": "qwen3",
            "vocab_size": num_ids,
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden_size // 4,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "initializer_range": initializer_range,
            "dtype": "float32",
        },
        "audio_encoder_config": {
            "model_type": "higgs_audio_encoder",
            "encoder_type": "discrete",
            "num_codebooks": 8,
            "vocab_size": 1026,
            "out_dim": hidden_size,
            "tie_word_embeddings": True,
            "use_delay_pattern": True,
            "mel_per_sample": 8,
        },
    }


def build_tokenizer(full_vocab: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with the added tokens and no merges."""
    tokenizer = byte_level_tokenizer(
        WORD_PATTERN, ADDED_TOKENS, NUM_TEXT_TOKENS_FULL if full_vocab else None
    )
    tokenizer.normalizer = normalizers.NFC()
    return for_transformers(tokenizer, "<|endoftext|>")


if __name__ == "__main__":
    main(run)
