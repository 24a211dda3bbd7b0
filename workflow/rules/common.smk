# Definitions that the rules share; there are no rules here.
EXPERIMENTS = list(config["experiments"])
RESULTS = workflow.pathvars.apply("<results>")
# The outputs of `snakemake package`.
PACKAGES = forms.outputs(config, FAMILY_OF)
SHARDS = file_names.shard_names(config["data"]["num_shards"])
# The recordings that adapters are evaluated on: held-out ones, and others to measure forgetting.
HAS_OTHER = config["eval"]["other_manifest"] is not None
EVALUATIONS = ["eval", "eval/other"] if HAS_OTHER else ["eval"]
STAGE_SCHEMA = config_check.load_schema(SCHEMA_PATH)
ACCELERATE_CONFIG = ROOT / "workflow" / "accelerate.yaml"
# The folder of Snakemake's copies of results on object storage, or else of the results.
IS_STORED = workflow.storage_settings.default_storage_provider is not None
place_of = workflow.modifier.path_modifier.apply_default_storage
PRODUCTS = products.products(Path(RESULTS), EXPERIMENTS, list(OF_BASES))
VERSIONS_BEFORE = products.versions(PRODUCTS)
LOGS = Path(place_of(workflow.pathvars.apply("<logs>")))
LOGS_BEFORE = {}
FILE_STATES = f"{RESULTS}/data/recordings.json"

OF_ALL_BASES = {**OF_BASES, bases.OWN: config}
# Not an output of a rule, so that it outlives a rerun.
HASH_CACHE = Path(f"{RESULTS}/models/hashes.json")

# The outputs of the two checkpoints, as inputs of every later rule, ignoring their age. Once a
# checkpoint is done, Snakemake 9.27 reconsiders only the rules that depend on it directly: the others,
# training among them, would run although none of their inputs has changed.
CHECKPOINTS = ancient(["<results>/data/rows.parquet", "<results>/data/clips.parquet"])


def stored_folder(url):
    """Return a folder of recordings on object storage as an input: one file to Snakemake."""
    return storage(f"{url}/", keep_local=True)


# The folders of manifests on object storage.
RECORDINGS_URLS = object_storage.folders(config["manifest"])
RECORDINGS = list(map(stored_folder, RECORDINGS_URLS))
OTHER_RECORDINGS_URLS = object_storage.folders(config["eval"]["other_manifest"] or [])
OTHER_RECORDINGS = list(map(stored_folder, OTHER_RECORDINGS_URLS))


def fetched(folders):
    """Return what the jobs that read recordings wait for.

    That these were fetched to this machine, or, where each job has a disk of its own, the folders:
    each of these jobs lists and fetches them then.
    """
    usage = workflow.storage_settings.shared_fs_usage
    is_shared = any(use.name == "STORAGE_LOCAL_COPIES" for use in usage)
    marker = [local("<resources>/fetched.txt")] if folders else []
    return ancient(marker if is_shared else folders)


def demo_files(*names):
    """Return the demo bases that base models or the codec are of.

    Other models already exist. The age of a demo base does not count, which a copy changes: what it
    holds is known by the version of its stage.
    """
    return ancient(
        local(
            [
                folder
                for folder in DEMO_BASES
                if any(models.is_within(name, folder) for name in names)
            ]
        )
    )


def demo_version(name):
    """Return what a base model or codec is a part of, if of a demo base; else None."""
    for folder in demo_files(name):
        return f"miniature, version {stages.STAGES[DEMO_BASES[folder]].version}"


def checked_models(base):
    """Return what is waited for before anything is loaded, if a model is of the Hub."""
    names = [OF_ALL_BASES[base][model] for model in ("base_model", "codec")]
    is_on_hub = any(models.is_hub_id(name) and not demo_files(name) for name in names)
    return ancient([f"{RESULTS}/{base}models/checked.txt"] if is_on_hub else [])


# The marks that texts may have depend on them.
FAMILIES = sorted(set(FAMILY_OF.values()))

# Everything waits for this, including listing and measuring.
CHECKED_MODELS = checked_models(bases.OWN)
CODEC = demo_files(config["codec"])


def of_base(path):
    """Return a function for the input: a file of the base that an experiment is trained on."""
    return (
        lambda wildcards: f"{RESULTS}/{bases.folder_of(config, wildcards.experiment)}{path}"
    )


def demo_base(wildcards):
    """Return the demo base that an experiment is trained on, if it is one, as a list."""
    return demo_files(bases.base_of(config, wildcards.experiment)[0])


def launch_settings(wildcards):
    """Return how the training of one experiment is launched."""
    return launching.launch_settings(config, wildcards.experiment)


def num_processes_per_machine(wildcards):
    """Return the number of processes of one training on each machine, rounded up."""
    settings = launch_settings(wildcards)
    return -(-settings["num_processes"] // settings["num_machines"])


def machines(wildcards):
    """Return what one training asks of a scheduler."""
    settings = launch_settings(wildcards)
    return launching.machines(
        device=launching.train_setting(config, wildcards.experiment, "device"),
        num_processes=settings["num_processes"],
        num_machines=settings["num_machines"],
    )


ENVIRONMENT = launching.environment(
    ROOT, in_own_environment=not workflow.deployment_settings.deployment_method
)


def environment(wildcards, threads):
    """Return the beginning of a job's command: by shell.prefix, other workflows' jobs would get it.

    Snakemake does not compare what depends on `threads`: a moved checkout reruns nothing.
    """
    return ENVIRONMENT


wildcard_constraints:
    base=bases.pattern(OF_BASES),
    experiment="|".join(map(re.escape, EXPERIMENTS)),
    form="merged|original",
    model="base_model|codec",
    shard=r"shard-\d{5}",
    stage="|".join(STAGE_SCHEMA["x-stages"]),


onstart:
    LOGS_BEFORE.update(failures.log_states(LOGS))
    if workflow.local_exec:  # of a cluster's jobs, Snakemake's own way
        interruption.end_as_ctrl_c()
    elif workflow.is_main_process and workflow.executor_plugin.name == "slurm":
        config_check.or_exit(launching.check_slurm)
    notes = config_check.demo_lines(demo_changes, DEMO_SETTINGS)
    for line in [*notes, *forms.left_out(config, FAMILY_OF)]:
        print(line, file=sys.stderr)


# Printed at the end of this process, after Snakemake's own lines on each failed job.
onerror:
    lines = failures.failure_lines(LOGS, LOGS_BEFORE)
    atexit.register(print, *lines, sep="\n", file=sys.stderr)


onsuccess:
    lines = products.closing_lines(PRODUCTS, VERSIONS_BEFORE)
    if IS_STORED:
        lines = [
            f"results  {workflow.storage_settings.default_storage_prefix}/{RESULTS}"
        ]
    for line in lines:
        print(line, file=sys.stderr)
