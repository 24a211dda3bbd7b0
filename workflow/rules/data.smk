# From the manifest to packed training rows. All experiments share them; rows are packed for each base.


# List the rows of all manifests and the recordings that each shard measures. It is a checkpoint:
# Snakemake plans again once the shards are written, and does not measure those whose bytes have not
# changed.
# reads:  the manifests
# writes: <results>/data/rows.parquet, <results>/data/recordings/{shard}.parquet
checkpoint list_rows:
    input:
        config="<results>/config/list_rows.json",
        checked=CHECKED_MODELS,
        manifests=lambda wildcards: local(
            manifests.inputs(manifests.manifest_files(config))
        ),
        fetched=RECORDINGS,
    output:
        rows="<results>/data/rows.parquet",
        recordings=expand("<results>/data/recordings/{shard}.parquet", shard=SHARDS),
    log:
        "<logs>/list_rows.log",
    benchmark:
        "<benchmarks>/list_rows.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=120,
    params:
        version=stages.STAGES["list_rows"].version,
        environment=environment,
        # Another one if a recording is added to a manifest that is a folder.
        recordings_in_folders=lambda wildcards: manifests.recordings_in_folders(config),
        recordings_dir=lambda wildcards, output: Path(output.recordings[0]).parent,
        measured_dir=lambda wildcards, output: Path(output.rows).with_name("measured"),
        file_states=FILE_STATES,
        fetched=lambda wildcards, input: object_storage.fetched_text(
            RECORDINGS_URLS, input.fetched
        ),
        # Another one if a recording or manifest changed in place. It may not depend on `output`:
        # Snakemake reruns a rule for a changed parameter only if that does not.
        stamp=lambda wildcards: recordings.stamp_of(
            Path(FILE_STATES), manifests.manifest_files(config)
        ),
    shell:
        "{params.environment} python -m higgs_pipe.list_rows --config {input.config:q} --rows {output.rows:q}"
        " --recordings-dir {params.recordings_dir:q} --measured-dir {params.measured_dir:q}"
        " --file-states {params.file_states:q} --stamp {params.stamp:q} --fetched {params.fetched:q}"
        " --log {log:q}"


# Measure the recordings of one shard: length, level, quality and, if configured, transcripts.
# reads:  <results>/data/recordings/{shard}.parquet, the recordings that it lists
# writes: <results>/data/measured/{shard}.parquet
rule measure_shard:
    input:
        config="<results>/config/measure.json",
        recordings="<results>/data/recordings/{shard}.parquet",
        fetched=fetched(RECORDINGS),
    output:
        measured="<results>/data/measured/{shard}.parquet",
    log:
        "<logs>/measure/{shard}.log",
    benchmark:
        "<benchmarks>/measure/{shard}.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        gpu=launching.num_gpus(
            config["validate"]["speech_models"]["device"],
            int(launching.runs_speech_models(config)),
        ),
        mem_mb=lambda wildcards, attempt: (
            attempt * (16000 if launching.runs_speech_models(config) else 2000)
        ),
        runtime=480,
    params:
        version=stages.STAGES["measure"].version,
        environment=environment,
    shell:
        "{params.environment} python -m higgs_pipe.measure --config {input.config:q}"
        " --recordings {input.recordings:q} --measured {output.measured:q}"
        " --num-threads {threads} --log {log:q}"


# Accept or reject each row, and split the clips. It is a checkpoint for the same reason: shards
# whose clips did not change are not encoded again.
# reads:  <results>/data/rows.parquet, <results>/data/measured/
# writes: <results>/data/{clips,rejected}.parquet, <results>/data/validation.json,
#         <results>/data/shards/{shard}.parquet
checkpoint judge_clips:
    input:
        config="<results>/config/validate.json",
        rows="<results>/data/rows.parquet",
        measured=expand("<results>/data/measured/{shard}.parquet", shard=SHARDS),
    output:
        clips="<results>/data/clips.parquet",
        rejected="<results>/data/rejected.parquet",
        validation=report(
            "<results>/data/validation.json",
            caption="../report/validation.rst",
            category="Recordings",
        ),
        shards=expand("<results>/data/shards/{shard}.parquet", shard=SHARDS),
    log:
        "<logs>/judge_clips.log",
    benchmark:
        "<benchmarks>/judge_clips.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=120,
    params:
        version=stages.STAGES["validate"].version,
        environment=environment,
        trained=[],
        families=FAMILIES,
        measured_dir=lambda wildcards, input: Path(input.measured[0]).parent,
        shards_dir=lambda wildcards, output: Path(output.shards[0]).parent,
    shell:
        "{params.environment} python -m higgs_pipe.validate --config {input.config:q} --rows {input.rows:q}"
        " --measured-dir {params.measured_dir:q} --clips {output.clips:q}"
        " --rejected {output.rejected:q} --validation {output.validation:q}"
        " --shards-dir {params.shards_dir:q} --families {params.families:q} {params.trained:q}"
        " --log {log:q}"


# Estimate the tokens, steps and memory of training, and print them.
# reads:  <results>/data/validation.json, <results>/data/clips.parquet, the base's configuration
# writes: <results>/data/estimate.json
rule estimate:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/estimate.json",
        validation="<results>/data/validation.json",
        clips="<results>/data/clips.parquet",
        checked=[file for base in OF_BASES for file in checked_models(base)],
        base_models=demo_files(*(c["base_model"] for c in OF_BASES.values())),
        codec=CODEC,
    output:
        estimate="<results>/data/estimate.json",
    log:
        "<logs>/estimate.log",
    benchmark:
        "<benchmarks>/estimate.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
    params:
        version=stages.STAGES["estimate"].version,
        environment=environment,
        demo_bases=[
            demo_version(name)
            for name in (
                config["codec"],
                *(c["base_model"] for c in OF_BASES.values()),
            )
        ],
    shell:
        "{params.environment} python -m higgs_pipe.estimate --config {input.config:q}"
        " --validation {input.validation:q} --clips {input.clips:q}"
        " --estimate {output.estimate:q} --log {log:q}"


# Show the recordings and the results of validation, as a page with players.
# reads:  <results>/data/{rows,clips,rejected}.parquet, <results>/data/measured/,
#         <results>/data/validation.json, some of the recordings
# writes: <results>/data/index.html
rule clips_page:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/clips_page.json",
        rows="<results>/data/rows.parquet",
        measured=expand("<results>/data/measured/{shard}.parquet", shard=SHARDS),
        clips="<results>/data/clips.parquet",
        rejected="<results>/data/rejected.parquet",
        validation="<results>/data/validation.json",
        fetched=fetched(RECORDINGS),
    output:
        page=report(
            "<results>/data/index.html",
            caption="../report/clips.rst",
            category="Recordings",
        ),
    log:
        "<logs>/clips_page.log",
    benchmark:
        "<benchmarks>/clips_page.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=60,
    params:
        version=stages.STAGES["clips_page"].version,
        environment=environment,
        measured_dir=lambda wildcards, input: Path(input.measured[0]).parent,
    shell:
        "{params.environment} python -m higgs_pipe.clips_page --config {input.config:q} --rows {input.rows:q}"
        " --measured-dir {params.measured_dir:q} --clips {input.clips:q}"
        " --rejected {input.rejected:q} --validation {input.validation:q}"
        " --page {output.page:q} --log {log:q}"


# Encode the clips of one shard.
# reads:  <results>/data/shards/{shard}.parquet, the recordings, the codec as pinned
# writes: <results>/codes/{shard}.parquet
rule tokenize_shard:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/config/tokenize.json",
        clips="<results>/data/shards/{shard}.parquet",
        codec="<results>/models/codec.json",
        fetched=fetched(RECORDINGS),
    output:
        codes="<results>/codes/{shard}.parquet",
    log:
        "<logs>/tokenize/{shard}.log",
    benchmark:
        "<benchmarks>/tokenize/{shard}.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    # On a GPU threads decode the next files; on a CPU two jobs are faster than two threads.
    threads: 4 if config["tokenize"]["device"] == "cuda" else 1
    resources:
        gpu=launching.num_gpus(config["tokenize"]["device"]),
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=480,
    params:
        version=stages.STAGES["tokenize"].version,
        environment=environment,
    shell:
        "{params.environment} python -m higgs_pipe.tokenize_audio --config {input.config:q}"
        " --shard-clips {input.clips:q} --pinned-codec {input.codec:q} --codes {output.codes:q}"
        " --num-threads {threads} --log {log:q}"


# Pack codes and text into full rows, for one base.
# reads:  <results>/data/clips.parquet, <results>/codes/, tokenizer and template of the base as
#         pinned
# writes: <results>/{base}packed/{train,eval}.parquet, <results>/{base}packed/packing.json
rule pack_rows:
    input:
        checkpoints=CHECKPOINTS,
        config="<results>/{base}config/pack.json",
        clips="<results>/data/clips.parquet",
        codes=expand("<results>/codes/{shard}.parquet", shard=SHARDS),
        base_model="<results>/{base}models/base_model.json",
    output:
        train_rows="<results>/{base}packed/train.parquet",
        eval_rows="<results>/{base}packed/eval.parquet",
        packing="<results>/{base}packed/packing.json",
    log:
        "<logs>/{base}pack.log",
    benchmark:
        "<benchmarks>/{base}pack.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=240,
    params:
        version=stages.STAGES["pack"].version,
        environment=environment,
        codes_dir=lambda wildcards, input: Path(input.codes[0]).parent,
        num_shards=len(SHARDS),
        splits=["train", "eval"],
    shell:
        "{params.environment} python -m higgs_pipe.pack --config {input.config:q} --clips {input.clips:q}"
        " --pinned-base {input.base_model:q} --codes-dir {params.codes_dir:q} --num-shards {params.num_shards}"
        " --train-rows {output.train_rows:q} --eval-rows {output.eval_rows:q}"
        " --packing {output.packing:q} --splits {params.splits} --log {log:q}"
