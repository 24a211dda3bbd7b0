# The base checkpoint of the demo.


# Build a miniature of the real checkpoint.
# reads:  nothing
# writes: <resources>/tiny-higgs/, with the codec in audio_tokenizer/
rule tiny_base:
    output:
        base=directory("<resources>/tiny-higgs"),
    log:
        "<logs>/tiny_base.log",
    benchmark:
        "<benchmarks>/tiny_base.tsv"
    conda:
        "../../envs/higgs-pipe.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        version=stages.STAGES["tiny"].version,
    shell:
        "python -m higgs_pipe.higgs.miniature --output-dir {output.base:q} --log {log:q}"
