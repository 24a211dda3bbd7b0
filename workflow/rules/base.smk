# The demo's base checkpoint, the real one in miniature.
# in:  nothing
# out: <resources>/tiny-higgs/, and its codec in audio_tokenizer/ there


rule tiny_base:
    output:
        base=directory("<resources>/tiny-higgs"),
    log:
        "<logs>/tiny_base.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        version=targets.STAGE_VERSIONS["tiny"],
    shell:
        "python -m higgs_pipe.higgs.miniature --output-dir {output.base:q} --log {log:q}"
