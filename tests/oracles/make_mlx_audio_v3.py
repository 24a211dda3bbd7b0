"""Make ``mlx_audio_v3.npz``: what mlx-audio computes with the random model of :mod:`tiny_v3`.

Not part of any test run. In a virtual environment of its own, which needs no GPU::

    pip install --no-deps mlx-audio==0.6.2
    pip install 'mlx[cpu]==0.32.4' numpy huggingface_hub tqdm
    PYTHONPATH=tests python tests/oracles/make_mlx_audio_v3.py

The model, the prompt, the generation loop and the sampler are mlx-audio's own (MIT licence); only
its codec is left out, and the rows that it would decode are kept.

``logits`` holds every 57th entry, ``log_partition`` the logarithm of the sum of all exponentials.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_audio.tts.models.higgs_audio_v3 import (
    HiggsAudioV3Config,
    HiggsAudioV3PromptBuilder,
    HiggsSamplerState,
    Model,
    apply_delay_pattern,
    step,
)
from oracles import tiny_v3

VECTORS = Path(__file__).with_name("mlx_audio_v3.npz")
EVERY = 57
BOC, EOC = tiny_v3.BOC, tiny_v3.EOC


class ByteTokenizer:
    """A token per byte, and the tokens of a prompt."""

    def get_added_vocab(self) -> dict[str, int]:
        return tiny_v3.PROMPT_TOKENS

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(text.encode())


def load() -> Any:
    model = Model(HiggsAudioV3Config.from_dict(tiny_v3.config()))
    native = {name: mx.array(array) for name, array in tiny_v3.weights().items()}
    model.load_weights(list(model.sanitize(native).items()), strict=True)
    assert sum(p.size for _, p in tree_flatten(model.parameters())) == sum(
        array.size for array in tiny_v3.weights().values()
    )
    model._prompt_builder = HiggsAudioV3PromptBuilder(ByteTokenizer())
    return model


def delayed(codes: Any) -> Any:
    return apply_delay_pattern(mx.array(codes.astype(np.int32)), boc_id=BOC, eoc_id=EOC)


def teacher_forced(model: Any) -> dict[str, Any]:
    """Logits at every position of a prompt with a reference and its target."""
    reference = model._normalize_references(
        ref_audio_codes=delayed(tiny_v3.codes(9, seed=1)), ref_text=tiny_v3.REFERENCE_TEXT
    )
    prompt = model._prompt_builder.build_prompt(tiny_v3.TEXTS[0], references=reference)
    embedded, num_prompt = model._build_prompt_embeddings(tiny_v3.TEXTS[0], reference)
    target = delayed(tiny_v3.codes(22, seed=2))
    embedded = mx.concatenate([embedded, model._embed_audio_codes(target)[None]], axis=1)
    hidden = model(mx.zeros(embedded.shape[:2], mx.int32), input_embeddings=embedded)
    logits = model._audio_logits(hidden)[0]  # (P, K, V)
    log_partition = mx.logsumexp(logits, axis=-1)
    at = num_prompt - 1 + np.arange(target.shape[0])  # each row is predicted one position before
    of_target = mx.take_along_axis(logits[mx.array(at)], target[..., None], axis=-1)[..., 0]
    return {
        "token_ids": prompt.token_ids,
        "logits": logits[..., ::EVERY],
        "log_partition": log_partition,
        "target": target,
        "losses": log_partition[mx.array(at)] - of_target,  # (F, K), with those of BOC and EOC
    }


def generated(model: Any, text: str, with_reference: bool) -> Any:
    """The rows of mlx-audio's own generation, the most likely code each time."""
    rows: list[Any] = []

    def keep(delayed_rows: list[Any]) -> Any:
        rows.extend(delayed_rows)
        return mx.zeros((1,))

    model._decode_audio = keep
    reference = delayed(tiny_v3.codes(9, seed=1)) if with_reference else None
    words = tiny_v3.REFERENCE_TEXT if with_reference else None
    list(
        model.generate(
            text,
            ref_audio_codes=reference,
            ref_text=words,
            temperature=0.0,
            max_new_tokens=tiny_v3.MAX_ROWS,
        )
    )
    return mx.stack(rows)


def replayed(drawn: Any) -> tuple[Any, bool]:
    """The rows that the sampler makes of codes that the model is made to draw, and if it stops."""
    state = HiggsSamplerState(num_codebooks=tiny_v3.NUM_CODEBOOKS)
    rows = []
    for row in drawn:
        logits = mx.eye(tiny_v3.CODEBOOK_SIZE)[mx.array(row)]
        rows.append(
            step(logits, state, temperature=0.0, top_p=None, top_k=None, boc_id=BOC, eoc_id=EOC)
        )
        if state.generation_done:
            break
    return mx.stack(rows), state.generation_done


def main() -> None:
    model = load()
    made = teacher_forced(model)
    for number, text in enumerate(tiny_v3.TEXTS):
        for with_reference in (False, True):
            name = f"generated_{number}_{'cloning' if with_reference else 'speech'}"
            made[name] = generated(model, text, with_reference)
            print(name, made[name].shape)
    for name, drawn in tiny_v3.drawn().items():
        rows, has_stopped = replayed(drawn)
        made[f"replayed_{name}"], made[f"stopped_{name}"] = rows, has_stopped
        print(name, rows.shape, has_stopped)
    arrays = {name: np.array(value) for name, value in made.items()}
    vectors: dict[str, Any] = {
        name: array.astype(np.int16) if array.dtype in (np.int32, np.int64) else array
        for name, array in arrays.items()
    }
    np.savez_compressed(VECTORS, **vectors)


if __name__ == "__main__":
    main()
