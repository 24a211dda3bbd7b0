"""Names in Boson AI's own code: of tensors, and of the keys of ``config.json``.

Read in boson-ai/higgs-audio (``boson_multimodal/model/higgs_audio``) and in the config published
with its 3B checkpoint.
"""

from typing import Any

from transformers import HiggsAudioV2Config

# Prefix of the native name, prefix of the original one; the first match counts. Every original name
# has the last one.
TENSOR_PREFIXES = (
    ("model.embed_audio_tokens.embed_audio_tokens.", "audio_codebook_embeddings."),
    ("audio_lm_head.", "audio_decoder_proj.audio_lm_head."),
    ("text_lm_head.", "audio_decoder_proj.text_lm_head."),
    ("model.", ""),
)
# Keys of `text_config`, a Llama config, that the native config has under the same name.
TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "initializer_range", "rms_norm_eps", "attention_bias", "attention_dropout", "mlp_bias",
)  # fmt: skip
# As published. The native port has 2048, and servers would refuse longer requests; the positions
# are rotary, so that no weight depends on it.
MAX_POSITIONS = 131_072
NUM_SPECIAL_CODES = 2  # stream BOS and EOS, which only the native config counts


def original_name(name: str) -> str:
    """Return the original name of a tensor.

    Raises:
        KeyError: The name is not one of the native model.
    """
    for native, original in TENSOR_PREFIXES:
        if name.startswith(native):
            return original + name.removeprefix(native)
    raise KeyError(name)


def native_name(name: str) -> str:
    """Return the native name of a tensor."""
    native, original = next(pair for pair in TENSOR_PREFIXES if name.startswith(pair[1]))
    return native + name.removeprefix(original)


def original_config(config: HiggsAudioV2Config, tokenizer: Any, dtype: str) -> dict[str, Any]:
    """Return the original ``config.json`` of a native model.

    Args:
        config: The native config.
        tokenizer: The model's, which knows the ids of special tokens.
        dtype: Dtype of the weights.
    """
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    token_id = tokenizer.convert_tokens_to_ids
    return {
        "architectures": ["HiggsAudioModel"],
        "model_type": "higgs_audio",
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(config.num_hidden_layers)),
        "audio_ffn_hidden_size": config.hidden_size,
        "audio_ffn_intermediate_size": config.intermediate_size,
        "audio_decoder_proj_num_layers": 0,
        "audio_embed_avg": False,
        "audio_num_codebooks": config.num_codebooks,
        "audio_codebook_size": config.codebook_size - NUM_SPECIAL_CODES,
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_eos_token_id": token_id("<|audio_eos|>"),
        "audio_out_bos_token": "<|audio_out_bos|>",
        "audio_out_bos_token_id": config.audio_bos_token_id,
        "audio_in_token": "<|AUDIO|>",
        "audio_in_token_idx": token_id("<|AUDIO|>"),
        "audio_out_token": "<|AUDIO_OUT|>",
        "audio_out_token_idx": config.audio_token_id,
        "audio_encoder_config": {"model_type": "higgs_audio_encoder"},
        "audio_tokenizer_config": None,
        "encode_audio_in_tokens": True,
        "encode_whisper_embed": False,
        "skip_audio_tower": True,
        "use_audio_out_embed_projector": False,
        "use_audio_out_self_attention": False,
        "use_delay_pattern": True,
        "use_rq_transformer": False,
        "hidden_size": config.hidden_size,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{key: getattr(config, key) for key in TEXT_KEYS},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "max_position_embeddings": MAX_POSITIONS,
            "rope_scaling": rope,
            "rope_theta": theta,
            "tie_word_embeddings": True,
            "torch_dtype": dtype,
            "use_cache": True,
        },
    }
