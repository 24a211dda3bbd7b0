# The page that people look at.


# Render the report of all experiments.
# reads:  the data's counts, the metrics of training and evaluation of every experiment
# writes: <results>/report/index.html
rule report:
    input:
        config="<results>/config/report.json",
        validation="<results>/data/validation.json",
        packing="<results>/packed/packing.json",
        train_metrics=expand(
            "<results>/experiments/{experiment}/train/metrics.jsonl",
            experiment=EXPERIMENTS,
        ),
        train_configs=expand(
            "<results>/experiments/{experiment}/train/config.json",
            experiment=EXPERIMENTS,
        ),
        preflights=expand(
            "<results>/experiments/{experiment}/train/preflight.json",
            experiment=EXPERIMENTS,
        ),
        eval_metrics=expand(
            "<results>/experiments/{experiment}/eval/metrics.json",
            experiment=EXPERIMENTS,
        ),
    output:
        page="<results>/report/index.html",
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        version=stages.STAGES["report"].version,
        names=EXPERIMENTS,
        experiments_dir=lambda wildcards, input: Path(input.eval_metrics[0]).parents[2],
    shell:
        "python -m higgs_pipe.report --config {input.config:q} --validation {input.validation:q}"
        " --packing {input.packing:q} --experiments-dir {params.experiments_dir:q}"
        " --names {params.names:q} --page {output.page:q} --log {log:q}"
