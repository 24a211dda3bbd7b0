r"""Speech from text, by a base with or without an adapter.

::

    python -m higgs_pipe.speak --adapter results/adapters/default --text "Good morning." \
        --out morning.wav

From Python::

    from higgs_pipe.speak import Speaker
    speaker = Speaker.load(adapter="results/adapters/default")
    speaker.speak(["Good morning."])[0].write("morning.wav")
"""

import logging
from pathlib import Path

from pydantic import Field, ValidationError

from higgs_pipe.cli import main
from higgs_pipe.config.settings import Device, Dtype, Sampling
from higgs_pipe.data.files import prepare_for
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.generation import DEFAULT_BATCH_SIZE, Spoken
from higgs_pipe.higgs.speaker import DEFAULT_MAX_PIECE_LENGTH, Speaker
from higgs_pipe.higgs.speech_prompts import SpeechPrompt, Voice

__all__ = ["Sampling", "Speaker", "SpeechPrompt", "Spoken", "Voice", "run"]

logger = logging.getLogger("higgs_pipe")

DEFAULTS = Sampling()


class SpeakOptions(Sampling):
    """The options of the command line that have bounds."""

    device: Device
    dtype: Dtype
    batch_size: int = Field(ge=1)
    max_piece_length: int = Field(ge=20)


def run(
    text: str | None = None,
    texts: Path | None = None,
    out: Path | None = None,
    out_dir: Path | None = None,
    adapter: Path | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    codec: str | None = None,
    codec_revision: str | None = None,
    reference: list[Path] | None = None,
    reference_text: list[str] | None = None,
    scene: str | None = None,
    system_prompt: str | None = None,
    temperature: float = DEFAULTS.temperature,
    top_p: float = DEFAULTS.top_p,
    top_k: int = DEFAULTS.top_k,
    ras_win_len: int = DEFAULTS.ras_win_len,
    ras_win_max_num_repeat: int = DEFAULTS.ras_win_max_num_repeat,
    max_seconds: float = DEFAULTS.max_seconds,
    seed: int = DEFAULTS.seed,
    max_piece_length: int = DEFAULT_MAX_PIECE_LENGTH,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Speak a text to a WAV file, or each line of a text file to its own WAV file.

    Args:
        text: The text; in a dialogue, [SPEAKER0] and so on begin the turns.
        texts: UTF-8 file with one text per line; empty lines are skipped.
        out: The WAV of ``text``.
        out_dir: Folder of the WAVs of ``texts``, named by line: 0001.wav.
        adapter: Folder of a PEFT adapter, which also names base and codec.
        base: Folder or Hub id of the base.
        base_revision: Its Hub revision.
        codec: Folder or Hub id of the codec.
        codec_revision: Its Hub revision.
        reference: Recording of the voice; in a dialogue, one per speaker.
        reference_text: Transcript of the reference; one per reference.
        scene: Description of place and speaker.
        system_prompt: The system message; that of the adapter's training by default.
        temperature: Sampling temperature; 0 always takes the most likely code.
        top_p: Draw from the most likely codes that together have this probability.
        top_k: Draw from this many most likely codes; 0: from all.
        ras_win_len: Recent frames in which repeated codes are counted; 0: off.
        ras_win_max_num_repeat: A code that occurs this often in them is drawn again.
        max_seconds: Longest speech of a text, or of a piece of a long text.
        seed: Another seed gives another take.
        max_piece_length: In letters; longer texts are split at sentences.
        batch_size: Texts spoken at once.
        device: auto, cuda or cpu.
        dtype: Dtype of the base: auto, bfloat16, float32 or float64.

    Raises:
        UserError: An option is missing, out of bounds or in conflict with another; a text cannot
            be spoken; or a file or model cannot be loaded.
    """
    options = _options(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        ras_win_len=ras_win_len,
        ras_win_max_num_repeat=ras_win_max_num_repeat,
        max_seconds=max_seconds,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        max_piece_length=max_piece_length,
    )
    texts_by_path = _texts_by_path(text, texts, out, out_dir)
    references, transcripts = reference or [], reference_text or []
    if len(references) != len(transcripts):
        raise UserError(
            f"{len(references)} recordings after --reference and {len(transcripts)} transcripts "
            "after --reference-text; give one transcript per recording."
        )
    read = {path.resolve() for path in (*references, *([] if texts is None else [texts]))}
    for path in texts_by_path:
        if path.resolve() in read:
            raise UserError(f"{path} is also read, and would be replaced; name another output.")
        prepare_for(path)
    speaker = Speaker.load(
        base,
        adapter,
        codec,
        base_revision=base_revision,
        codec_revision=codec_revision,
        system_prompt=system_prompt,
        device=options.device,
        dtype=options.dtype,
    )
    voices = tuple(map(speaker.voice, references, transcripts))
    prompts = [SpeechPrompt(words, voices, scene) for words in texts_by_path.values()]
    clips = speaker.speak(prompts, options, options.batch_size, options.max_piece_length)
    spoken = dict(zip(texts_by_path, clips, strict=True))
    for path, clip in spoken.items():
        clip.write(path)
        logger.info("%s: %.2f s", path, clip.duration_seconds)
    endless = [str(path) for path, clip in spoken.items() if not clip.has_stopped]
    if endless:
        logger.warning(
            "%d of %d did not stop by themselves and were cut after %g s, as a whole or in a "
            "piece:\n%s\nTry another seed or a higher temperature, or raise --max-seconds.",
            len(endless),
            len(spoken),
            max_seconds,
            list_offenders(endless),
        )
    if mute := [str(path) for path, clip in spoken.items() if not len(clip.codes)]:
        logger.warning("%d of %d are empty:\n%s", len(mute), len(spoken), list_offenders(mute))


def _options(**values: object) -> SpeakOptions:
    try:
        return SpeakOptions.model_validate(values)
    except ValidationError as error:
        offenders = [
            f"--{str(item['loc'][0]).replace('_', '-')} {item['input']}: {item['msg']}"
            for item in error.errors()
        ]
        raise UserError(f"options out of bounds:\n{list_offenders(offenders)}") from None


def _texts_by_path(
    text: str | None, texts: Path | None, out: Path | None, out_dir: Path | None
) -> dict[Path, str]:
    """Return the text for each WAV to write."""
    if text is not None and out is not None and texts is None and out_dir is None:
        if out.suffix.lower() != ".wav":
            raise UserError(f"--out {out}: only WAV is written; name a file that ends in .wav.")
        return {out: text}
    if texts is None or out_dir is None or text is not None or out is not None:
        raise UserError("give --text and --out, or --texts and --out-dir.")
    try:
        # Not splitlines, which also ends a line at a form feed or U+2028, as no editor does.
        lines = texts.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {texts} cannot be read as UTF-8 text: {error}") from None
    by_path = {
        out_dir / f"{number:04d}.wav": line
        for number, line in enumerate(lines, start=1)
        if line.strip()
    }
    if not by_path:
        raise UserError(f"--texts {texts} holds no text; write one text per line.")
    return by_path


if __name__ == "__main__":
    main(run)
