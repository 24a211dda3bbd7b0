"""Pushing to a local Hub: its contents afterwards, and what is refused beforehand."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import python_path, write_stage_config
from hub_server import Hub, running_hub
from huggingface_hub import constants
from huggingface_hub.hf_api import RepoFile, RepoFolder

from higgs_pipe import push
from higgs_pipe.data.files import write_json
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.hub import hub_answers
from higgs_pipe.listening.verdict import judge
from higgs_pipe.publishing.hub import Branch, HubRepository, hub_errors_named
from higgs_pipe.publishing.sealing import seal

TOKEN = "hf_plantedSecretThatNobodyMaySee"
REPO = "ada/voice"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(TOKEN) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sealed package without evidence that it is better than its base."""
    folder = tmp_path / "adapters" / "default"
    (folder / "samples").mkdir(parents=True)
    header = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"abc"
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "samples/01-base.wav").write_bytes(b"RIFF\x04\x00\x00\x00WAVE")
    pinned = {"setting": "base_model", "name": "tiny", "revision": None}
    fingerprints = {"fingerprint": "0" * 64, "config_fingerprint": "0" * 64}
    write_json(folder / "base_model.json", pinned | fingerprints)
    for name in ("adapter_config.json", "provenance.json"):
        write_json(folder / name, {})
    (folder / "README.md").write_text("---\nlicense: other\n---\n# Ada\n")
    verdict = judge({}, audio_loss=1.0, num_entries=1026, text_use=None, clustered_by="clip")
    verdict.write(folder / "verdict.json")
    seal(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sealed merged checkpoint with a file that is uploaded in three parts."""
    folder = tmp_path / "merged" / "default"
    (folder / "audio_tokenizer").mkdir(parents=True)
    for name in ("config.json", "merge.json", "proof.json", "audio_tokenizer/config.json"):
        write_json(folder / name, {"name": name})
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(range(250)) * 100)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"end")
    (folder / "README.md").write_text("---\nlicense: other\n---\n# Merged\n")
    (folder / "LICENSE").write_text("As the base.\n")
    seal(folder)
    return folder


def run_push(
    package: Path, require: str | None = None, form: str = "peft", **settings: Any
) -> dict[str, Any]:
    """Push, and return the result's JSON."""
    results = package.parents[1]
    config = write_stage_config(
        results / "config/push.json",
        push={"repo": REPO} | settings,
        eval={"require": require},
    )
    verdict, pushed = package / "verdict.json", results / f"pushed/{form}/default.json"
    push.run(config, form, "default", ["default"], package, verdict, pushed)
    result: dict[str, Any] = json.loads(pushed.read_text())
    assert result["package_sha256"] == sha256_of_file(package / "SHA256SUMS")
    return result


def contents(package: Path) -> dict[str, bytes]:
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file()
    }


def on_hub(hub: Hub, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
    files = dict(hub.repositories[repo].files(revision))
    files.pop(".gitattributes", None)
    return files


def change(package: Path, licence: str = "other") -> None:
    (package / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Another\n")
    (package / "files.json").unlink()
    (package / "SHA256SUMS").unlink()
    seal(package)


def test_a_push_creates_a_private_repository_with_the_package(hub: Hub, package: Path) -> None:
    pushed = run_push(package)
    assert on_hub(hub) == contents(package)
    assert hub.repositories[REPO].private is True is pushed["private"]
    assert pushed["commit"] == hub.repositories[REPO].branches["main"]


def test_each_form_has_its_own_repository(
    hub: Hub, package: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    commit = HubRepository.commit

    def noted(*arguments: Any) -> str:
        messages.append(arguments[-1])
        return commit(*arguments)

    monkeypatch.setattr(HubRepository, "commit", noted)
    run_push(package)
    pushed = run_push(checkpoint, form="merged")
    assert (pushed["form"], pushed["repo"]) == ("merged", "ada/voice-merged")
    assert on_hub(hub, repo="ada/voice-merged") == contents(checkpoint)
    assert hub.repositories["ada/voice-merged"].private is True
    assert on_hub(hub) == contents(package)
    assert messages == ["Adapter default", "Adapter default, merged"]


def test_a_large_file_is_uploaded_in_parts_and_only_once(hub: Hub, checkpoint: Path) -> None:
    hub.fail_on = "/commit/"
    with pytest.raises(UserError, match=r"ada/voice-merged: .*403"):
        run_push(checkpoint, form="merged")
    uploads = [line.split("/")[2:] for line in hub.requests if line.startswith("PUT")]
    assert sorted(part for _, *part in uploads) == [[], ["1"], ["2"], ["3"]]
    hub.fail_on = None
    hub.requests.clear()
    run_push(checkpoint, form="merged")
    assert on_hub(hub, repo="ada/voice-merged") == contents(checkpoint)
    assert [line for line in hub.requests if line.startswith("PUT")] == []


def test_a_checkpoint_changed_since_its_proof_is_not_pushed(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "model-00002-of-00002.safetensors").write_bytes(b"abc")
    (checkpoint / "proof.json").unlink()
    (checkpoint / "optimizer.pt").touch()
    found = r"(?s)model-00002-of-00002.safetensors: changed.*optimizer.pt: not in.*proof.json: miss"
    with pytest.raises(UserError, match="not the checkpoint that was made") as refused:
        run_push(checkpoint, form="merged")
    assert hub.requests == []
    assert re.search(found, "\n".join(sorted(str(refused.value).splitlines())))


def test_private_false_creates_a_public_repository(hub: Hub, package: Path) -> None:
    for _ in range(2):  # it is there the second time
        assert run_push(package, private=False)["private"] is False
        assert hub.repositories[REPO].private is False


def test_snakemakes_timestamp_file_is_not_pushed(hub: Hub, package: Path) -> None:
    (package / ".snakemake_timestamp").touch()
    run_push(package)
    (package / ".snakemake_timestamp").unlink()
    assert on_hub(hub) == contents(package)


def test_a_second_push_changes_nothing_and_names_the_same_commit(hub: Hub, package: Path) -> None:
    first = run_push(package)
    hub.requests.clear()
    assert run_push(package) == first
    assert [line for line in hub.requests if line.startswith(("POST", "PUT"))] == []


def test_an_interrupted_push_resumes_without_uploading_again(hub: Hub, package: Path) -> None:
    hub.fail_on = "/commit/"
    with pytest.raises(UserError, match="403"):
        run_push(package)
    assert on_hub(hub) == {}
    hub.fail_on = None
    hub.requests.clear()
    run_push(package)
    assert on_hub(hub) == contents(package)
    assert [line for line in hub.requests if line.startswith("PUT")] == []


def test_other_content_is_kept_unless_overwrite_is_set(hub: Hub, package: Path) -> None:
    run_push(package)
    hub.repositories[REPO].add_commit("main", on_hub(hub) | {"notes.txt": b"x"})
    change(package)
    with pytest.raises(UserError, match=r"(?s)ada/voice: branch main .*README.md.*notes.txt"):
        run_push(package)
    assert on_hub(hub)["notes.txt"] == b"x"
    run_push(package, overwrite=True)
    assert on_hub(hub) == contents(package)


def test_a_push_to_another_branch_leaves_main_unchanged(hub: Hub, package: Path) -> None:
    run_push(package)
    before = on_hub(hub)
    change(package)
    pushed = run_push(package, branch="second", tag="v2")
    assert pushed["branch"] == "second"
    assert on_hub(hub, "second") == contents(package)
    assert on_hub(hub) == before
    repository = hub.repositories[REPO]
    assert repository.tags == {"v2": repository.branches["second"]} == {"v2": pushed["commit"]}
    hub.requests.clear()
    assert run_push(package, branch="second", tag="v2") == pushed
    assert [line for line in hub.requests if line.startswith(("POST", "PUT"))] == []


def test_files_of_a_branch_are_hashed_at_any_depth() -> None:
    """For weights, this is the hash of their content and not of the git pointer."""
    asked: list[Any] = []
    lfs = {"size": 3, "oid": "c" * 64, "pointerSize": 130}

    class Api:
        def list_repo_refs(self, _: str) -> Any:
            heads = (("main", "1" * 40), ("second", "2" * 40))
            refs = [SimpleNamespace(name=name, target_commit=commit) for name, commit in heads]
            return SimpleNamespace(branches=refs)

        def list_repo_tree(self, name: str, **options: Any) -> list[Any]:
            asked.append((name, options))
            return [
                RepoFolder(path="samples", oid="d" * 40),
                RepoFile(path="samples/a.wav", size=3, oid="e" * 40, lfs=lfs),
                RepoFile(path="README.md", size=3, oid="f" * 40),
                RepoFile(path=".gitattributes", size=3, oid="0" * 40),
            ]

    repository: Any = HubRepository(REPO)
    repository.api = Api()
    files = {"samples/a.wav": "c" * 64, "README.md": "f" * 40}
    assert repository.branch("second") == Branch("2" * 40, files, is_fresh=False)
    assert asked == [(REPO, {"recursive": True, "revision": "second"})]


def test_a_tag_names_the_commit_and_never_moves(hub: Hub, package: Path) -> None:
    pushed = run_push(package, tag="v1")
    commit = pushed["commit"]
    assert hub.repositories[REPO].tags == {"v1": commit}
    assert pushed["tag"] == "v1"
    run_push(package, tag="v1")
    change(package)
    with pytest.raises(UserError, match=f"tag v1 .*{commit[:12]}"):
        run_push(package, tag="v1", overwrite=True)
    assert hub.repositories[REPO].branches["main"] == commit


def test_a_public_repository_is_refused_for_a_private_adapter(hub: Hub, package: Path) -> None:
    hub.create(REPO, private=False)
    with pytest.raises(UserError, match="ada/voice is public"):
        run_push(package)
    assert on_hub(hub) == {}


def test_a_private_repository_stays_private_and_this_is_reported(hub: Hub, package: Path) -> None:
    hub.create(REPO, private=True)
    assert run_push(package, private=False)["private"] is True


def test_a_package_that_was_changed_is_not_pushed(hub: Hub, package: Path) -> None:
    (package / "README.md").write_text("# Better\n")
    with pytest.raises(UserError, match=r"README.md: \d+ bytes of \d+"):
        run_push(package)
    assert hub.requests == []


def test_an_adapter_without_the_required_verdict_is_not_pushed(hub: Hub, package: Path) -> None:
    with pytest.raises(UserError, match=r"eval.require is better"):
        run_push(package, require="better")
    assert hub.requests == []


def test_a_card_that_the_hub_refuses_is_a_user_error(hub: Hub, package: Path) -> None:
    change(package, licence="nonsense")
    with pytest.raises(UserError, match=r"(?s)ada/voice: .*\"license\" must.*package.license"):
        run_push(package)


def test_without_a_repository_nothing_is_pushed(hub: Hub, package: Path) -> None:
    with pytest.raises(UserError, match=r"push.repo is null"):
        run_push(package, repo=None)


def test_several_experiments_need_a_repository_each(hub: Hub, package: Path) -> None:
    names, pushed = ["default", "small"], package.parent / "pushed.json"
    verdict = package / "verdict.json"
    config = write_stage_config(package.parents[1] / "push.json", push={"repo": REPO})
    with pytest.raises(UserError, match=r"2 experiments.*ada/voice-\{experiment\}"):
        push.run(config, "peft", "default", names, package, verdict, pushed)
    write_stage_config(config, push={"repo": f"{REPO}-{{experiment}}"})
    push.run(config, "peft", "default", names, package, verdict, pushed)
    assert set(hub.repositories) == {"ada/voice-default"}


def test_a_refused_token_is_a_user_error(
    hub: Hub, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match="ada/voice: the Hub answers 401, the token"):
        run_push(package)


def test_no_token_is_a_user_error(
    hub: Hub, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no token .*HF_TOKEN"):
        run_push(package)


def test_no_network_is_a_user_error(
    hub: Hub, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(UserError, match="ada/voice: the Hub cannot be reached"):
        run_push(package)


def test_the_token_is_in_no_file_and_no_message(hub: Hub, package: Path, tmp_path: Path) -> None:
    """Run it as the rule does, once successfully and once refused."""
    results = package.parents[1]
    config = write_stage_config(results / "config/push.json", push={"repo": REPO})
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": python_path(), "HF_DEBUG": "0"}
    shutil.copytree(package, results / "adapters/refused")
    (results / "adapters/refused/README.md").unlink()
    shown = ""
    for name, code in (("default", 0), ("refused", 2)):
        options = {
            "--config": config,
            "--form": "peft",
            "--name": "default",
            "--names": "default",
            "--package-dir": results / f"adapters/{name}",
            "--verdict": package / "verdict.json",
            "--pushed": results / f"pushed/{name}.json",
            "--log": results / f"logs/{name}.log",
        }
        words = [str(word) for option in options.items() for word in option]
        finished = subprocess.run(
            [sys.executable, "-m", "higgs_pipe.push", *words],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert finished.returncode == code, finished.stderr
        shown += finished.stdout + finished.stderr
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) > 15
    assert [path for path in found if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in shown
    assert on_hub(hub) == contents(package)


@pytest.mark.parametrize("kind", [ConnectionError, LookupError])
def test_only_network_errors_of_an_upload_thread_become_user_errors(
    kind: type[Exception],
) -> None:
    """A bug in the program stays a bug."""
    is_network = kind is ConnectionError
    told = "cannot be reached .reset by peer" if is_network else "of a thread"
    expected = UserError if is_network else RuntimeError
    with pytest.raises(expected, match=told), hub_errors_named(REPO):
        raise RuntimeError("of a thread") from kind("reset by peer")


def test_a_broken_connection_is_a_user_error() -> None:
    with (
        pytest.raises(UserError, match=r"cannot be reached .reset by peer"),
        hub_errors_named(REPO),
    ):
        raise ConnectionError("reset by peer")


@pytest.mark.parametrize("is_absent", [True, False])
def test_a_404_also_counts_as_an_answer_of_the_hub(
    is_absent: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if is_absent else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        request.addfinalizer(hub_answers.cache_clear)
        hub_answers.cache_clear()
        assert hub_answers()
        server.shutdown()
