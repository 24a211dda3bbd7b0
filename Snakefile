# higgs-pipe: recordings in, one adapter out. Every stage is a rule that runs one Python module, with
# files in and files out:
#
#   manifest -> validate -> tokenize -> pack -> train -> eval -> package -> report
#
# `snakemake` makes everything; `snakemake <stage>` brings that stage and everything it needs up to date.
import atexit
import re
import sys
from pathlib import Path

import higgs_pipe.planning.ancestors as ancestors
import higgs_pipe.planning.bases as bases
import higgs_pipe.planning.config_check as config_check
import higgs_pipe.planning.console as console
import higgs_pipe.planning.failures as failures
import higgs_pipe.planning.families as families
import higgs_pipe.planning.file_names as file_names
import higgs_pipe.planning.forms as forms
import higgs_pipe.planning.interruption as interruption
import higgs_pipe.planning.launching as launching
import higgs_pipe.planning.manifests as manifests
import higgs_pipe.planning.model_types as model_types
import higgs_pipe.planning.models as models
import higgs_pipe.planning.pinning as pinning
import higgs_pipe.planning.prerequisites as prerequisites
import higgs_pipe.planning.products as products
import higgs_pipe.planning.recordings as recordings
import higgs_pipe.planning.results as results
import higgs_pipe.planning.stages as stages
import higgs_pipe.planning.storage as object_storage

config_check.or_exit(prerequisites.check_snakemake)
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
config_check.or_exit(prerequisites.check_place, ROOT)
shown = workflow.output_settings
IS_MODULE = not workflow.modifier.is_main_snakefile()  # of another workflow
if (
    workflow.is_main_process
    and not IS_MODULE
    and not (shown.verbose or shown.printshellcmds)
):
    console.shorten(shown.dryrun)

# Jobs that use a GPU take turns, by the GPUs found here, unless --resources gives their number.
if (
    workflow.is_main_process
    and not IS_MODULE
    and workflow.local_exec
    and "gpu" not in workflow.resource_settings.resources
):
    if num_gpus := launching.num_gpus_here():
        workflow.register_resource("gpu", num_gpus)


# The config file in the folder, or else the checkout's.
configfile: config_check.config_path_or_exit(Path("config.yaml"), ROOT / "config.yaml")


report: "workflow/report/workflow.rst"


# For --software-deployment-method apptainer: the image that the Dockerfile makes, in this folder.
container: "higgs-pipe.sif"


SCHEMA_PATH = ROOT / "workflow" / "schemas" / "config.schema.yaml"
given = workflow.config_settings.overwrite_config  # by --configfile and --config
config = config_check.or_exit(config_check.load_config, config, SCHEMA_PATH, given)
config_check.or_exit(
    results.check_writable,
    [
        workflow.pathvars.apply(f"<{name}>")
        for name in ("results", "resources", "logs", "benchmarks")
    ],
)
config_check.or_exit(object_storage.check, config)
# The config for each base that experiments are trained on, by its folder below the results.
OF_BASES = config_check.or_exit(bases.configs, config)
# The folders of the miniatures, which are built on demand, with their stages and families.
TINY, TINY_V3 = (
    workflow.pathvars.apply(f"<resources>/{name}")
    for name in ("tiny-higgs", "tiny-higgs-v3")
)
DEMO_BASES = {TINY: "tiny", TINY_V3: "tiny_v3"}
DEMO_FAMILIES = {TINY: model_types.V2, TINY_V3: model_types.V3}
config_check.or_exit(models.check_folders, config, DEMO_BASES)
DEMO_SETTINGS = ROOT / "examples" / "demo" / "settings.yaml"
demo_changes = {}
if any(
    models.is_within(c["base_model"], folder)
    for c in OF_BASES.values()
    for folder in DEMO_BASES
):
    typed = workflow.config_settings.config  # by --config alone
    demo_changes = config_check.use_demo_settings(
        config, DEMO_SETTINGS, SCHEMA_PATH, typed
    )
    OF_BASES = bases.configs(config)
# The family of each experiment's base.
FAMILY_OF = {
    name: families.family_of(*bases.base_of(config, name), DEMO_FAMILIES)
    for name in config["experiments"]
}
if workflow.is_main_process:  # while a job runs, what it has written fills the disk
    config_check.or_exit(
        forms.check, config, Path(workflow.pathvars.apply("<results>")), FAMILY_OF
    )


include: "workflow/rules/common.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/eval.smk"
include: "workflow/rules/package.smk"
include: "workflow/rules/report.smk"


if HAS_OTHER:

    include: "workflow/rules/other.smk"


if RECORDINGS or OTHER_RECORDINGS:

    include: "workflow/rules/storage.smk"


# The target report is the rule of that name.
rule all:
    default_target: not IS_MODULE
    input:
        "<results>/data/estimate.json",
        "<results>/data/index.html",
        PACKAGES,
        "<results>/report/index.html",


rule validate:
    input:
        "<results>/data/validation.json",
        "<results>/data/index.html",
        "<results>/data/estimate.json",


rule tokenize:
    input:
        expand("<results>/codes/{shard}.parquet", shard=SHARDS),


rule pack:
    input:
        expand(
            "<results>/{base}packed/{file}",
            base=OF_BASES,
            file=["train.parquet", "eval.parquet", "packing.json"],
        ),


rule train:
    input:
        expand(
            "<results>/experiments/{experiment}/train/adapter/adapter_config.json",
            experiment=EXPERIMENTS,
        ),


rule eval:
    input:
        expand(
            "<results>/experiments/{experiment}/{evaluation}/{file}",
            experiment=EXPERIMENTS,
            evaluation=EVALUATIONS,
            file=[
                "metrics.json",
                "clips.parquet",
                "breakdown.json",
                "generation.json",
                "generation.parquet",
                "verdict.json",
            ],
        ),
        expand(
            "<results>/experiments/{experiment}/eval/accepted.txt",
            experiment=EXPERIMENTS,
        ),


rule package:
    input:
        PACKAGES,


rule push:
    input:
        lambda wildcards: config_check.or_exit(forms.pushed, config, FAMILY_OF),
