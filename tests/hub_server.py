"""A Hub on this machine: the part of its API by which a model repository is made and filled."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
LFS_SUFFIXES = (".safetensors", ".wav")
PART_BYTES = 10_000  # larger files are uploaded in parts


@dataclass
class Repository:
    """Commits by id, and the commit of each branch and tag."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add_commit(self, branch: str, files: Files) -> str:
        oid = hashlib.sha1(f"{branch}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> Files:
        return self.commits[{**self.branches, **self.tags}.get(revision, revision)]


class Hub:
    """State of the Hub, and what was asked of it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.lfs: Files = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.fail_on: str | None = None  # a request whose line holds this gets status 403
        self.url = ""

    def create(self, name: str, private: bool) -> Repository:
        made = self.repositories.setdefault(name, Repository(private))
        if not made.commits:
            made.add_commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return made

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        name = r"(?P<repo>[\w.-]+/[\w.-]+)"
        routes: dict[str, Callable[..., tuple[int, Any]]] = {
            r"GET /api/whoami-v2": self.whoami,
            r"POST /api/repos/create": self.create_repo,
            r"POST /api/validate-yaml": self.validate,
            rf"GET /api/models/{name}": self.info,
            rf"GET /api/models/{name}/revision/(?P<revision>[^/]+)": self.info,
            rf"GET /api/models/{name}/refs": self.refs,
            rf"GET /api/models/{name}/tree/(?P<revision>[^/]+)": self.tree,
            rf"POST /api/models/{name}/branch/(?P<branch>[^/]+)": self.make_branch,
            rf"POST /api/models/{name}/tag/(?P<revision>[^/]+)": self.make_tag,
            rf"POST /api/models/{name}/preupload/(?P<revision>[^/]+)": self.preupload,
            rf"POST /api/models/{name}/commit/(?P<branch>[^/]+)": self.commit,
            rf"POST /{name}\.git/info/lfs/objects/batch": self.batch,
            r"PUT /lfs/(?P<oid>\w+)": self.put,
            r"PUT /lfs/(?P<oid>\w+)/(?P<number>\d+)": self.put_part,
            r"POST /lfs/(?P<oid>\w+)": self.join_parts,
        }
        for pattern, handler in routes.items():
            if found := re.fullmatch(pattern, f"{method} {path}"):
                parts = {key: unquote(value) for key, value in found.groupdict().items()}
                repo = parts.pop("repo", None)
                if repo is None or "batch" in path:
                    return handler(body, **parts)
                if repo not in self.repositories:
                    return 404, {"error": "Repository not found"}
                return handler(body, self.repositories[repo], **parts)
        return 404, {"error": f"no such path: {method} {path}"}

    def whoami(self, _: bytes) -> tuple[int, Any]:
        return 200, {"name": "ada", "type": "user"}

    def validate(self, body: bytes) -> tuple[int, Any]:
        if b"license: nonsense" in body:
            return 400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def create_repo(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.create(name, asked.get("visibility") == "private" or asked.get("private") is True)
        return 200, {"url": f"{self.url}/{name}"}

    def info(self, _: bytes, repo: Repository, revision: str = "main") -> tuple[int, Any]:
        oid = {**repo.branches, **repo.tags}.get(revision, revision)
        files = [
            {"rfilename": path, "size": len(content)} | self.lfs_entry(path, content)
            for path, content in repo.commits[oid].items()
        ]
        return 200, {"id": "x/y", "private": repo.private, "sha": oid, "siblings": files}

    def lfs_entry(self, path: str, content: bytes) -> dict[str, Any]:
        if not path.endswith(LFS_SUFFIXES):
            return {}
        sha256 = hashlib.sha256(content).hexdigest()
        size = len(content)
        return {"lfs": {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}}

    def refs(self, _: bytes, repo: Repository) -> tuple[int, Any]:
        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
                for name, oid in refs.items()
            ]

        branches, tags = listed(repo.branches, "heads"), listed(repo.tags, "tags")
        return 200, {"branches": branches, "tags": tags, "converts": []}

    def tree(self, _: bytes, repo: Repository, revision: str) -> tuple[int, Any]:
        return 200, [
            {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            | self.lfs_entry(path, content)
            for path, content in repo.files(revision).items()
        ]

    def make_branch(self, _: bytes, repo: Repository, branch: str) -> tuple[int, Any]:
        repo.branches.setdefault(branch, repo.branches["main"])
        return 200, {}

    def make_tag(self, body: bytes, repo: Repository, revision: str) -> tuple[int, Any]:
        repo.tags[json.loads(body)["tag"]] = revision
        return 200, {}

    def preupload(self, body: bytes, repo: Repository, revision: str) -> tuple[int, Any]:
        there = repo.files(revision)
        files = [
            {
                "path": (path := file["path"]),
                "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": git_oid(there[path]) if path in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}

    def batch(self, body: bytes) -> tuple[int, Any]:
        objects = [
            {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] in self.lfs
            else asked | {"actions": {"upload": self.upload(asked["oid"], asked["size"])}}
            for asked in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "multipart", "objects": objects}

    def upload(self, oid: str, size: int) -> dict[str, Any]:
        """Answer where a file is to be uploaded, whole or in parts."""
        href = f"{self.url}/lfs/{oid}"
        if size <= PART_BYTES:
            return {"href": href}
        parts = {str(n): f"{href}/{n}" for n in range(1, 1 + -(-size // PART_BYTES))}
        return {"href": href, "header": {"chunk_size": str(PART_BYTES), **parts}}

    def put_part(self, body: bytes, oid: str, number: str) -> tuple[int, Any]:
        assert len(body) <= PART_BYTES
        self.parts[oid, int(number)] = body
        return 200, {}

    def join_parts(self, body: bytes, oid: str) -> tuple[int, Any]:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        return self.put(b"".join(self.parts.pop((oid, number)) for number in numbers), oid)

    def put(self, body: bytes, oid: str) -> tuple[int, Any]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.lfs[oid] = body
        return 200, {}

    def commit(self, body: bytes, repo: Repository, branch: str) -> tuple[int, Any]:
        files = dict(repo.files(branch))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") != repo.branches[branch]:
                return 412, {"error": "the branch has moved"}
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.add_commit(branch, files)
        return 200, {"commitUrl": f"{self.url}/x/y/commit/{oid}", "commitOid": oid}


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def answer(self) -> None:
        path = urlsplit(self.path).path
        line = f"{self.command} {path}"
        body = self.body()
        self.hub.requests.append(line)
        status, answer = 401, {"error": "Invalid credentials"}
        if self.hub.fail_on is not None and self.hub.fail_on in line:
            status, answer = 403, {"error": "not allowed"}
        elif (
            path.startswith("/lfs/") or self.headers["authorization"] == f"Bearer {self.hub.token}"
        ):
            status, answer = self.hub.answer(self.command, path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """Serve a Hub on a free port."""
    hub = Hub(token)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
