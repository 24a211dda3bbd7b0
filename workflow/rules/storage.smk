# Recordings on object storage. Included only if there is a manifest on it.


# Copy the folders of all manifests on object storage to this machine, once, each as a whole. The copies
# stay for every job that reads recordings.
# reads:  the folders
# writes: <resources>/fetched.txt, which lists the copies; these are below .snakemake/storage/
rule fetch_recordings:
    input:
        folders=[*RECORDINGS, *OTHER_RECORDINGS],
    output:
        fetched=local("<resources>/fetched.txt"),
    log:
        local("<logs>/fetch_recordings.log"),
    localrule: True
    conda:
        "../../envs/higgs-pipe.yaml"
    shell:
        "ls -d {input.folders:q} > {output.fetched:q} 2> {log:q}"
