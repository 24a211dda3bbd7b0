"""A random Higgs TTS 3 of tiny size under the checkpoint's own names; NumPy alone.

Both sides of the oracle test build it: :mod:`make_mlx_audio_v3` for mlx-audio, and the tests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SEED = 11
HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_DIM, FFN = 64, 2, 4, 2, 16, 96
NUM_TEXT_TOKENS, NUM_CODEBOOKS, CODEBOOK_SIZE = 320, 8, 1026
BOC, EOC = 1024, 1025
EOC_WEIGHT = 3.0  # makes the EOC of codebook 0 likely enough to be generated
ROPE_THETA, RMS_NORM_EPS = 1_000_000.0, 1e-6

# A token per byte of a text, and those of a prompt.
PROMPT_TOKENS = {
    "<|tts|>": 300,
    "<|audio|>": 301,
    "<|text|>": 302,
    "<|ref_audio|>": 303,
    "<|ref_text|>": 304,
}
TEXTS = ("One sentence.", "Another, somewhat longer one.", "And three.", "Four")
REFERENCE_TEXT = "As I sound."
MAX_ROWS = 60

TEXT_EMBEDDING = "tied.embedding.text_embedding.weight"
AUDIO_EMBEDDING = "tied.embedding.modality_embeddings.0.embedding.weight"


def config() -> dict[str, Any]:
    """The ``config.json``, with the keys that the checkpoint's own has."""
    return {
        "model_type": "higgs_multimodal_qwen3",
        "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
        "audio_token_id": -100,
        "text_config": {
            "model_type": "qwen3",
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "head_dim": HEAD_DIM,
            "intermediate_size": FFN,
            "rms_norm_eps": RMS_NORM_EPS,
            "vocab_size": NUM_TEXT_TOKENS,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": ROPE_THETA, "rope_type": "default"},
        },
        "audio_encoder_config": {
            "model_type": "higgs_audio_encoder",
            "encoder_type": "discrete",
            "num_codebooks": NUM_CODEBOOKS,
            "vocab_size": CODEBOOK_SIZE,
            "out_dim": HIDDEN,
            "tie_word_embeddings": True,
            "use_delay_pattern": True,
        },
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by the name that the checkpoint gives it."""
    queries, keys = HEADS * HEAD_DIM, KEY_VALUE_HEADS * HEAD_DIM
    found: dict[str, tuple[int, ...]] = {
        TEXT_EMBEDDING: (NUM_TEXT_TOKENS, HIDDEN),
        AUDIO_EMBEDDING: (NUM_CODEBOOKS * CODEBOOK_SIZE, HIDDEN),
        "body.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        of_layer = {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (queries, HIDDEN),
            "self_attn.k_proj": (keys, HIDDEN),
            "self_attn.v_proj": (keys, HIDDEN),
            "self_attn.o_proj": (HIDDEN, queries),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
        }
        found |= {f"body.layers.{layer}.{name}.weight": s for name, s in of_layer.items()}
    return found


def weights() -> dict[str, Array]:
    """The weights: matrices of variance 1 / columns, norms about 1.

    They come from the raw numbers of a bit generator, which NumPy keeps the same for ever.
    """
    numbers = np.random.PCG64(SEED)
    found = {}
    for name, shape in shapes().items():
        raw = numbers.random_raw(int(np.prod(shape))).reshape(shape)
        uniform = (raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1  # from -1 to 1
        scale = 0.3 if len(shape) == 1 else (3 / shape[1]) ** 0.5
        found[name] = (uniform * scale + (len(shape) == 1)).astype(np.float32)
    found[AUDIO_EMBEDDING][EOC] *= EOC_WEIGHT
    return found


def codes(num_frames: int, seed: int) -> npt.NDArray[np.int16]:
    """Random codes of a recording: (T, K)."""
    raw = np.random.PCG64(seed).random_raw(num_frames * NUM_CODEBOOKS) % np.uint64(BOC)
    return raw.reshape(num_frames, NUM_CODEBOOKS).astype(np.int16)


def drawn() -> dict[str, npt.NDArray[np.int16]]:
    """What a model is made to draw, by a name: (rows, K) each, for the stopping rule."""
    free = codes(40, seed=3)  # past its end a codebook may hold anything

    def ended(first: int, *others: int) -> npt.NDArray[np.int16]:
        rows = free.copy()
        for row in (first, *others):
            rows[row, 0] = EOC
        return rows

    filled = free.copy()
    for k in range(NUM_CODEBOOKS):
        filled[24 + k :, k] = EOC  # as training shows it: T = 24
    elsewhere = free.copy()
    elsewhere[12:, 3] = EOC
    return {
        "filled": filled,
        "free": ended(24),
        "twice": ended(20, 23),
        "in_ramp": ended(5, 30),
        "last_of_ramp": ended(7, 30),
        "first_after_ramp": ended(8),
        "other_codebook": elsewhere,
        "at_the_end": ended(38),
    }
