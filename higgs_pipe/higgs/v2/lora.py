"""Names of the modules of Higgs Audio v2, for LoRA."""

from collections.abc import Mapping

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
# PEFT compares the end of a module's name after a dot, so `mlp.` is the text FFN alone.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "audio": (*ATTENTION, *(f"audio_mlp.{name}" for name in FFN)),
    "all": (*ATTENTION, *(f"{ffn}.{name}" for ffn in ("mlp", "audio_mlp") for name in FFN)),
}
IN_FULL = {
    "audio_head": "audio_lm_head",
    "audio_embeddings": "embed_audio_tokens.embed_audio_tokens",
}
PARTS = (
    ("attention", ".self_attn."),
    ("audio FFN", ".audio_mlp."),
    ("text FFN", ".mlp."),
    ("audio head", "audio_lm_head."),
    ("text head", "text_lm_head."),
    ("audio embeddings", "embed_audio_tokens."),
    ("text embeddings", "embed_tokens."),
)
