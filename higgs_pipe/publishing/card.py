"""The model card: everything needed to judge and use an adapter, every number from a file."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import higgs_pipe
from higgs_pipe.config.settings import PackageConfig
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.family import Family
from higgs_pipe.higgs.pretrained import checkpoint_dir
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.publishing.naming import public_name
from higgs_pipe.publishing.provenance import Provenance
from higgs_pipe.publishing.samples import PublishedSample
from higgs_pipe.reporting.charts import Chart
from higgs_pipe.reporting.experiments import EvalResults
from higgs_pipe.training.results import EvalMetrics

METRIC_ROWS = (
    ("eval_loss", "loss (text + audio)"),
    ("eval_text_loss", "text"),
    ("eval_audio_loss", "audio, mean of codebooks"),
    ("eval_audio_loss_codebook_0", "audio, codebook 0"),
    ("eval_stop_loss", "stop"),
)
# What Markdown, GitHub's autolinks or the Hub's formulas read as markup.
MARKUP = re.compile(r"([\\`*_{}\[\]()!|<>~&@$]|^[-+#=]|:(?=\S)|\.(?=\w*[A-Za-z]))")
NUMBERED = re.compile(r"^(\d+)\.")


@dataclass(frozen=True)
class CardModel:
    """A checkpoint as the card shows it; ``licence`` is None if its files state none."""

    name: str
    revision: str | None
    fingerprint: str
    licence: str | None

    @classmethod
    def of(cls, pretrained: Pretrained, fingerprint: str) -> "CardModel":
        """Describe a checkpoint that is already on this machine."""
        name, licence = public_name(pretrained.name), licence_of(checkpoint_dir(pretrained))
        return cls(name, pretrained.revision, fingerprint, licence)

    @property
    def is_on_hub(self) -> bool:
        """Return whether the checkpoint came from the Hub."""
        return self.revision is not None


@dataclass(frozen=True)
class CardFacts:
    """All facts on a card."""

    provenance: Provenance
    family: Family
    base: CardModel
    codec: CardModel
    settings: PackageConfig
    metrics: EvalMetrics
    verdict: Verdict
    other: EvalResults | None  # on eval.other_manifest
    loss_chart: Chart
    samples: Sequence[PublishedSample]


def model_card(facts: CardFacts) -> str:
    """Render ``README.md`` with the Hub's metadata."""
    rows = metric_rows(facts.metrics)
    provenance, pack = facts.provenance, facts.provenance.config["pack"]["pack"]
    training: dict[str, Any] = {}
    for key, value in provenance.config["train"]["train"].items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        training |= {f"{key} {part}".rstrip(): setting for part, setting in parts}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("higgs_pipe"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML: see as_text
    )
    environment.filters |= {"text": as_text, "python": as_python}
    return environment.get_template("model_card.md.j2").render(
        front_matter=metadata(facts).to_yaml(line_break="\n").strip(),
        name=provenance.name,
        family=facts.family,
        forms=[form for form in dict.fromkeys(facts.settings.forms) if form in facts.family.forms],
        description=facts.settings.description,
        base=facts.base,
        base_options="" if facts.base.is_on_hub else f"--base {shlex.quote(facts.base.name)} ",
        codec=facts.codec,
        ancestor=provenance.ancestor,
        version=higgs_pipe.__version__,
        data=provenance.data,
        metrics=facts.metrics,
        verdict=facts.verdict,
        other=facts.other,
        metric_rows=rows,
        loss_chart=f"{facts.loss_chart.file_name}.svg",
        loss_description=facts.loss_chart.description,
        samples=facts.samples,
        system_prompt=pack["system_prompt"],
        clean_text=pack["clean_text"],
        train={key: value for key, value in training.items() if value is not None},
        verification=provenance.verification,
    )


def metric_rows(metrics: EvalMetrics) -> list[tuple[str, str]]:
    """Return the losses of a card, without those that the base lacks."""
    has_text = metrics.adapter.eval_text_loss is not None
    names = {"eval_text_loss": "text", "eval_loss": "loss (text + audio)" if has_text else "loss"}
    return [
        (key, names.get(key, label))
        for key, label in METRIC_ROWS
        if getattr(metrics.adapter, key) is not None
    ]


def metadata(facts: CardFacts) -> ModelCardData:
    """Return the metadata that the Hub indexes, with the numbers of eval."""
    num_clips = facts.metrics.adapter.num_clips
    results = [
        EvalResult(
            task_type="text-to-speech",
            dataset_type="private",
            dataset_name=f"{num_clips} held-out clips",
            metric_type=key,
            metric_name=f"{label}, nats per label",
            metric_value=getattr(facts.metrics.adapter, key),
        )
        for key, label in metric_rows(facts.metrics)
    ]
    examples = [{"text": s.text, "output": {"url": s.adapter}} for s in facts.samples]
    data = ModelCardData(
        model_name=facts.provenance.name,
        eval_results=results,
        base_model=facts.base.name if facts.base.is_on_hub else None,  # the Hub would link it
        library_name="peft",
        pipeline_tag="text-to-speech",
        license=facts.settings.license,
        language=facts.provenance.data.language_codes,
        tags=[facts.family.hub_tag, "lora", "text-to-speech"],
    )
    if examples:
        data["widget"] = examples
    return data


def licence_of(folder: Path) -> str | None:
    """Return the licence that a checkpoint's own model card states; None if it states none."""
    try:
        data = ModelCard((folder / "README.md").read_text(encoding="utf-8")).data
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence = data.get("license_name") or data.get("license")
    return None if licence is None else str(licence)


def as_text(value: object) -> str:
    """Return Markdown that shows a value literally, on one line."""
    visible = (c if c.isprintable() or c.isspace() else "\ufffd" for c in str(value))
    one_line = " ".join("".join(visible).split())
    return NUMBERED.sub(r"\1\\.", MARKUP.sub(r"\\\1", one_line))


def as_python(value: str) -> str:
    """Return a Python literal of a string, in double quotes."""
    return json.dumps(value, ensure_ascii=False)
