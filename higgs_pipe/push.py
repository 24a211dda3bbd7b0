"""Publish a package on the Hub, only where ``snakemake push`` asks for it.

What is pushed was checked a moment before, the repository is private unless the config says
otherwise, and a repository that holds something else is left as it is. The commit is one: a push
that is interrupted leaves the branch as it was, and the next one uploads only what is missing.
"""

import logging
from pathlib import Path
from typing import ClassVar

from huggingface_hub.utils.tqdm import disable_progress_bars

from higgs_pipe.cli import main
from higgs_pipe.config.settings import PushConfig
from higgs_pipe.config.stages import PushStage, load_stage
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.results import Result
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.progress import activity
from higgs_pipe.publishing.checking import check_package
from higgs_pipe.publishing.hub import Branch, HubRepository, hub_errors_named
from higgs_pipe.publishing.sealing import CHECKSUMS, FILE_LIST

logger = logging.getLogger("higgs_pipe")

EXPERIMENT = "{experiment}"


class Pushed(Result):
    """``pushed/<name>.json``: where a package was published."""

    made_by: ClassVar[str] = "push_adapter"

    repo: str
    branch: str
    commit: str
    tag: str | None
    private: bool
    package_sha256: str  # of its SHA256SUMS


def run(config: Path, name: str, names: list[str], package_dir: Path, pushed: Path) -> None:
    """Publish the package of one experiment.

    Args:
        config: ``results/config/push.json``.
        name: Of the experiment.
        names: All experiments.
        package_dir: The package.
        pushed: Where it went (JSON).

    Raises:
        UserError: No repository is named, the package or its verdict does not pass, the Hub cannot
            be reached or refuses the token, or the repository is public or holds something else.
    """
    disable_progress_bars()  # they would fill a log file
    stage = load_stage(PushStage, config)
    settings = stage.push
    repo = HubRepository(repository_name(settings.repo, name, names))
    checked = check_package(package_dir)
    if stage.eval.require is not None:
        Verdict.read(package_dir / "verdict.json").require(stage.eval.require)
    with hub_errors_named(repo.name):
        repo.check_access()
        is_private = repo.is_private()
        if is_private is False and settings.private:
            raise UserError(
                f"push.repo {repo.name} is public and push.private is true. Set push.private to "
                "false to publish the adapter for everybody, or name another repository."
            )
        if is_private is None:
            repo.create(settings.private)
        branch = repo.branch(settings.branch)
        names_of_files = (*checked.files.files, FILE_LIST, CHECKSUMS)
        files = {file: package_dir / file for file in names_of_files}
        different = branch.differences(files)
        commit = branch.commit
        if different:
            refuse_other_content(repo.name, branch, different, settings)
        tagged = repo.tags().get(settings.tag) if settings.tag is not None else None
        if tagged is not None and (different or tagged != commit):
            raise UserError(
                f"push.tag {settings.tag} of {repo.name} names another commit ({tagged[:12]}…); "
                "name a new tag."
            )
        if different:
            with activity("uploading"):
                commit = repo.commit(settings.branch, branch, files, different, f"Adapter {name}")
        if settings.tag is not None and tagged is None:
            repo.tag(settings.tag, commit)
        Pushed(
            repo=repo.name,
            branch=settings.branch,
            commit=commit,
            tag=settings.tag,
            private=settings.private if is_private is None else is_private,
            package_sha256=sha256_of_file(package_dir / CHECKSUMS),
        ).write(pushed)
    logger.info(
        "%s: %s at commit %s of %s",
        package_dir,
        "pushed" if different else "already there",
        commit,
        repo.name,
    )


def repository_name(named: str | None, experiment: str, names: list[str]) -> str:
    """Return the repository of an experiment.

    Raises:
        UserError: None is named, or one for several experiments.
    """
    if named is None:
        raise UserError("push.repo is null: name the repository on the Hub, as owner/name.")
    if len(names) > 1 and EXPERIMENT not in named:
        raise UserError(
            f"push.repo {named} is one repository for {len(names)} experiments; put {EXPERIMENT} "
            f"into its name, such as {named}-{EXPERIMENT}."
        )
    return named.replace(EXPERIMENT, experiment)


def refuse_other_content(
    repo: str, branch: Branch, different: list[str], settings: PushConfig
) -> None:
    """Leave a branch alone that holds something else.

    Raises:
        UserError: It holds files of its own, and ``push.overwrite`` is false.
    """
    if branch.is_fresh or settings.overwrite:
        return
    raise UserError(
        f"push.repo {repo}: branch {settings.branch} holds other content:\n"
        f"{list_offenders(different)}\n"
        "Name another repository or push.branch, or set push.overwrite to replace what is there "
        "(its history keeps it)."
    )


if __name__ == "__main__":
    main(run)
