"""Every stage with its target, rule, module and version."""

from typing import NamedTuple


class Stage(NamedTuple):
    """The names and the version of one stage.

    Attributes:
        target: Brings it up to date: ``snakemake <target>``.
        rule: Forces a rerun: ``snakemake --forcerun <rule>``.
        module: Run by the rule: ``python -m higgs_pipe.<module>``.
        version: Bump it when the stage's output changes. Snakemake does not see edits to modules
            that a rule runs with ``python -m``, but reruns a rule whose parameters changed.
    """

    target: str
    rule: str
    module: str
    version: int


# By the name of the stage's settings, results/config/<name>.json; the miniatures have none.
STAGES = {
    "tiny": Stage("all", "tiny_base", "higgs.v2.miniature", 1),
    "tiny_v3": Stage("all", "tiny_base_v3", "higgs.v3.miniature", 2),
    "models": Stage("validate", "check_models", "check_models", 1),
    "base_model": Stage("pack", "pin_model", "pin_model", 1),
    "codec": Stage("tokenize", "pin_model", "pin_model", 1),
    "list_rows": Stage("validate", "list_rows", "list_rows", 9),
    "measure": Stage("validate", "measure_shard", "measure", 8),
    "validate": Stage("validate", "judge_clips", "validate", 13),
    "clips_page": Stage("validate", "clips_page", "clips_page", 6),
    "estimate": Stage("validate", "estimate", "estimate", 5),
    "tokenize": Stage("tokenize", "tokenize_shard", "tokenize_audio", 7),
    "pack": Stage("pack", "pack_rows", "pack", 9),
    "train": Stage("train", "train_adapter", "train", 9),
    "eval": Stage("eval", "eval_adapter", "evaluate", 8),
    "accept": Stage("eval", "accept_adapter", "accept", 1),
    "package": Stage("package", "package_adapter", "package", 10),
    "push": Stage("push", "push_adapter", "push", 2),
    "merge": Stage("package", "merge_adapter", "merge", 4),
    "report": Stage("report", "report", "report", 10),
}
