# The files that a user of the adapter gets.


# Package an adapter with its model card, samples, metrics and provenance, and verify in a
# fresh process that the package loads.
# reads:  the data's counts, the experiment's adapter, curves, metrics and samples, the settings of
#         every stage
# writes: <results>/adapters/{experiment}/, <results>/adapters/{experiment}.zip
rule package_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config=of_base("config/package.json"),
        stage_configs=lambda wildcards: [
            of_base(f"config/{stage}.json")(wildcards)
            for stage in ("validate", "tokenize", "pack", "train", "eval")
        ],
        clips="<results>/data/clips.parquet",
        validation="<results>/data/validation.json",
        packing=of_base("packed/packing.json"),
        eval_rows=of_base("packed/eval.parquet"),
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/adapter/base_model.json",
        train_config="<results>/experiments/{experiment}/train/config.json",
        train_metrics="<results>/experiments/{experiment}/train/metrics.jsonl",
        train_run="<results>/experiments/{experiment}/train/run.json",
        preflight="<results>/experiments/{experiment}/train/preflight.json",
        metrics="<results>/experiments/{experiment}/eval/metrics.json",
        verdict="<results>/experiments/{experiment}/eval/verdict.json",
        breakdown="<results>/experiments/{experiment}/eval/breakdown.json",
        generation="<results>/experiments/{experiment}/eval/generation.json",
        generation_table="<results>/experiments/{experiment}/eval/generation.parquet",
        # A folder, whose age a copy changes; eval writes it with the files above.
        samples=ancient("<results>/experiments/{experiment}/samples"),
        accepted="<results>/experiments/{experiment}/eval/accepted.txt",
        other=(
            expand(
                "<results>/experiments/{{experiment}}/eval/other/{file}.json",
                file=["metrics", "verdict", "breakdown", "generation"],
            )
            if HAS_OTHER
            else []
        ),
        base_model=demo_base,
        codec=CODEC,
    output:
        package=directory("<results>/adapters/{experiment}"),
        archive="<results>/adapters/{experiment}.zip",
    log:
        "<logs>/experiments/{experiment}/package.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/package.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 64000 * attempt,
        runtime=240,
    params:
        version=stages.STAGES["package"].version,
        environment=environment,
        config_dir=subpath(input.config, parent=True),
        data_dir=subpath(input.validation, parent=True),
        packed_dir=subpath(input.packing, parent=True),
        experiment_dir=subpath(input.metrics, ancestor=2),
    shell:
        "{params.environment} python -m higgs_pipe.package --config {input.config:q} --name {wildcards.experiment:q}"
        " --data-dir {params.data_dir:q} --packed-dir {params.packed_dir:q}"
        " --experiment-dir {params.experiment_dir:q} --config-dir {params.config_dir:q}"
        " --package-dir {output.package:q} --archive {output.archive:q} --log {log:q}"


# Publish a form on the Hub; only the target push runs this. It runs on the machine of Snakemake, for its
# network.
# reads:  <results>/adapters/{experiment}/ or <results>/{form}/{experiment}/, the verdict of eval, the
#         token of huggingface_hub
# writes: <results>/pushed/{form}/{experiment}.json, the repository push.repo
rule push_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/push.json",
        package=lambda wildcards: forms.folder_of(wildcards.form, wildcards.experiment),
        verdict="<results>/experiments/{experiment}/eval/verdict.json",
        accepted="<results>/experiments/{experiment}/eval/accepted.txt",
    output:
        pushed="<results>/pushed/{form}/{experiment}.json",
    log:
        "<logs>/experiments/{experiment}/push-{form}.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/push-{form}.tsv"
    wildcard_constraints:
        form="peft|merged|original",
    localrule: True
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=240,
    params:
        version=stages.STAGES["push"].version,
        environment=environment,
        names=EXPERIMENTS,
    shell:
        "{params.environment} python -m higgs_pipe.push --config {input.config:q} --form {wildcards.form}"
        " --name {wildcards.experiment:q} --names {params.names:q}"
        " --package-dir {input.package:q} --verdict {input.verdict:q}"
        " --pushed {output.pushed:q} --log {log:q}"


# Write a full checkpoint of base and adapter, with the names of Transformers (merged) or of Boson AI's
# own code (original), and verify in a fresh process that it equals base and adapter.
# reads:  the experiment's adapter, packed/eval.parquet of its base, the base, the codec
# writes: <results>/{form}/{experiment}/
rule merge_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config=of_base("config/merge.json"),
        stage_configs=lambda wildcards: [
            of_base(f"config/{stage}.json")(wildcards) for stage in ("pack", "eval")
        ],
        eval_rows=of_base("packed/eval.parquet"),
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/adapter/base_model.json",
        accepted="<results>/experiments/{experiment}/eval/accepted.txt",
        base_model=demo_base,
        codec=CODEC,
    output:
        checkpoint=directory("<results>/{form}/{experiment}"),
    log:
        "<logs>/experiments/{experiment}/merge-{form}.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/merge-{form}.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 4
    resources:
        gpu=launching.num_gpus(config["eval"]["device"], 1),
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=240,
    params:
        version=stages.STAGES["merge"].version,
        environment=environment,
        config_dir=subpath(input.config, parent=True),
        adapter_dir=subpath(input.adapter, parent=True),
    shell:
        "{params.environment} python -m higgs_pipe.merge --config {input.config:q} --form {wildcards.form}"
        " --name {wildcards.experiment:q} --adapter-dir {params.adapter_dir:q}"
        " --config-dir {params.config_dir:q} --eval-rows {input.eval_rows:q}"
        " --form-dir {output.checkpoint:q} --log {log:q}"
