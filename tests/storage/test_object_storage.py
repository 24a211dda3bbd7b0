"""The workflow with recordings and results on S3, here a server on this machine."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, environment_with, rows_of_tones, wait_until
from safetensors.numpy import load
from workflow.forked_stages import forking_python
from workflow.stub_checkout import make_stub_checkout, write_config

pytestmark = pytest.mark.slow

PROGRAM = "import sys, snakemake.cli; sys.executable = sys.argv.pop(1); snakemake.cli.main()"
KEY_ID, SECRET = "PLANTEDKEYID", "plantedSecretOfNobody"


def on_s3(folder: str) -> list[str]:
    """The options by which results go to a folder of the bucket."""
    prefix = f"s3://voices/{folder}"
    return ["--default-storage-provider", "s3", "--default-storage-prefix", prefix]


@dataclass(frozen=True)
class Server:
    """A server of S3 with one bucket, and the Snakemake that has the plugin for it."""

    url: str
    log: Path
    python: Path

    def put(self, key: str, content: bytes) -> None:
        self._ask(key, method="PUT", data=content)

    def get(self, key: str) -> bytes:
        return self._ask(key)

    def _ask(self, key: str, **request: Any) -> bytes:
        """The answer of the server, which takes any signature."""
        headers = {"Content-Type": "audio/wav", "Authorization": f"AWS {KEY_ID}:signature"}
        asked = urllib.request.Request(f"{self.url}/{key}", headers=headers, **request)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def objects(self) -> list[str]:
        return re.findall("<Key>(.*?)</Key>", self.get("voices").decode())

    def requests(self) -> list[str]:
        """The requests so far: ``GET /voices/run/a.wav``."""
        plain = re.sub("\x1b\\[[0-9;]*m", "", self.log.read_text())
        return re.findall('"([A-Z]+ \\S+) HTTP', plain)

    def snakemake(self, folder: Path, *words: str, python: Path | None = None) -> str:
        """Run Snakemake with credentials in its environment; return what it shows.

        Jobs find its own Python first, or else the one given.
        """
        folder.mkdir(exist_ok=True)
        environment = environment_with(
            SNAKEMAKE_STORAGE_S3_ENDPOINT_URL=self.url,
            SNAKEMAKE_STORAGE_S3_ACCESS_KEY=KEY_ID,
            SNAKEMAKE_STORAGE_S3_SECRET_KEY=SECRET,
            AWS_SESSION_TOKEN=SECRET,
        )
        finished = subprocess.run(
            [self.python, "-c", PROGRAM, str(python or self.python), "--cores", "2", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An environment with Snakemake and the plugin; jobs find the stages' packages in it, too."""
    folder = tmp_path_factory.mktemp("s3")
    uv = str(Path(sys.executable).with_name("uv"))
    python = folder / "venv/bin/python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder / "venv"], check=True)
    locked = ["--require-hashes", "-r", str(Path(__file__).with_name("requirements.txt"))]
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *locked], check=True)
    [own] = (folder / "venv/lib").glob("python*/site-packages")
    [ours] = [path for path in sys.path if path.endswith("/site-packages")]
    (own / "packages_of_the_stages.pth").write_text(ours)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    log = folder / "requests.log"
    with log.open("w") as stream:
        serving = subprocess.Popen(
            [python.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
            stdout=stream,
            stderr=stream,
        )
    found = Server(f"http://127.0.0.1:{port}", log, python)
    wait_until(lambda: "Running on" in log.read_text())
    found.put("voices", b"")
    yield found
    serving.terminate()
    serving.wait()


def test_recordings_on_s3_become_an_adapter_on_s3(
    server: Server, tiny_base: Path, tmp_path: Path
) -> None:
    rows = rows_of_tones(tmp_path / "upload", 8)
    for row in rows:
        row["split"] = "eval" if row["audio"] == "3.wav" else "train"
        wav = (tmp_path / "upload" / row["audio"]).read_bytes()
        server.put(f"voices/run/corpus/{row['audio']}", wav)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    server.put("voices/run/corpus/manifest.jsonl", lines.encode())
    settings = {
        "manifest": "s3://voices/run/corpus/manifest.jsonl",
        "base_model": str(tiny_base),
        "codec": str(tiny_base / "audio_tokenizer"),
        "data": {"num_shards": 1},
        "pack": {"max_tokens": 512},
        "train": {"max_steps": 1, "device": "cpu", "sample_steps": None, "tracker": "none"},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    words = ["--snakefile", str(ROOT / "Snakefile"), *on_s3("run"), "train"]
    shown = server.snakemake(folder, *words, python=forking_python())
    adapter = "run/results/experiments/default/train/adapter/adapter_model.safetensors"
    weights = load(server.get(f"voices/{adapter}"))
    assert any(array.any() for name, array in weights.items() if "lora_B" in name)
    assert not (folder / "results/experiments").exists()

    wavs = [request for request in server.requests() if request.endswith(".wav")]
    fetched = [request for request in wavs if request.startswith("GET ")]
    assert sorted(fetched) == [f"GET /voices/run/corpus/{i}.wav" for i in range(8)]
    assert [request for request in wavs if "?" in request] == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    texts = [shown.encode(), *(path.read_bytes() for path in files)]
    texts += [server.get(f"voices/{key}") for key in server.objects()]
    assert [text for text in texts if KEY_ID.encode() in text or SECRET.encode() in text] == []


def test_every_rule_keeps_its_results_on_s3_and_a_second_run_does_nothing(
    server: Server, tmp_path: Path
) -> None:
    """The stages are stubs: this is about the rules alone."""
    checkout = make_stub_checkout(tmp_path / "check out")
    for name in ("own", "other"):
        server.put(f"voices/stubs/{name}/m.jsonl", f"0 {name}\n1 {name}\n".encode())
    write_config(
        checkout,
        manifest="s3://voices/stubs/own/m.jsonl",
        eval={"other_manifest": "s3://voices/stubs/other/m.jsonl"},
    )
    words = ["--snakefile", str(checkout / "Snakefile"), *on_s3("stubs")]
    words += ["--configfile", str(checkout / "config.yaml"), "--config", "data={num_shards: 1}"]
    before = len(server.requests())
    shown = server.snakemake(tmp_path / "first", *words)
    assert "results  s3://voices/stubs/results" in shown
    assert server.get("voices/stubs/results/other/data/clips.parquet") == b"0 other\n1 other"
    assert server.get("voices/stubs/results/report/figures/total-loss.svg") == b""
    listings = [r for r in server.requests()[before:] if "prefix=stubs/own/&" in r]
    assert len(listings) < 40
    assert "Nothing to be done" in server.snakemake(tmp_path / "another machine", *words)
