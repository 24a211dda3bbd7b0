"""Check a checkpoint of Higgs TTS 3 for assumptions that only its weights can confirm.

Run it by ``make check-v3 BASE=…`` on a machine that has the checkpoint. Each check prints a line,
passed or failed, with its finding; the last one is speech to listen to.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from higgs_pipe.cli import main
from higgs_pipe.config.settings import Sampling
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.files import prepare_for
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.codes import Codes, delay
from higgs_pipe.higgs.family import V3, family_of_base
from higgs_pipe.higgs.pretrained import checkpoint_dir
from higgs_pipe.higgs.prompts import ModelPrompt
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.speech_prompts import SpeechPrompt
from higgs_pipe.higgs.v3.checkpoint import check_tensors
from higgs_pipe.higgs.v3.codec import CODEC_PREFIX
from higgs_pipe.training.preflight.data_checks import Check

logger = logging.getLogger("higgs_pipe")

DEMO = Path(__file__).parents[1] / "examples" / "demo"
TEXT = "The sun rises in the east."
MAX_SECONDS = 20.0
# Of the published tokenizer, as three ports spell them.
MARK_IDS = {
    "<|tts|>": 151667,
    "<|audio|>": 151670,
    "<|text|>": 151672,
    "<|ref_audio|>": 151679,
    "<|ref_text|>": 151680,
    "<|emotion:elation|>": 151681,
    "<|prosody:expressive_low|>": 151726,
}
PUBLISHED_NUM_TOKENS = 151_727


def run(
    base: str,
    codec: str = "bosonai/higgs-audio-v2-tokenizer",
    recording: Path = DEMO / "audio" / "ada-002.wav",
    transcript: str = "",
    speech: Path = Path("check-v3.wav"),
) -> None:
    """Check a checkpoint, and speak one sentence with the codec in its bundle.

    Checks that only trained weights can pass give "no evidence" if the checkpoint's vocabulary is
    not the published one, as in a miniature.

    Args:
        base: The checkpoint: a folder or a Hub id.
        codec: The codec to compare with that of the bundle: a folder or a Hub id.
        recording: Speech whose codes the model should predict; preferably of a real person.
        transcript: Its text; optional for the demo's recording.
        speech: WAV file to write.

    Raises:
        UserError: A check failed, the checkpoint cannot be loaded or is of another family, or the
            WAV cannot be written.
    """
    prepare_for(speech)
    named = Pretrained("base", base)
    if (family := family_of_base(named)) is not V3:
        raise UserError(f"{base} is a {family.name} checkpoint; name one of {V3.name}.")
    check_tensors(named)
    speaker = Speaker.load(base)
    is_published = len(speaker.renderer.tokenizer) == PUBLISHED_NUM_TOKENS
    checks = [
        Check("tensors", "passed", "the model knows every name, and none is missing"),
        compare_codecs(named, Pretrained("codec", codec)),
        compare_token_ids(speaker.renderer.tokenizer),
    ]
    of_trained = [compare_offsets(speaker, recording, transcript or _demo_text(recording))]
    [spoken] = speaker.speak([TEXT], Sampling(max_seconds=MAX_SECONDS))
    spoken.write(speech)
    how = "stopped by itself" if spoken.has_stopped else f"ran to the cap of {MAX_SECONDS:g} s"
    found = f"{spoken.duration_seconds:.1f} s, {how}: {speech}"
    of_trained.append(_check("speech", spoken.has_stopped, found))
    checks += of_trained if is_published else [without_evidence(check) for check in of_trained]
    for check in checks:
        logger.info("%s: %s: %s", check.status, check.name, check.found)
    if failed := [check.name for check in checks if check.status == "failed"]:
        raise UserError(f"{base}: {', '.join(failed)} failed; please report the lines above.")


def _check(name: str, has_passed: bool, found: str) -> Check:
    return Check(name, "passed" if has_passed else "failed", found)


def without_evidence(check: Check) -> Check:
    """Return a check as "no evidence", for weights that are not the published ones."""
    if check.status == "passed":
        return check
    return Check(check.name, "no evidence", f"{check.found}; not the published weights")


def compare_codecs(base: Pretrained, codec: Pretrained) -> Check:
    """Compare the codec in the bundle with another one, rounded to the bundle's dtype."""
    with Shards(checkpoint_dir(base)) as bundle, Shards(checkpoint_dir(codec)) as other:
        names = list(other.shapes)
        lacking = [name for name in names if CODEC_PREFIX + name not in bundle.shapes]
        differing: dict[str, float] = {}
        for name in names:
            if name not in lacking:
                mine = bundle[CODEC_PREFIX + name]
                difference = (mine.double() - other[name].to(mine.dtype).double()).abs().max()
                differing |= {name: float(difference)} if difference > 0 else {}
    if lacking:
        fact = f"{len(lacking)} of {len(names)} tensors are not in the bundle: {lacking[0]}"
        return _check("codec", False, fact)
    if differing:
        worst = max(differing, key=lambda name: differing[name])
        fact = f"{len(differing)} of {len(names)} tensors differ, {worst} by {differing[worst]:.2g}"
        return _check("codec", False, fact)
    return _check("codec", True, f"all {len(names)} tensors are those of {codec.name}")


def compare_token_ids(tokenizer: Any) -> Check:
    """Compare the ids of the prompt's marks with the published ones; show those of a plain text."""
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in MARK_IDS}
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    text = f"{TEXT!r} is {ids}"
    if tokenizer.decode(ids) != TEXT:
        return _check("token ids", False, f"{text}, which decodes to {tokenizer.decode(ids)!r}")
    if len(tokenizer) != PUBLISHED_NUM_TOKENS:
        fact = f"{text}; {len(tokenizer):,} tokens, so marks have ids of their own"
        return _check("token ids", True, fact)
    wrong = [f"{t} {found[t]}, not {i}" for t, i in MARK_IDS.items() if found[t] != i]
    return _check("token ids", not wrong, f"{text}; marks: {', '.join(wrong) or 'as expected'}")


@torch.inference_mode()
def compare_offsets(speaker: Speaker, recording: Path, transcript: str) -> Check:
    """Check that a recording's codes are best predicted one position before their own."""
    codes = speaker.voice(recording, transcript).codes
    prompt = speaker.prompt(SpeechPrompt(transcript))
    losses = [offset_loss(speaker.model, prompt, codes, offset) for offset in range(3)]
    shown = ", ".join(f"{loss:.3f} at {offset}" for offset, loss in enumerate(losses))
    found = f"{shown}, nats per code of {recording}"
    return _check("loss by offset", min(losses) == losses[1], found)


def offset_loss(native: Any, prompt: ModelPrompt, codes: Codes, offset: int) -> float:
    """Return the mean loss of codes (T, K), each predicted ``offset`` positions before its own."""
    num_frames, num_codebooks = codes.shape
    frames = delay([codes], 1024, 1025, margin=0)  # (F, K)
    placeholders = np.full(len(frames), native.config.audio_token_id)
    input_ids = np.concatenate([prompt.input_ids, placeholders]).astype(np.int64)
    logits = native(
        torch.from_numpy(input_ids)[None].to(native.device),
        torch.from_numpy(frames.astype(np.int64))[None].to(native.device),
        use_cache=False,
    )[0]  # (S, K, V)
    first = len(prompt.input_ids) - offset
    total = 0.0
    for k in range(num_codebooks):
        predicted = logits[first + k : first + k + num_frames, k].float()
        labels = torch.from_numpy(codes[:, k].astype(np.int64)).to(predicted.device)
        total += float(cross_entropy(predicted, labels))
    return total / int(num_codebooks)


def _demo_text(recording: Path) -> str:
    """Return the transcript of a recording of the demo."""
    sentences = (DEMO / "sentences.tsv").read_text(encoding="utf-8").splitlines()
    texts = {line.split("\t")[0]: line.split("\t")[-1] for line in sentences}
    if recording.stem not in texts:
        raise UserError(f"{recording}: --transcript is missing; give the text that is spoken.")
    return texts[recording.stem]


if __name__ == "__main__":
    main(run)
