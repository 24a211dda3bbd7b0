"""Alarms: signs in the logged numbers that training is going wrong.

They read only the lines of ``metrics.jsonl``: a resumed run replays its lines and is in the state
of a run that was never interrupted.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.codes import IGNORED, Codes

FLOOR_SHARE = 0.05
"""Of the codes' entropy. No loss on unseen speech comes near it; a model trained on labels that are
not shifted ends at a hundredth of it."""

UNIFORM_TOLERANCE_NATS = 0.05
NUM_LINES_STUCK = 5
STOP_LOSS_FALL = 0.02  # of the base's stop loss
STOP_LOSS_SETTLED_NATS = math.log(2)  # p(EOS) above 1/2: it need not fall
MIN_STEPS = 20  # slow progress before these means nothing
GRADIENT_RATIO = 100.0  # to the median of the lines before
MIN_GRADIENT_LINES = 5

Line = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """A named warning."""

    step: int
    name: str
    message: str

    def as_line(self) -> dict[str, int | str]:
        """Return the line of ``metrics.jsonl``."""
        return {"step": self.step, "alarm": self.name, "message": self.message}


class Alarms:
    """The alarms of a run, fed with each line as it is logged.

    ``audio_loss_below_floor``
        An audio loss on *unseen* clips under 5 % of the entropy of the held-out codes: the model
        sees the codes that it should predict. Unseen are the held-out clips, and in the first epoch
        the training clips: later, a small corpus that is memorised rightly has a low training loss.
        Clips that are in both splits set it off too.
    ``stop_loss_not_falling``
        Past half of the steps the held-out loss of the stream EOS labels is not 2 % below the
        base's, and p(EOS) is below 1/2: speech may never end.
    ``codebook_at_ln_v``
        Past half of the steps the last 5 training losses of a codebook are within 0.05 nats of
        ln V, a blind guess, though its codes have a lower entropy.
    ``gradient_zero``, ``gradient_exploding``
        The gradient's norm is 0, or over 100 times the median of the lines before.
    ``adapter_unchanged``
        The adapter's norm equals, to the last bit, that of the previous training line, at a
        learning rate above 0.

    An alarm is raised once, and again only after a line that did not raise it.

    Args:
        entropies: :func:`code_entropies` of the held-out rows, nats per codebook.
        codebook_size: V.
        num_steps: Optimizer steps of the whole run.
    """

    def __init__(self, entropies: list[float], codebook_size: int, num_steps: int) -> None:
        self.entropies = entropies
        self.codebook_size = codebook_size
        self.num_steps = num_steps
        self.active: dict[str, Alarm] = {}
        self._training: list[Line] = []
        self._base_stop_loss = math.inf

    def check(self, line: Line) -> list[Alarm]:
        """Return the alarms that this line raises and the previous one did not."""
        if "eval_loss" in line:
            found = self._of_held_out(line)
        elif "loss" in line:
            found = self._of_training(line)
        else:
            return []
        step, new = int(line["step"]), []
        for name, message in found.items():
            if message is None:
                self.active.pop(name, None)
            elif name not in self.active:
                self.active[name] = Alarm(step, name, message)
                new.append(self.active[name])
        return new

    def replay(self, metrics: str) -> None:
        """Restore the state after the lines of a ``metrics.jsonl``."""
        for line in map(json.loads, metrics.splitlines()):
            self.check(line)

    def refuse_active(self, step: int) -> None:
        """Stop a run of ``train.stop_on_alarm`` while an alarm is active.

        Raises:
            UserError: With the alarms.
        """
        if self.active:
            alarms = [f"{alarm.name}: {alarm.message}" for alarm in self.active.values()]
            raise UserError(
                f"stopped after step {step} by train.stop_on_alarm, checkpoint saved:\n"
                f"{list_offenders(alarms)}\n"
                "Fix the cause; or set train.stop_on_alarm: false and run snakemake again to "
                "resume from here."
            )

    def _of_held_out(self, line: Line) -> dict[str, str | None]:
        if line["step"] == 0:
            self._base_stop_loss = line["eval_stop_loss"]
        found = {"audio_loss_below_floor": self._below_floor(line, "eval_", "held-out")}
        if self._is_late(line):
            found["stop_loss_not_falling"] = self._stop_loss_not_falling(line["eval_stop_loss"])
        return found

    def _of_training(self, line: Line) -> dict[str, str | None]:
        found = {
            "gradient_zero": self._gradient_zero(line),
            "gradient_exploding": self._gradient_exploding(line),
            "adapter_unchanged": self._adapter_unchanged(line),
        }
        self._training.append(line)
        if line["epoch"] <= 1:
            found["audio_loss_below_floor"] = self._below_floor(line, "", "first epoch's")
        if self._is_late(line):
            found["codebook_at_ln_v"] = self._at_ln_v()
        return found

    def _is_late(self, line: Line) -> bool:
        return line["step"] >= max(MIN_STEPS, self.num_steps / 2)

    def _below_floor(self, line: Line, prefix: str, split: str) -> str | None:
        low = [
            f"codebook {k} at {loss:.4f} of {entropy:.2f}"
            for k, entropy in enumerate(self.entropies)
            if (loss := line[f"{prefix}audio_loss_codebook_{k}"]) < FLOOR_SHARE * entropy
        ]
        if not low:
            return None
        return (
            f"the {split} audio loss is under {FLOOR_SHARE:.0%} of the codes' entropy, which no "
            f"speech model reaches on unseen clips ({'; '.join(low)} nats): it sees the codes that "
            "it should predict, and will generate silence. Look for unshifted labels, "
            "or for the same recordings in both splits."
        )

    def _stop_loss_not_falling(self, loss: float) -> str | None:
        is_lower = loss < (1 - STOP_LOSS_FALL) * self._base_stop_loss
        if is_lower or loss < STOP_LOSS_SETTLED_NATS:
            return None
        return (
            f"the held-out loss of the stream EOS labels is {loss:.3f}; before training it was "
            f"{self._base_stop_loss:.3f}. Speech may never end. Raise "
            "train.learning_rate or train.num_epochs; check in preflight.json that every clip has "
            "its EOS labels."
        )

    def _at_ln_v(self) -> str | None:
        uniform = math.log(self.codebook_size)
        last = self._training[-NUM_LINES_STUCK:]
        stuck = [
            str(k)
            for k, entropy in enumerate(self.entropies)
            if entropy < uniform - UNIFORM_TOLERANCE_NATS
            and all(
                abs(line[f"audio_loss_codebook_{k}"] - uniform) < UNIFORM_TOLERANCE_NATS
                for line in last
            )
        ]
        if not stuck or len(last) < NUM_LINES_STUCK:
            return None
        return (
            f"the loss of codebook {', '.join(stuck)} stays at ln V = {uniform:.3f}, a blind guess:"
            " it learns nothing. Check that the codes come from the base model's codec, and "
            "that train.lora.target_modules includes the audio FFN."
        )

    def _gradient_zero(self, line: Line) -> str | None:
        if line["grad_norm"] != 0:
            return None
        return (
            "the gradient norm is 0: nothing is learned. Check that the step's rows have labels, "
            "and that train.dtype does not round the gradient to zero."
        )

    def _gradient_exploding(self, line: Line) -> str | None:
        if len(self._training) < MIN_GRADIENT_LINES:
            return None
        median = statistics.median(line["grad_norm"] for line in self._training)
        if line["grad_norm"] <= GRADIENT_RATIO * median or median == 0:
            return None
        return (
            f"the gradient norm is {line['grad_norm']:.3g}, over {GRADIENT_RATIO:.0f} times the "
            f"median so far ({median:.3g}). Lower train.learning_rate, and listen to the step's "
            "clips."
        )

    def _adapter_unchanged(self, line: Line) -> str | None:
        if not self._training or line["learning_rate"] == 0:
            return None
        before = self._training[-1]
        if line["adapter_norm"] != before["adapter_norm"]:
            return None
        return (
            f"the adapter's weights are still those of step {before['step']}: the optimizer does "
            "not update them, or train.learning_rate is too low for their dtype."
        )


def code_entropies(audio_labels: Iterable[Codes]) -> list[float]:
    """Compute the entropy of each codebook's labels, in nats, from their frequencies.

    With few labels the entropy, and so the floor, is too low: the alarm then errs towards silence.

    Args:
        audio_labels: Of packed rows, (F, K) each; without labels the entropy of a codebook is 0.
    """
    entropies = []
    for codebook in np.concatenate(list(audio_labels)).T:
        counts = np.bincount(codebook[codebook != IGNORED])
        shares = counts[counts > 0] / counts.sum()
        entropies.append(float(-(shares * np.log(shares)).sum()))
    return entropies
