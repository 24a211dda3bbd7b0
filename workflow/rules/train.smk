# One adapter per experiment.
config_check.or_exit(launching.check_launches, config)
config_check.or_exit(ancestors.check_ancestors, config, Path(RESULTS), IS_STORED)


# Train an adapter.
# reads:  packed/{train,eval}.parquet of its base, the base, the adapter train.init_adapter if any
# writes: <results>/experiments/{experiment}/train/: finished/ (the adapter), metrics.jsonl,
#         preflight.json, config.json, run.json, trainable_parameters.json; beside them checkpoints/
#         while training runs, logs/ of the tracker and samples/, which are not outputs: Snakemake
#         leaves them alone; <results>/compiled/: compiled code, kept for the next run
rule train_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config=of_base("config/train.json"),
        train_rows=of_base("packed/train.parquet"),
        eval_rows=of_base("packed/eval.parquet"),
        ancestor=lambda wildcards: local(
            ancestors.ancestor_files(config, wildcards.experiment)
        ),
        base_model=demo_base,
    output:
        adapter="<results>/experiments/{experiment}/train/finished/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/finished/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/finished/base_model.json",
        metrics="<results>/experiments/{experiment}/train/metrics.jsonl",
        preflight="<results>/experiments/{experiment}/train/preflight.json",
        config="<results>/experiments/{experiment}/train/config.json",
        run="<results>/experiments/{experiment}/train/run.json",
        trainable_parameters="<results>/experiments/{experiment}/train/trainable_parameters.json",
    log:
        "<logs>/experiments/{experiment}/train.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/train.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: lambda wildcards: 4 * num_processes_per_machine(wildcards)
    resources:
        # For one machine; for several, what each of them gives, in Slurm's own words.
        gpu=lambda wildcards: machines(wildcards).gpu,
        gres=lambda wildcards: machines(wildcards).gres,
        nodes=lambda wildcards: machines(wildcards).nodes,
        tasks=lambda wildcards: machines(wildcards).tasks,
        tasks_per_gpu=lambda wildcards: machines(wildcards).tasks_per_gpu,
        mpi=lambda wildcards: machines(wildcards).mpi,
        mem_mb=lambda wildcards, attempt: (
            # Not twice as much after a job that was killed: no node may have that.
            (28000 + 4000 * attempt)
            * num_processes_per_machine(wildcards)
        ),
        runtime=2880,
    params:
        version=stages.STAGES["train"].version,
        environment=environment,
        overrides=lambda wildcards: launching.overrides_text(
            config, wildcards.experiment
        ),
        # Another one if that adapter is replaced, even by an older file.
        ancestor=lambda wildcards: ancestors.ancestor_hash(
            config, wildcards.experiment, Path(RESULTS), HASH_CACHE
        ),
        # It depends on `threads`, so Snakemake does not retrain when --cores differs.
        launch=lambda wildcards, threads: launching.launch_command(
            num_threads=threads,
            config_path=ACCELERATE_CONFIG,
            **launch_settings(wildcards),
        ),
        output_dir=subpath(output.metrics, parent=True),
        adapter_dir=subpath(output.adapter, parent=True),
        results=subpath(output.metrics, ancestor=4),
    shell:
        "{params.environment} {params.launch} -m higgs_pipe.train --config {input.config:q}"
        " --overrides {params.overrides:q} --train-rows {input.train_rows:q}"
        " --eval-rows {input.eval_rows:q} --output-dir {params.output_dir:q}"
        " --adapter-dir {params.adapter_dir:q}"
        " --compile-cache {params.results:q}/compiled --log {log:q}"


# Replace the previous adapter by a finished one. Snakemake removes the outputs of a job when it starts,
# so those of a training that starts again would be gone for hours. This copy has the same inputs and
# parameters as training, so an adapter of other settings never counts as up to date.
# reads:  <results>/experiments/{experiment}/train/finished/
# writes: <results>/experiments/{experiment}/train/adapter/
rule publish_adapter:
    input:
        adapter="<results>/experiments/{experiment}/train/finished/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/finished/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/finished/base_model.json",
        checkpoints=CHECKPOINTS,
        config=of_base("config/train.json"),
        train_rows=of_base("packed/train.parquet"),
        eval_rows=of_base("packed/eval.parquet"),
        ancestor=lambda wildcards: local(
            ancestors.ancestor_files(config, wildcards.experiment)
        ),
    output:
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/adapter/base_model.json",
    log:
        "<logs>/experiments/{experiment}/publish.log",
    localrule: True
    conda:
        "../../envs/higgs-pipe.yaml"
    params:
        version=stages.STAGES["train"].version,
        overrides=lambda wildcards: launching.overrides_text(
            config, wildcards.experiment
        ),
        # Another one if that adapter is replaced, even by an older file.
        ancestor=lambda wildcards: ancestors.ancestor_hash(
            config, wildcards.experiment, Path(RESULTS), HASH_CACHE
        ),
        adapter_dir=subpath(output.adapter, parent=True),
    shell:
        "cp {input.adapter:q} {input.adapter_config:q} {input.adapter_base:q}"
        " {params.adapter_dir:q} 2> {log:q}"
