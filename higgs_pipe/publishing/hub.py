"""A repository on the Hub compared with a package: contents, changes, and one commit.

The token is the one that huggingface_hub finds, in HF_TOKEN or from ``hf auth login``; nothing here
reads it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError

OF_THE_HUB = ".gitattributes"  # in every repository from its first commit on
MAIN = "main"
CHUNK_BYTES = 1 << 20


@contextmanager
def hub_errors_named(repo: str) -> Iterator[None]:
    """Turn an error of the Hub, the network or the token into a message.

    Raises:
        UserError: Instead of the library's own error.
    """
    try:
        yield
    except (HTTPError, ConnectionError, LocalTokenNotFoundError) as error:
        raise _sentence(repo, error) from None
    except RuntimeError as error:  # the library's own around what a thread of an upload raised
        if not isinstance(error.__cause__, HTTPError | ConnectionError):
            raise
        raise _sentence(repo, error.__cause__) from None


def _sentence(repo: str, error: BaseException) -> UserError:
    if isinstance(error, LocalTokenNotFoundError):
        return UserError(
            f"push.repo {repo}: no token for the Hub. Set HF_TOKEN, or run: hf auth login"
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = {
            401: "the token is not valid; set another one",
            403: "the token may not write there; give it that right, or name another repository",
            404: "there is no such repository for this token",
        }
        fact = advice.get(status, str(error).splitlines()[0])
        return UserError(f"push.repo {repo}: the Hub answers {status}, {fact}.")
    return UserError(
        f"push.repo {repo}: the Hub cannot be reached ({error}). Run snakemake push on a machine "
        "with a network; files already uploaded are not uploaded again."
    )


@dataclass(frozen=True)
class Branch:
    """A branch of a repository.

    Attributes:
        commit: Its newest commit.
        files: SHA-256 of files in LFS, git's SHA-1 of others, by path.
        is_fresh: Nothing was committed to it: it is at the commit of ``main``, or empty.
    """

    commit: str
    files: Mapping[str, str]
    is_fresh: bool

    def differences(self, files: Mapping[str, Path]) -> list[str]:
        """Return the paths of files that differ between the branch and these files."""
        changed = {name for name, path in files.items() if not is_same(path, self.files.get(name))}
        return sorted(changed | (self.files.keys() - files.keys()))


class HubRepository:
    """A model repository on the Hub.

    Args:
        name: ``owner/name``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.api = HfApi()

    def check_access(self) -> None:
        """Ask the Hub whose token it is, before anything is created."""
        self.api.whoami()

    def is_private(self) -> bool | None:
        """Return whether the repository is private; None if it does not exist."""
        try:
            return self.api.model_info(self.name).private
        except RepositoryNotFoundError:
            return None

    def create(self, private: bool) -> None:
        """Make the repository."""
        self.api.create_repo(self.name, private=private, exist_ok=True)

    def branch(self, name: str) -> Branch:
        """Return a branch; create it if it does not exist."""
        heads = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.name).branches}
        if name not in heads:
            self.api.create_branch(self.name, branch=name, exist_ok=True)
            heads[name] = heads[MAIN]
        files = {
            item.path: item.lfs.sha256 if item.lfs else item.blob_id
            for item in self.api.list_repo_tree(self.name, recursive=True, revision=name)
            if isinstance(item, RepoFile) and item.path != OF_THE_HUB
        }
        is_fresh = not files or (name != MAIN and heads[name] == heads[MAIN])
        return Branch(heads[name], files, is_fresh)

    def tags(self) -> dict[str, str]:
        """Return the commit of each tag."""
        return {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.name).tags}

    def commit(
        self, branch: str, base: Branch, files: Mapping[str, Path], names: list[str], message: str
    ) -> str:
        """Make files of a branch equal to local ones, in one commit; return the commit.

        Args:
            branch: Name of the branch.
            base: The branch as it was read; the commit fails if someone else has committed since.
            files: The local files by path.
            names: Paths to change; one that is not in ``files`` is removed. Content that the Hub
                has is not uploaded again.
            message: Message of the commit.

        Raises:
            UserError: The Hub refuses the metadata of the model card.
        """
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, files[name]) if name in files else CommitOperationDelete(name)
            for name in names
        ]
        try:
            made = self.api.create_commit(
                self.name,
                operations,
                commit_message=message,
                revision=branch,
                parent_commit=base.commit,
            )
        except ValueError as error:  # of README.md alone, before anything is uploaded
            raise UserError(
                f"push.repo {self.name}: the Hub refuses the model card: {error}\n"
                "Set package.license to a licence id of the Hub."
            ) from None
        return made.oid

    def tag(self, name: str, commit: str) -> None:
        """Name a commit."""
        self.api.create_tag(self.name, tag=name, revision=commit, exist_ok=True)


def is_same(path: Path, hub_hash: str | None) -> bool:
    """Return whether a file is the one that the Hub knows by this hash."""
    if hub_hash is None:
        return False
    if len(hub_hash) == 64:
        return sha256_of_file(path) == hub_hash
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == hub_hash
