# From the manifest to packed training rows; all experiments share them.
# in:  the manifests and the recordings that they name
# out: <results>/data/rows.parquet and recordings/{shard}.parquet             (list_rows)
#      <results>/data/measured/{shard}.parquet                                (measure_shard)
#      <results>/data/{clips,rejected}.parquet, validation.json and shards/   (judge_clips)
#      <results>/data/estimate.json                                           (estimate)
#      <results>/codes/{shard}.parquet                                        (tokenize_shard)
#      <results>/packed/{train,eval}.parquet and packing.json                 (pack)


# A checkpoint, so that Snakemake looks again once the shards are written: those whose bytes did
# not change are not measured again.
checkpoint list_rows:
    input:
        config="<results>/config/list_rows.json",
        # A missing manifest is left to the stage, which says what to do about it.
        manifests=lambda wildcards: [
            path for path in targets.manifests(config) if Path(path).is_file()
        ],
    output:
        rows="<results>/data/rows.parquet",
        recordings=expand("<results>/data/recordings/{shard}.parquet", shard=SHARDS),
    log:
        "<logs>/list_rows.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        version=targets.STAGE_VERSIONS["list_rows"],
        recordings_dir=lambda wildcards, output: Path(output.recordings[0]).parent,
    shell:
        "python -m higgs_pipe.list_rows --config {input.config:q} --rows {output.rows:q}"
        " --recordings-dir {params.recordings_dir:q} --log {log:q}"


rule measure_shard:
    input:
        config="<results>/config/measure.json",
        recordings="<results>/data/recordings/{shard}.parquet",
    output:
        measured="<results>/data/measured/{shard}.parquet",
    log:
        "<logs>/measure/{shard}.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 1
    resources:
        gpu=launching.num_gpus(
            config["validate"]["speech_models"]["device"],
            int(launching.runs_speech_models(config)),
        ),
        mem_mb=16000 if launching.runs_speech_models(config) else 2000,
        runtime=480,
    params:
        version=targets.STAGE_VERSIONS["measure"],
    shell:
        "python -m higgs_pipe.measure --config {input.config:q}"
        " --recordings {input.recordings:q} --measured {output.measured:q}"
        " --num-threads {threads} --log {log:q}"


# A checkpoint for the same reason: shards whose clips did not change are not encoded again.
checkpoint judge_clips:
    input:
        config="<results>/config/validate.json",
        rows="<results>/data/rows.parquet",
        measured=expand("<results>/data/measured/{shard}.parquet", shard=SHARDS),
    output:
        clips="<results>/data/clips.parquet",
        rejected="<results>/data/rejected.parquet",
        validation="<results>/data/validation.json",
        shards=expand("<results>/data/shards/{shard}.parquet", shard=SHARDS),
    log:
        "<logs>/judge_clips.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=16000,
        runtime=120,
    params:
        version=targets.STAGE_VERSIONS["validate"],
        measured_dir=lambda wildcards, input: Path(input.measured[0]).parent,
        shards_dir=lambda wildcards, output: Path(output.shards[0]).parent,
    shell:
        "python -m higgs_pipe.validate --config {input.config:q} --rows {input.rows:q}"
        " --measured-dir {params.measured_dir:q} --clips {output.clips:q}"
        " --rejected {output.rejected:q} --validation {output.validation:q}"
        " --shards-dir {params.shards_dir:q} --log {log:q}"


rule estimate:
    input:
        config="<results>/config/estimate.json",
        validation="<results>/data/validation.json",
        clips="<results>/data/clips.parquet",
        base_model=BASE_MODEL,
        codec=CODEC,
    output:
        estimate="<results>/data/estimate.json",
    log:
        "<logs>/estimate.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        version=targets.STAGE_VERSIONS["estimate"],
    shell:
        "python -m higgs_pipe.estimate --config {input.config:q}"
        " --validation {input.validation:q} --clips {input.clips:q}"
        " --estimate {output.estimate:q} --log {log:q}"


rule tokenize_shard:
    input:
        config="<results>/config/tokenize.json",
        clips="<results>/data/shards/{shard}.parquet",
        codec=CODEC,
    output:
        codes="<results>/codes/{shard}.parquet",
    log:
        "<logs>/tokenize/{shard}.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    # On a GPU threads decode the next files; on a CPU two jobs are faster than two threads.
    threads: 4 if config["tokenize"]["device"] == "cuda" else 1
    resources:
        gpu=launching.num_gpus(config["tokenize"]["device"]),
        mem_mb=16000,
        runtime=480,
    params:
        version=targets.STAGE_VERSIONS["tokenize"],
    shell:
        "python -m higgs_pipe.tokenize_audio --config {input.config:q}"
        " --shard-clips {input.clips:q} --codes {output.codes:q}"
        " --num-threads {threads} --log {log:q}"


rule pack:
    input:
        config="<results>/config/pack.json",
        clips="<results>/data/clips.parquet",
        codes=expand("<results>/codes/{shard}.parquet", shard=SHARDS),
        base_model=BASE_MODEL,
    output:
        train_rows="<results>/packed/train.parquet",
        eval_rows="<results>/packed/eval.parquet",
        packing="<results>/packed/packing.json",
    log:
        "<logs>/pack.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        version=targets.STAGE_VERSIONS["pack"],
        codes_dir=lambda wildcards, input: Path(input.codes[0]).parent,
        num_shards=len(SHARDS),
    shell:
        "python -m higgs_pipe.pack --config {input.config:q} --clips {input.clips:q}"
        " --codes-dir {params.codes_dir:q} --num-shards {params.num_shards}"
        " --train-rows {output.train_rows:q} --eval-rows {output.eval_rows:q}"
        " --packing {output.packing:q} --log {log:q}"
