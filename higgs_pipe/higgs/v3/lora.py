"""Names of the modules of Higgs TTS 3, for LoRA."""

from collections.abc import Mapping

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
# Text and audio share each FFN, so a preset that has the audio's has both.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "audio": (*ATTENTION, *FFN),
    "all": (*ATTENTION, *FFN),
}
TIED = "modality_embeddings.0.embedding"
# One matrix embeds the codes and predicts them.
IN_FULL = {"audio_head": TIED, "audio_embeddings": TIED}
PARTS = (
    ("attention", ".self_attn."),
    ("FFN", ".mlp."),
    ("audio embeddings and head", f"{TIED}."),
    ("text embeddings", "text_embedding."),
)
