"""Publish a form of an adapter on the Hub; only ``snakemake push`` runs this.

The package goes to ``push.repo``, each full checkpoint to its own repository beside it::

    ada/voice           the PEFT package
    ada/voice-merged    the merged checkpoint
    ada/voice-original  the original checkpoint

The files are checked just before the push. The repository is private unless the config says
otherwise, and a repository with other content is left unchanged. A push is a single commit: an
interrupted push leaves the branch unchanged, and the next one uploads only the missing files.
Weights are read in chunks.
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
from higgs_pipe.planning.file_names import CHECKSUMS
from higgs_pipe.planning.forms import PEFT, repository_name
from higgs_pipe.progress import activity
from higgs_pipe.publishing.checking import check_checkpoint, check_package
from higgs_pipe.publishing.hub import Branch, HubRepository, hub_errors_named
from higgs_pipe.publishing.sealing import FILE_LIST

logger = logging.getLogger("higgs_pipe")


class Pushed(Result):
    """``pushed/<form>/<name>.json``: where a form was published."""

    made_by: ClassVar[str] = "push_adapter"

    form: str
    repo: str
    branch: str
    commit: str
    tag: str | None
    private: bool
    package_sha256: str  # of its SHA256SUMS


def run(
    config: Path,
    form: str,
    name: str,
    names: list[str],
    package_dir: Path,
    verdict: Path,
    pushed: Path,
) -> None:
    """Publish one form of one experiment's adapter.

    Args:
        config: ``results/config/push.json``.
        form: peft, merged or original.
        name: Name of the experiment.
        names: All experiments.
        package_dir: The package or the full checkpoint.
        verdict: The verdict of eval.
        pushed: Record to write of where it was published (JSON).

    Raises:
        UserError: No repository is named, the files or the verdict do not pass, the Hub cannot be
            reached or refuses the token, or the repository is public or has other content.
    """
    disable_progress_bars()  # they would fill a log file
    stage = load_stage(PushStage, config)
    settings = stage.push
    repo = HubRepository(repository_name(settings.repo, form, name, names))
    listed = check_package(package_dir).files if form == PEFT else check_checkpoint(package_dir)
    if stage.eval.require is not None:
        Verdict.read(verdict).require(stage.eval.require)
    with hub_errors_named(repo.name):
        repo.check_access()
        is_private = repo.is_private()
        if is_private is False and settings.private:
            raise UserError(
                f"push.repo {repo.name} is public and push.private is true. Set push.private to "
                "false to publish it to everybody, or name another repository."
            )
        if is_private is None:
            repo.create(settings.private)
        branch = repo.branch(settings.branch)
        names_of_files = (*listed.files, FILE_LIST, CHECKSUMS)
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
                message = f"Adapter {name}" if form == PEFT else f"Adapter {name}, {form}"
                commit = repo.commit(settings.branch, branch, files, different, message)
        if settings.tag is not None and tagged is None:
            repo.tag(settings.tag, commit)
        Pushed(
            form=form,
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


def refuse_other_content(
    repo: str, branch: Branch, different: list[str], settings: PushConfig
) -> None:
    """Refuse to push to a branch that has other content.

    Raises:
        UserError: It holds files of its own, and ``push.overwrite`` is false.
    """
    if branch.is_fresh or settings.overwrite:
        return
    raise UserError(
        f"push.repo {repo}: branch {settings.branch} holds other content:\n"
        f"{list_offenders(different)}\n"
        "Name another repository or push.branch, or set push.overwrite to replace this content "
        "(the history keeps it)."
    )


if __name__ == "__main__":
    main(run)
