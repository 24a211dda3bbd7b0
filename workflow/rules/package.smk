# What a user of the adapter gets.


# Package an adapter with its model card, metrics and provenance, and prove in a fresh process that
# the package loads.
# reads:  the data's counts, the experiment's adapter and metrics, the settings of every stage
# writes: <results>/adapters/{experiment}/, <results>/adapters/{experiment}.zip
rule package_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/package.json",
        stage_configs=expand(
            "<results>/config/{stage}.json",
            stage=["validate", "tokenize", "pack", "train", "eval"],
        ),
        clips="<results>/data/clips.parquet",
        validation="<results>/data/validation.json",
        packing="<results>/packed/packing.json",
        eval_rows="<results>/packed/eval.parquet",
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/adapter/base_model.json",
        train_config="<results>/experiments/{experiment}/train/config.json",
        train_metrics="<results>/experiments/{experiment}/train/metrics.jsonl",
        metrics="<results>/experiments/{experiment}/eval/metrics.json",
        verdict="<results>/experiments/{experiment}/eval/verdict.json",
        accepted="<results>/experiments/{experiment}/eval/accepted.txt",
        base_model=BASE_MODEL,
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
        mem_mb=64000,
        runtime=240,
    params:
        version=stages.STAGES["package"].version,
        config_dir=subpath(input.config, parent=True),
        data_dir=subpath(input.validation, parent=True),
        packed_dir=subpath(input.packing, parent=True),
        experiment_dir=subpath(input.metrics, ancestor=2),
    shell:
        "python -m higgs_pipe.package --config {input.config:q} --name {wildcards.experiment:q}"
        " --data-dir {params.data_dir:q} --packed-dir {params.packed_dir:q}"
        " --experiment-dir {params.experiment_dir:q} --config-dir {params.config_dir:q}"
        " --package-dir {output.package:q} --archive {output.archive:q} --log {log:q}"
