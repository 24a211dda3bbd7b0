"""Packs one split: draws and renders samples, assigns them to rows by length, builds the rows.

Two passes. The first draws the samples, renders their prompts and computes their lengths; prompts
are kept in a temporary file, like the codes. Best-fit-decreasing assigns samples to rows of at most
``pack.max_tokens`` positions. The second pass builds and writes the rows. Memory holds a few
numbers per clip, but not its codes.
"""

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from higgs_pipe.config.settings import PackConfig
from higgs_pipe.data.arrow import lists_to_arrow
from higgs_pipe.data.conversation import Conversation
from higgs_pipe.data.files import check_free_space
from higgs_pipe.data.hashing import unit_hash
from higgs_pipe.data.packing.bins import Indices, best_fit_decreasing
from higgs_pipe.data.packing.clips import Clips
from higgs_pipe.data.packing.codes_store import CodesStore
from higgs_pipe.data.packing.planner import (
    CLIP_TASKS,
    CONVERSATION,
    TASKS,
    SamplePlan,
    SamplePlanner,
)
from higgs_pipe.data.packing.results import PackedSplit, RejectedSample
from higgs_pipe.data.packing.turns import Recording
from higgs_pipe.data.specs import CLIPS, packed_spec
from higgs_pipe.data.spool import Spool
from higgs_pipe.data.tables import table_writer
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.codes import IGNORED
from higgs_pipe.higgs.prompts import NotRendered, Prompt, PromptRenderer

# The trainer reads a whole Parquet row group to get one row: at 2048 positions 0.6 ms in groups of
# 1, 1.9 ms of 4, 3.1 ms of 8, 5.6 ms of 16. The footer, which every process keeps, takes 780, 200,
# 100 and 50 bytes per row.
ROWS_PER_GROUP = 8
COUNTS = ("num_tokens", "num_audio_frames", "num_text_labels", "num_audio_labels")
SAMPLES_PER_CHUNK = 1024  # rendered together


class Rendering(NamedTuple):
    """Samples whose prompts are being rendered."""

    plans: Sequence[SamplePlan]
    conversations: Sequence[Conversation[Recording]]
    prompts: Future[list[Prompt | NotRendered]]


class Packer:
    """Packs one split: :meth:`plan`, then :meth:`write`.

    Args:
        clips: The table of clips.
        codes: The codes of its clips.
        renderer: Renders prompts for the base model.
        settings: Section ``pack``.
    """

    def __init__(
        self, clips: Clips, codes: CodesStore, renderer: PromptRenderer, settings: PackConfig
    ) -> None:
        self.rejected: list[RejectedSample] = []
        self.fallbacks: Counter[tuple[str, str]] = Counter()  # by speaker and reason
        self._clips = clips
        self._codes = codes
        self._renderer = renderer
        self._settings = settings
        self._spec = packed_spec(codes.codec_info.num_codebooks)
        self._tasks: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()  # of the rows that are built
        self._num_target_frames = 0
        self._names = array("i")  # the clip that each sample is named after
        self._lengths = array("i")  # S of each sample
        self._ends = array("q", [0])  # where each sample's record ends in the spool

    def plan(self, split: str, spool: Spool) -> None:
        """Draw and render the samples of a split, and spool them for :meth:`write`.

        Raises:
            UserError: No sample can be packed, or the template does not render a plain sample.
        """
        planner = SamplePlanner(self._clips, split, self._settings, self._renderer.rules)
        plans = planner.plans()
        chunks = iter(lambda: list(islice(plans, SAMPLES_PER_CHUNK)), [])
        waiting: deque[Rendering] = deque()
        with ThreadPoolExecutor(1) as background:  # renders a chunk while the next is drawn
            while True:
                while len(waiting) < 2 and (chunk := next(chunks, None)):
                    waiting.append(self._rendering(chunk, background))
                if not waiting:
                    break
                if shorter := self._take_all(waiting.popleft(), planner, spool):
                    waiting.appendleft(self._rendering(shorter, background))
        if not self._lengths:
            facts = [sample.message for sample in self.rejected]
            raise UserError(
                f"none of the {len(facts)} samples of the {split} split can be packed:\n"
                f"{list_offenders(facts)}"
                if facts
                else f"the {split} split has no clips; run: snakemake --forcerun {CLIPS.made_by}"
            )

    def _rendering(self, plans: Sequence[SamplePlan], background: Executor) -> Rendering:
        """Render some samples in the background."""
        conversations = self._renderer.conversations(plans, self._clips, self._settings)
        prompts = background.submit(self._renderer.prompts, conversations)
        return Rendering(plans, conversations, prompts)

    def _take_all(
        self, rendering: Rendering, planner: SamplePlanner, spool: Spool
    ) -> list[SamplePlan]:
        """:meth:`_take` each sample; reject a conversation that the template does not render."""
        plans, conversations, prompts = rendering
        shorter: list[SamplePlan] = []
        records: list[npt.NDArray[np.int32]] = []
        for plan, conversation, prompt in zip(plans, conversations, prompts.result(), strict=True):
            if isinstance(prompt, Prompt):
                recordings = [part for turn in conversation.turns for part in turn.recordings]
                shorter += self._take(plan, prompt, recordings, planner, records)
            elif plan.drawn_task == CONVERSATION:
                self._reject(
                    plan, "not_in_chat_template", f"{prompt.fact}; rewrite the conversation"
                )
            else:
                raise UserError(
                    f"{self._clips.place(plan.targets[0])}: {prompt.fact}; {self._renderer.remedy}"
                )
        if records:
            spool.append(np.concatenate(records))
        return shorter

    def _take(
        self,
        plan: SamplePlan,
        prompt: Prompt,
        recordings: Sequence[Recording],
        planner: SamplePlanner,
        records: list[npt.NDArray[np.int32]],
    ) -> list[SamplePlan]:
        """Append a sample that fits to ``records``; otherwise return shorter samples to try."""
        num_frames = [
            sum(int(self._codes.num_frames[clip]) for clip in recording.clips)
            for recording in recordings
        ]
        length = self._renderer.sample_length(prompt, num_frames)
        max_tokens = self._settings.max_tokens
        if length > max_tokens:
            if not (shorter := planner.shorter(plan)):
                self._reject(
                    plan,
                    "too_many_tokens",
                    f"{length} positions do not fit into pack.max_tokens = {max_tokens}; raise it "
                    "or split the recording",
                )
            return shorter
        for fallback in plan.fallbacks:
            self.fallbacks[fallback.speaker, fallback.reason] += 1
        self._tasks[plan.task] += 1
        is_target = prompt.is_target
        self._num_target_frames += sum(n for n, t in zip(num_frames, is_target, strict=True) if t)
        self._names.append(plan.targets[0])
        self._lengths.append(length)
        record = _record(prompt, recordings)
        records += record
        self._ends.append(self._ends[-1] + sum(map(len, record)))
        return []

    def _reject(self, plan: SamplePlan, reason: str, message: str) -> None:
        clip_id = self._clips.ids[plan.targets[0]].as_py()
        message = f"{self._clips.place(plan.targets[0])}: {message}"
        self.rejected.append(RejectedSample(clip_id=clip_id, reason=reason, message=message))

    def write(self, path: Path, spool: Spool, metadata: dict[str, Any]) -> PackedSplit:
        """Assign samples to rows, and write the rows by row group, stamped with ``metadata``."""
        max_tokens, info = self._settings.max_tokens, self._codes.codec_info
        # Two matrices of int16, compressed to about half; most positions are frames.
        num_bytes = 2 * info.num_codebooks * sum(self._lengths)
        check_free_space(path.parent, num_bytes, path.name)
        with (
            table_writer(path, self._spec, metadata) as writer,
            ThreadPoolExecutor(1) as background,  # encodes a row group while the next is built
        ):
            written: Future[None] | None = None
            for group in self.row_groups(spool):
                if written:
                    written.result()
                written = background.submit(writer.write_table, group, ROWS_PER_GROUP)
            if written:
                written.result()
        tasks = {task: self._tasks[task] for task in TASKS}
        counts = self._counts
        return PackedSplit(
            num_rows=counts["num_rows"],
            num_samples=len(self._lengths),
            tasks={task: n for task, n in tasks.items() if n or task in CLIP_TASKS},
            audio_seconds=self._num_target_frames / info.frame_rate_hz,
            **{name: counts[name] for name in COUNTS},
            fill=counts["num_tokens"] / (counts["num_rows"] * max_tokens),
        )

    def row_groups(self, spool: Spool) -> Iterator[pa.Table]:
        """Yield the packed rows in groups."""
        lengths, seed = np.frombuffer(self._lengths, np.int32), self._settings.seed
        bins = best_fit_decreasing(lengths, self._settings.max_tokens)
        # Best-fit-decreasing opens bins by descending length; the rows are in random order.
        bins.sort(key=lambda members: unit_hash("row", seed, self._name(members[0])))
        for start in range(0, len(bins), ROWS_PER_GROUP):
            yield self._row_group(bins[start : start + ROWS_PER_GROUP], spool)

    def _row_group(self, rows: Sequence[Indices], spool: Spool) -> pa.Table:
        """Build some rows, all their samples at once."""
        members = np.concatenate(rows)
        prompts, codes = [], []
        for member in members.tolist():
            start, end = self._ends[member], self._ends[member + 1]
            prompt, recordings = _from_record(spool.read(start, end - start))
            prompts.append(prompt)
            codes += [self._codes.joined(recording.clips) for recording in recordings]
        inputs = self._renderer.model_inputs(prompts, codes)
        lengths = np.frombuffer(self._lengths, np.int32)[members]
        num_frames = lengths - [len(p.ids) - len(p.is_target) for p in prompts]  # F of each sample
        starts = np.cumsum([0, *map(len, rows[:-1])])
        positions, frames = (np.add.reduceat(counted, starts) for counted in (lengths, num_frames))
        names = self._clips.ids.take(np.frombuffer(self._names, np.int32)[members])
        num_samples = [len(row) for row in rows]
        self._counts["num_rows"] += len(rows)
        self._counts["num_tokens"] += len(inputs.input_ids)
        self._counts["num_audio_frames"] += len(inputs.audio_input_ids)
        self._counts["num_text_labels"] += int(np.count_nonzero(inputs.labels != IGNORED))
        is_label = inputs.audio_labels != IGNORED
        self._counts["num_audio_labels"] += int(np.count_nonzero(is_label))
        columns: dict[str, tuple[Any, Any]] = {
            "input_ids": (inputs.input_ids, positions),
            "labels": (inputs.labels, positions),
            "audio_input_ids": (inputs.audio_input_ids, frames),
            "audio_labels": (inputs.audio_labels, frames),
            "sample_ids": (names, num_samples),
            "sample_lengths": (lengths, num_samples),
        }
        return lists_to_arrow(self._spec, columns)

    def _name(self, sample: int) -> str:
        return cast("str", self._clips.ids[self._names[sample]].as_py())


def _record(prompt: Prompt, recordings: Sequence[Recording]) -> list[npt.NDArray[np.int32]]:
    """Return the parts of a sample's record: sizes and recordings (is it a target, clips), prompt.

    :func:`_from_record` reads them joined.
    """
    described = [len(prompt.ids), len(recordings)]
    for recording, is_target in zip(recordings, prompt.is_target, strict=True):
        described += [is_target, len(recording.clips), *recording.clips]
    return [np.array(described, np.int32), prompt.ids, prompt.labels]


def _from_record(record: npt.NDArray[np.int32]) -> tuple[Prompt, list[Recording]]:
    num_ids, num_recordings = record[:2].tolist()
    ids, labels = record[len(record) - 2 * num_ids :].reshape(2, num_ids)
    described = record[2 : len(record) - 2 * num_ids].tolist()
    is_target, recordings, start = [], [], 0
    for _ in range(num_recordings):
        target, num_clips = described[start : start + 2]
        is_target.append(bool(target))
        recordings.append(Recording(tuple(described[start + 2 : start + 2 + num_clips])))
        start += 2 + num_clips
    return Prompt(ids, labels, tuple(is_target)), recordings
