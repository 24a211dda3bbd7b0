# Evaluation of each adapter.


# Compare an adapter with its base: losses, speech on held-out prompts, and the verdict.
# reads:  <results>/data/clips.parquet and its held-out recordings, packed/eval.parquet of its base,
#         <results>/experiments/{experiment}/train/adapter/, the adapter train.init_adapter if
#         any, the base, the codec
# writes: <results>/experiments/{experiment}/eval/: metrics.json, clips.parquet, breakdown.json,
#         generation.json, generation.parquet, verdict.json;
#         <results>/experiments/{experiment}/samples/: WAVs
rule eval_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config=of_base("config/eval.json"),
        clips="<results>/data/clips.parquet",
        eval_rows=of_base("packed/eval.parquet"),
        adapter="<results>/experiments/{experiment}/train/adapter/adapter_model.safetensors",
        adapter_config="<results>/experiments/{experiment}/train/adapter/adapter_config.json",
        adapter_base="<results>/experiments/{experiment}/train/adapter/base_model.json",
        ancestor=lambda wildcards: local(
            ancestors.ancestor_files(config, wildcards.experiment)
        ),
        base_model=demo_base,
        codec=CODEC,
        fetched=fetched(RECORDINGS),
    output:
        metrics=report(
            "<results>/experiments/{experiment}/eval/metrics.json",
            caption="../report/metrics.rst",
            category="Numbers",
            labels={"experiment": "{experiment}", "file": "losses"},
        ),
        clips="<results>/experiments/{experiment}/eval/clips.parquet",
        breakdown="<results>/experiments/{experiment}/eval/breakdown.json",
        generation="<results>/experiments/{experiment}/eval/generation.json",
        generation_table="<results>/experiments/{experiment}/eval/generation.parquet",
        verdict=report(
            "<results>/experiments/{experiment}/eval/verdict.json",
            caption="../report/verdict.rst",
            category="Numbers",
            labels={"experiment": "{experiment}", "file": "verdict"},
        ),
        samples=directory("<results>/experiments/{experiment}/samples"),
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
        mem_mb=lambda wildcards, attempt: (
            attempt * 32000 * config["eval"]["num_processes"]
        ),
        runtime=480,
    params:
        version=stages.STAGES["eval"].version,
        environment=environment,
        launch=lambda wildcards, threads: launching.launch_command(
            config["eval"]["num_processes"], threads, ACCELERATE_CONFIG
        ),
        clips_of="manifest",
        ancestor=lambda wildcards: ancestors.ancestor_option(
            config, wildcards.experiment
        ),
        adapter_dir=subpath(input.adapter, parent=True),
        eval_dir=subpath(output.metrics, parent=True),
        results=subpath(input.adapter, ancestor=5),
    shell:
        "{params.environment} {params.launch} -m higgs_pipe.evaluate --config {input.config:q}"
        " --clips {input.clips:q} --eval-rows {input.eval_rows:q}"
        " --adapter-dir {params.adapter_dir:q} --eval-dir {params.eval_dir:q}"
        " --samples-dir {output.samples:q} --clips-of {params.clips_of} {params.ancestor}"
        " --compile-cache {params.results:q}/compiled --log {log:q}"


# Refuse an adapter whose verdict does not meet eval.require.
# reads:  <results>/experiments/{experiment}/eval/verdict.json
# writes: <results>/experiments/{experiment}/eval/accepted.txt
rule accept_adapter:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/accept.json",
        verdict="<results>/experiments/{experiment}/eval/verdict.json",
    output:
        accepted="<results>/experiments/{experiment}/eval/accepted.txt",
    log:
        "<logs>/experiments/{experiment}/accept.log",
    benchmark:
        "<benchmarks>/experiments/{experiment}/accept.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=10,
    params:
        version=stages.STAGES["accept"].version,
        environment=environment,
    shell:
        "{params.environment} python -m higgs_pipe.accept --config {input.config:q} --verdict {input.verdict:q}"
        " --accepted {output.accepted:q} --log {log:q}"
