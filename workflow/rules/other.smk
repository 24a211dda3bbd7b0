# Recordings that the adapters are not meant for, such as other speakers or another language. They go
# through the same rules as those of the manifest, into <results>/other/, and are all held out, so that
# the report can show what was forgotten. Included only if the config has eval.other_manifest; outside
# this file, only report and package depend on it.
#
# An evaluation needs a few hundred clips, so one shard holds all of them.
OTHER_CONFIG = manifests.config_of_other(config)
OTHER_SHARDS = file_names.shard_names(OTHER_CONFIG["data"]["num_shards"])
OTHER_FILE_STATES = workflow.pathvars.apply("<results>/other/data/recordings.json")


# Write the part of the config that list_rows or validate reads, with the other manifest.
# reads:  config.yaml and the command line
# writes: <results>/other/config/{stage}.json
use rule stage_config as stage_config_other with:
    output:
        config="<results>/other/config/{stage}.json",
    log:
        "<logs>/other/config/{stage}.log",
    params:
        text=lambda wildcards: config_check.stage_config_text(
            OTHER_CONFIG, wildcards.stage, STAGE_SCHEMA
        ),


# List the rows and recordings of the other manifest.
# reads:  the other manifest
# writes: <results>/other/data/rows.parquet, <results>/other/data/recordings/{shard}.parquet
use rule list_rows as list_rows_other with:
    input:
        config="<results>/other/config/list_rows.json",
        checked=CHECKED_MODELS,
        manifests=lambda wildcards: local(
            manifests.inputs(manifests.manifest_files(OTHER_CONFIG))
        ),
        fetched=OTHER_RECORDINGS,
    output:
        rows="<results>/other/data/rows.parquet",
        recordings=expand(
            "<results>/other/data/recordings/{shard}.parquet", shard=OTHER_SHARDS
        ),
    log:
        "<logs>/other/list_rows.log",
    benchmark:
        "<benchmarks>/other/list_rows.tsv"
    params:
        recordings_in_folders=lambda wildcards: manifests.recordings_in_folders(
            OTHER_CONFIG
        ),
        file_states=OTHER_FILE_STATES,
        fetched=lambda wildcards, input: object_storage.fetched_text(
            OTHER_RECORDINGS_URLS, input.fetched
        ),
        stamp=lambda wildcards: recordings.stamp_of(
            Path(OTHER_FILE_STATES), manifests.manifest_files(OTHER_CONFIG)
        ),


# Measure its recordings, with the same settings as for the manifest.
# reads:  <results>/other/data/recordings/{shard}.parquet, the recordings that it lists
# writes: <results>/other/data/measured/{shard}.parquet
use rule measure_shard as measure_shard_other with:
    input:
        config="<results>/config/measure.json",
        recordings="<results>/other/data/recordings/{shard}.parquet",
        fetched=fetched(OTHER_RECORDINGS),
    output:
        measured="<results>/other/data/measured/{shard}.parquet",
    log:
        "<logs>/other/measure/{shard}.log",
    benchmark:
        "<benchmarks>/other/measure/{shard}.tsv"


# Accept or reject each row; rows that are also in training are rejected.
# reads:  <results>/other/data/rows.parquet, <results>/other/data/measured/,
#         <results>/data/clips.parquet
# writes: <results>/other/data/{clips,rejected}.parquet, <results>/other/data/validation.json,
#         <results>/other/data/shards/{shard}.parquet
use rule judge_clips as judge_clips_other with:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/other/config/validate.json",
        rows="<results>/other/data/rows.parquet",
        measured=expand(
            "<results>/other/data/measured/{shard}.parquet", shard=OTHER_SHARDS
        ),
        trained="<results>/data/clips.parquet",
    output:
        clips="<results>/other/data/clips.parquet",
        rejected="<results>/other/data/rejected.parquet",
        validation="<results>/other/data/validation.json",
        shards=expand("<results>/other/data/shards/{shard}.parquet", shard=OTHER_SHARDS),
    log:
        "<logs>/other/judge_clips.log",
    benchmark:
        "<benchmarks>/other/judge_clips.tsv"
    params:
        trained=lambda wildcards, input: ["--trained-clips", input.trained],


# Encode its clips.
# reads:  <results>/other/data/shards/{shard}.parquet, the recordings, the codec as pinned
# writes: <results>/other/codes/{shard}.parquet
use rule tokenize_shard as tokenize_shard_other with:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/tokenize.json",
        clips="<results>/other/data/shards/{shard}.parquet",
        codec="<results>/models/codec.json",
        fetched=fetched(OTHER_RECORDINGS),
    output:
        codes="<results>/other/codes/{shard}.parquet",
    log:
        "<logs>/other/tokenize/{shard}.log",
    benchmark:
        "<benchmarks>/other/tokenize/{shard}.tsv"


# Pack its clips, with the same settings as for the manifest. No row is for training.
# reads:  <results>/other/data/clips.parquet, <results>/other/codes/, tokenizer and template of the
#         base as pinned
# writes: <results>/{base}other/packed/eval.parquet, <results>/{base}other/packed/packing.json;
#         train.parquet, which has no row
use rule pack_rows as pack_rows_other with:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/{base}config/pack.json",
        clips="<results>/other/data/clips.parquet",
        codes=expand("<results>/other/codes/{shard}.parquet", shard=OTHER_SHARDS),
        base_model="<results>/{base}models/base_model.json",
    output:
        train_rows="<results>/{base}other/packed/train.parquet",
        eval_rows="<results>/{base}other/packed/eval.parquet",
        packing="<results>/{base}other/packed/packing.json",
    log:
        "<logs>/{base}other/pack.log",
    benchmark:
        "<benchmarks>/{base}other/pack.tsv"
    params:
        num_shards=len(OTHER_SHARDS),
        splits=["eval"],


# Compare an adapter with its base on these clips, as on the held-out ones.
# reads:  <results>/other/data/clips.parquet and its recordings, other/packed/eval.parquet of its base,
#         <results>/experiments/{experiment}/train/adapter/, the adapter train.init_adapter if
#         any, the base, the codec
# writes: <results>/experiments/{experiment}/eval/other/: metrics.json, clips.parquet,
#         breakdown.json, generation.json, generation.parquet, verdict.json, and WAVs in samples/
use rule eval_adapter as eval_adapter_other with:
    input:
        checkpoints=CHECKPOINTS,
        config=of_base("config/eval.json"),
        clips="<results>/other/data/clips.parquet",
        eval_rows=of_base("other/packed/eval.parquet"),
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/adapter/base_model.json",
        ancestor=lambda wildcards: local(
            ancestors.ancestor_files(config, wildcards.experiment)
        ),
        base_model=demo_base,
        codec=CODEC,
        fetched=fetched(OTHER_RECORDINGS),
    output:
        metrics="<results>/experiments/{experiment}/eval/other/metrics.json",
        clips="<results>/experiments/{experiment}/eval/other/clips.parquet",
        breakdown="<results>/experiments/{experiment}/eval/other/breakdown.json",
        generation="<results>/experiments/{experiment}/eval/other/generation.json",
        generation_table="<results>/experiments/{experiment}/eval/other/generation.parquet",
        verdict="<results>/experiments/{experiment}/eval/other/verdict.json",
        samples=directory("<results>/experiments/{experiment}/eval/other/samples"),
    log:
        "<logs>/experiments/{experiment}/eval_other.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/eval_other.tsv"
    params:
        clips_of="eval.other_manifest",
