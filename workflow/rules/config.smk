# The settings of each stage, in a file for each.


# Write the part of the config that one stage reads, for one base. Its bytes change only when that
# part changes, so a changed setting reruns its stage and those after it, nothing else.
# reads:  config.yaml and the command line
# writes: <results>/{base}config/{stage}.json
rule stage_config:
    output:
        config="<results>/{base}config/{stage}.json",
    log:
        "<logs>/{base}config/{stage}.log",
    localrule: True
    conda:
        "../../envs/higgs-pipe.yaml"
    params:
        text=lambda wildcards: config_check.stage_config_text(
            OF_ALL_BASES[wildcards.base], wildcards.stage, STAGE_SCHEMA
        ),
    shell:
        "printf '%s\\n' {params.text:q} > {output.config:q} 2> {log:q}"
