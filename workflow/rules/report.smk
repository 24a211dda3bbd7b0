# The report.


# Render the report of all experiments.
# reads:  the data's table and counts, the results of training and evaluation of every experiment,
#         and of the other manifest, where the config gives one
# writes: <results>/report/index.html, and its charts in <results>/report/figures/
rule report:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/report.json",
        clips="<results>/data/clips.parquet",
        validation="<results>/data/validation.json",
        packing=expand("<results>/{base}packed/packing.json", base=OF_BASES),
        train=expand(
            "<results>/experiments/{experiment}/train/{file}",
            experiment=EXPERIMENTS,
            file=["metrics.jsonl", "config.json", "preflight.json", "run.json"],
        ),
        evaluation=expand(
            "<results>/experiments/{experiment}/{evaluation}/{file}",
            experiment=EXPERIMENTS,
            evaluation=EVALUATIONS,
            file=[
                "metrics.json",
                "breakdown.json",
                "verdict.json",
                "generation.json",
                "generation.parquet",
            ],
        ),
        # Folders, whose age a copy changes; eval writes them with the files above.
        samples=ancient(
            expand(
                "<results>/experiments/{experiment}/{folder}",
                experiment=EXPERIMENTS,
                folder=["samples", "eval/other/samples"] if HAS_OTHER else ["samples"],
            )
        ),
        other_validation="<results>/other/data/validation.json" if HAS_OTHER else [],
        other_packing=(
            expand("<results>/{base}other/packed/packing.json", base=OF_BASES)
            if HAS_OTHER
            else []
        ),
    output:
        page=report(
            "<results>/report/index.html",
            caption="../report/page.rst",
            category="Report",
        ),
        figures=report(
            directory("<results>/report/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Charts",
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
    params:
        version=stages.STAGES["report"].version,
        environment=environment,
        names=EXPERIMENTS,
        families=FAMILIES,
        bases=[c["base_model"] for c in OF_BASES.values()],
        # The stage reads them only if the config has another manifest.
        other_validation=lambda wildcards, input: input.other_validation or "none",
        other_packing=lambda wildcards, input: input.other_packing or "none",
        experiments_dir=lambda wildcards, input: Path(input.samples[0]).parents[1],
    shell:
        "{params.environment} python -m higgs_pipe.report --config {input.config:q} --clips {input.clips:q}"
        " --validation {input.validation:q} --packing {input.packing:q}"
        " --bases {params.bases:q} --experiments-dir {params.experiments_dir:q}"
        " --other-validation {params.other_validation:q} --other-packing {params.other_packing:q}"
        " --names {params.names:q} --families {params.families:q} --page {output.page:q}"
        " --figures {output.figures:q} --log {log:q}"
