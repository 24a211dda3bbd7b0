# How good each adapter is.


# Compute the held-out loss of an adapter and of its base.
# reads:  <results>/packed/eval.parquet, <results>/experiments/{experiment}/train/adapter/, the base
# writes: <results>/experiments/{experiment}/eval/metrics.json, clips.parquet
rule eval_adapter:
    input:
        config="<results>/config/eval.json",
        eval_rows="<results>/packed/eval.parquet",
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        base_model=BASE_MODEL,
    output:
        metrics="<results>/experiments/{experiment}/eval/metrics.json",
        clips="<results>/experiments/{experiment}/eval/clips.parquet",
    log:
        "<logs>/experiments/{experiment}/eval.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/eval.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 4 * config["eval"]["num_processes"]
    resources:
        gpu=launching.num_gpus(
            config["eval"]["device"], config["eval"]["num_processes"]
        ),
        mem_mb=32000 * config["eval"]["num_processes"],
        runtime=480,
    params:
        version=stages.STAGES["eval"].version,
        launch=lambda wildcards, threads: launching.launch_command(
            config["eval"]["num_processes"], threads, ACCELERATE_CONFIG
        ),
        adapter_dir=subpath(input.adapter, parent=True),
    shell:
        "{params.launch} -m higgs_pipe.evaluate --config {input.config:q}"
        " --eval-rows {input.eval_rows:q} --adapter-dir {params.adapter_dir:q}"
        " --metrics {output.metrics:q} --clips {output.clips:q} --log {log:q}"
