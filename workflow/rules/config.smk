# The part of the config that a stage reads.
# in:  config.yaml and the command line
# out: <results>/config/{stage}.json; its bytes change only if that part does, so that a changed
#      setting reruns its stage and what follows, nothing else


rule stage_config:
    output:
        config="<results>/config/{stage}.json",
    log:
        "<logs>/config/{stage}.log",
    conda:
        "../../envs/higgs-pipe.yaml"
    params:
        text=lambda wildcards: config_check.stage_config_text(
            config, wildcards.stage, STAGE_SCHEMA
        ),
    shell:
        "printf '%s\\n' {params.text:q} > {output.config:q} 2> {log:q}"
