"""Which EOC of Higgs TTS 3 should be labels? Overfit a miniature with each, and let it speak.

    PYTHONPATH=. python bench/eoc_labels.py --output results/bench/eoc-labels.json

Recordings of 9 to 50 frames are learned by heart, then spoken again by the servers' rule: codes are
drawn freely after the ramp, and codebook 0's EOC stops. Counted are stops at another frame than the
recording's last, and of the right ones the codes that differ in the triangle that is drawn after
that EOC, 28 of each recording.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from higgs_pipe.config.settings import Sampling
from higgs_pipe.higgs.codes import IGNORED, Codes, delay
from higgs_pipe.higgs.generation import generate
from higgs_pipe.higgs.prompts import ModelPrompt
from higgs_pipe.higgs.v3.miniature import raw_config
from higgs_pipe.higgs.v3.native import HiggsV3Config, HiggsV3Model

NUM_FRAMES = (9, 14, 20, 28, 37, 50)
K, BOC, EOC = 8, 1024, 1025
# EOC labels of codebook k, of the 7 - k that fill its frames.
KINDS = {
    "first of codebook 0": lambda k: int(k == 0),
    "first of each codebook": lambda k: 1,
    "all": lambda k: K,
}
DRAWS = {
    "greedy": Sampling(temperature=0, max_seconds=4),
    "top-k 50, top-p 0.95": Sampling(ras_win_len=0, max_seconds=4),
    "temperature 1 alone": Sampling(top_k=0, top_p=1, ras_win_len=0, max_seconds=4),
}
NUM_TAKES = {"greedy": 1, "top-k 50, top-p 0.95": 5, "temperature 1 alone": 5}


def labels_of(codes: Codes, kind: str) -> torch.Tensor:
    """The labels of a recording's frames: (F, K)."""
    frames = delay([codes], BOC, EOC, 0).astype(np.int64)
    frames[frames == BOC] = IGNORED
    for k in range(K):
        frames[k + len(codes) + KINDS[kind](k) :, k] = IGNORED  # type: ignore[no-untyped-call]
    return torch.from_numpy(frames)


def measure(kind: str, seed: int, num_steps: int) -> dict[str, Any]:
    """Train with a kind of labels, and count what is spoken wrong."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    recordings = [random.integers(0, BOC, (n, K)).astype(np.int16) for n in NUM_FRAMES]
    texts = [random.integers(0, 256, 12).astype(np.int32) for _ in NUM_FRAMES]
    model = HiggsV3Model(HiggsV3Config(**raw_config(320, 64, 2, 0.05)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, num_steps, pct_start=0.07)
    loss = torch.tensor(0.0)
    for _ in range(num_steps):
        sums, counts = torch.zeros(K), torch.zeros(K)
        for text, codes in zip(texts, recordings, strict=True):
            frames = torch.from_numpy(delay([codes], BOC, EOC, 0).astype(np.int64))
            ids = torch.cat(
                [torch.from_numpy(text.astype(np.int64)), torch.full((len(frames),), -100)]
            )
            logits = model(ids[None], frames[None])[0, len(text) - 1 : -1]
            labels = labels_of(codes, kind)
            losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            sums = sums + losses.view(-1, K).sum(0)
            counts += (labels != IGNORED).sum(0)
        loss = (sums / counts).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return {"kind": kind, "seed": seed, "loss": loss.item()} | {
        name: spoken_wrong(model.eval(), texts, recordings, name, seed) for name in DRAWS
    }


def spoken_wrong(
    model: HiggsV3Model, texts: list[np.ndarray], recordings: list[Codes], draw: str, seed: int
) -> dict[str, int]:
    """Count wrong stops, and wrong codes at the end of what stopped rightly."""
    counts = dict.fromkeys(("takes", "early", "late", "never", "end_codes", "wrong_end_codes"), 0)
    prompts = [ModelPrompt(text, np.empty((0, K), np.int16)) for text in texts]
    for take in range(NUM_TAKES[draw]):
        sampling = DRAWS[draw].model_copy(update={"seed": 100 * seed + take})
        for codes, found in zip(recordings, generate(model, prompts, sampling, 25.0), strict=True):
            counts["takes"] += 1
            counts["never"] += not found.has_stopped
            counts["early"] += found.has_stopped and len(found.codes) < len(codes)
            counts["late"] += found.has_stopped and len(found.codes) > len(codes)
            if found.has_stopped and len(found.codes) == len(codes):
                frame, codebook = np.indices(codes.shape)
                is_end = frame + codebook >= len(codes)
                counts["end_codes"] += int(is_end.sum())
                counts["wrong_end_codes"] += int((found.codes != codes)[is_end].sum())
    return counts


def table(found: list[dict[str, Any]]) -> list[str]:
    """The table of docs/decisions/0023, as lines of Markdown: all seeds of a kind together."""
    lines = ["| labels | draw | wrong stops | wrong end codes |", "|---|---|---|---|"]
    for kind in KINDS:
        for draw in DRAWS:
            counts: Counter[str] = Counter()
            for measured in found:
                if measured["kind"] == kind:
                    counts.update(measured[draw])
            wrong = counts["early"] + counts["late"] + counts["never"]
            share = counts["wrong_end_codes"] / max(counts["end_codes"], 1)
            lines.append(
                f"| {kind} | {draw} | {wrong} of {counts['takes']} | {100 * share:.1f} % |"
            )
    return lines


def main() -> None:
    """Measure each kind with some seeds, write a JSON with a line of each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for kind in KINDS:
            found.append(measure(kind, seed, options.steps))
            print(json.dumps(found[-1]), flush=True)
            options.output.write_text(json.dumps(found, indent=2), encoding="utf-8")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
