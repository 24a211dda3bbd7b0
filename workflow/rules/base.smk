# The checkpoints: the base of the demo, and which base and codec are used.


# Build a miniature of the real checkpoint.
# reads:  nothing
# writes: <resources>/tiny-higgs/, with the codec in audio_tokenizer/
rule tiny_base:
    output:
        base=local(directory("<resources>/tiny-higgs")),
    log:
        "<logs>/tiny_base.log",
    benchmark:
        "<benchmarks>/tiny_base.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
    params:
        version=stages.STAGES["tiny"].version,
        environment=environment,
    shell:
        "{params.environment} python -m higgs_pipe.higgs.v2.miniature --output-dir {output.base:q} --log {log:q}"


# Build a miniature of Higgs TTS 3, with the same codec in its bundle.
# reads:  nothing
# writes: <resources>/tiny-higgs-v3/
rule tiny_base_v3:
    output:
        base=local(directory("<resources>/tiny-higgs-v3")),
    log:
        "<logs>/tiny_base_v3.log",
    benchmark:
        "<benchmarks>/tiny_base_v3.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        version=stages.STAGES["tiny_v3"].version,
        environment=environment,
    shell:
        "{params.environment} python -m higgs_pipe.higgs.v3.miniature --output-dir {output.base:q}"
        " --log {log:q}"


# Check a base model and a codec on the Hub; folders are checked while the workflow is planned.
# reads:  their small files on the Hub
# writes: <results>/{base}models/checked.txt
rule check_models:
    input:
        config="<results>/{base}config/models.json",
        demo_base=lambda wildcards: demo_files(
            OF_ALL_BASES[wildcards.base]["base_model"], config["codec"]
        ),
    output:
        checked="<results>/{base}models/checked.txt",
    log:
        "<logs>/{base}check_models.log",
    benchmark:
        "<benchmarks>/{base}check_models.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=10,
    params:
        version=stages.STAGES["models"].version,
        environment=environment,
    shell:
        "{params.environment} python -m higgs_pipe.check_models --config {input.config:q}"
        " --checked {output.checked:q} --log {log:q}"


# Pin the base model or the codec: record its Hub commit and its weights. Other weights under the same
# name rerun everything made with the old ones. A Hub branch that has moved changes nothing until
# `snakemake --forcerun pin_model`.
# reads:  the checkpoint, which it downloads if it is on the Hub
# writes: <results>/{base}models/{model}.json
rule pin_model:
    input:
        config="<results>/{base}config/{model}.json",
        demo_base=lambda wildcards: demo_files(
            OF_ALL_BASES[wildcards.base][wildcards.model]
        ),
        checked=lambda wildcards: checked_models(wildcards.base),
    output:
        pinned="<results>/{base}models/{model}.json",
    log:
        "<logs>/{base}pin_model/{model}.log",
    benchmark:
        "<benchmarks>/{base}pin_model/{model}.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=240,
    params:
        version=stages.STAGES["base_model"].version,
        environment=environment,
        # Snakemake would not compare a function of `input`.
        content=lambda wildcards: (
            demo_version(OF_ALL_BASES[wildcards.base][wildcards.model])
            or pinning.checkpoint_hash(
                OF_ALL_BASES[wildcards.base][wildcards.model], HASH_CACHE
            )
        ),
    shell:
        "{params.environment} python -m higgs_pipe.pin_model --config {input.config:q} --setting {wildcards.model}"
        " --pinned {output.pinned:q} --log {log:q}"
