"""Build a complete miniature Higgs Audio v2 checkpoint, offline, in the native format.

It has everything that the 3B checkpoint has, in the same files, and is loaded by the same code. Its
weights are random: it is the base of the demo and of the tests, and cannot speak.

::

    OUTPUT_DIR/                  model, text tokenizer, processor, chat template
    OUTPUT_DIR/audio_tokenizer/  codec and its feature extractor
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    DacFeatureExtractor,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerModel,
    PreTrainedTokenizerFast,
)

from higgs_pipe.cli import main
from higgs_pipe.higgs.miniature_codec import SAMPLE_RATE_HZ, build_codec
from higgs_pipe.higgs.miniature_parts import byte_level_tokenizer, for_transformers, vary_norms

AUDIO_TOKENIZER = "audio_tokenizer"

# Llama 3's special tokens in id order from 128000 on, with Higgs Audio's uses of the reserved ones.
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|recipient|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
    "<|generation_instruction_start|>",
    "<|generation_instruction_end|>",
)
NUM_SPECIAL_TOKENS = 64
NUM_SPECIAL_TOKENS_FULL = 256
NUM_TEXT_TOKENS_FULL = 128_000

# Llama 3's rule for cutting text into words before BPE.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Renders like the published checkpoint's template: a system message, an optional scene inside it,
# then the turns; each assistant turn is one audio placeholder.
CHAT_TEMPLATE = (
    Path(__file__).parents[2] / "templates" / "miniature_chat_template.jinja"
).read_text(encoding="utf-8")


def run(
    output_dir: Path,
    hidden_size: int = 128,
    num_layers: int = 2,
    initializer_range: float = 0.2,
    seed: int = 0,
) -> None:
    """Build the miniature checkpoint in ``output_dir``.

    Args:
        output_dir: Folder to write; the codec lies in its ``audio_tokenizer/``.
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
    """Build it as :func:`run` does; ``full_vocab`` gives the 128256 text tokens their real ids."""
    output_dir = output_dir.resolve()
    codec_dir = output_dir / AUDIO_TOKENIZER
    codec = build_codec(seed)
    codec.save_pretrained(codec_dir)
    _feature_extractor(codec.config.hop_length).save_pretrained(codec_dir)

    tokenizer = build_tokenizer(full_vocab)
    config = _model_config(tokenizer, codec.config, hidden_size, num_layers, initializer_range)
    torch.manual_seed(seed)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    vary_norms(model)
    generation = model.generation_config
    generation._from_model_config = False
    generation.bos_token_id = config.bos_token_id
    generation.eos_token_id = config.eos_token_id
    generation.pad_token_id = config.pad_token_id
    generation.ras_win_len, generation.ras_win_max_num_repeat = 7, 2
    generation.use_text_head = True
    model.save_pretrained(output_dir)

    processor = HiggsAudioV2Processor(
        feature_extractor=_feature_extractor(hop_length=1),
        tokenizer=tokenizer,
        # The processor stores the directory that its codec was loaded from.
        audio_tokenizer=HiggsAudioV2TokenizerModel.from_pretrained(codec_dir),
        chat_template=CHAT_TEMPLATE,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
    )
    processor.save_pretrained(output_dir)


def _model_config(
    tokenizer: PreTrainedTokenizerFast,
    codec_config: Any,
    hidden_size: int,
    num_layers: int,
    initializer_range: float,
) -> HiggsAudioV2Config:
    token_id = tokenizer.convert_tokens_to_ids
    return HiggsAudioV2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=2048,
        initializer_range=initializer_range,
        num_codebooks=codec_config.num_quantizers,
        codebook_size=codec_config.codebook_size + 2,
        audio_stream_bos_id=codec_config.codebook_size,
        audio_stream_eos_id=codec_config.codebook_size + 1,
        audio_token_id=token_id("<|AUDIO_OUT|>"),
        audio_bos_token_id=token_id("<|audio_out_bos|>"),
        audio_delay_token_id=token_id("<|reserved_special_token_6|>"),
        bos_token_id=token_id("<|begin_of_text|>"),
        eos_token_id=token_id("<|eot_id|>"),
        pad_token_id=token_id("<|end_of_text|>"),
    )


def _feature_extractor(hop_length: int) -> DacFeatureExtractor:
    return DacFeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE_HZ,
        hop_length=hop_length,
        return_attention_mask=True,
    )


def build_tokenizer(full_vocab: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Llama 3's special tokens and no merges."""
    num_special = NUM_SPECIAL_TOKENS_FULL if full_vocab else NUM_SPECIAL_TOKENS
    num_reserved = num_special - len(SPECIAL_TOKENS)
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(9, 9 + num_reserved)]
    tokenizer = byte_level_tokenizer(
        WORD_PATTERN,
        [*SPECIAL_TOKENS, *reserved],
        NUM_TEXT_TOKENS_FULL if full_vocab else None,
        ignore_merges=True,
    )
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return for_transformers(tokenizer, "<|end_of_text|>", bos_token=bos)


if __name__ == "__main__":
    main(run)
