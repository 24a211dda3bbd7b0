"""Each stage uses the checkpoints, devices and dtypes of its settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers import Seen, write_stage_config
from trainings import PackedCorpus

import higgs_pipe.train
from higgs_pipe import (
    check_models,
    estimate,
    evaluate,
    measure,
    merge,
    pack,
    pin_model,
    prove_form,
    tokenize_audio,
    verify,
)
from higgs_pipe.data.specs import packed_spec
from higgs_pipe.data.tables import TableFile, write_table
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import pretrained

NAME, REVISION = "acme/model", "v2"
NOWHERE = Path("nowhere")


def check(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    check_models.run(config, folder / "checked.txt")


def pin_base(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    pin_model.run(config, "base_model", folder / "pinned.json")


def pin_codec(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    pin_model.run(config, "codec", folder / "pinned.json")


def estimate_cost(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    validation = corpus.directory / "data/validation.json"
    estimate.run(config, validation, corpus.clips, folder / "estimate.json")


def tokenize(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    clips = corpus.directory / "data/shards/shard-00000.parquet"
    tokenize_audio.run(config, clips, folder / "codes.parquet")


def pack_rows(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    rows, held_out = folder / "train.parquet", folder / "eval.parquet"
    pack.run(config, corpus.clips, corpus.codes_dir, 2, rows, held_out, folder / "packing.json")


def rows_of_the_hub(rows: Path, folder: Path) -> Path:
    """Packed rows, as if their base were on the Hub."""
    stamp = TableFile(rows, "pack_rows").stamp()
    stamp["pinned"]["base_model"]["name"] = NAME
    write_table(folder / rows.name, packed_spec(8), pq.read_table(rows).to_pylist(), stamp)
    return folder / rows.name


def train(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    rows, held_out = (
        rows_of_the_hub(path, folder) for path in (corpus.train_rows, corpus.eval_rows)
    )
    higgs_pipe.train.run(config, rows, held_out, folder / "out")


def evaluate_adapter(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    rows = rows_of_the_hub(corpus.eval_rows, folder)
    evaluate.run(config, corpus.clips, rows, NOWHERE, folder / "eval", folder / "samples")


def merge_adapter(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    rows = rows_of_the_hub(corpus.eval_rows, folder)
    merge.run(config, "merged", "ada", NOWHERE, NOWHERE, rows, folder / "merged")


@pytest.mark.parametrize(
    ("run", "setting"),
    [
        *((run, setting) for run in (check, estimate_cost) for setting in ("base_model", "codec")),
        *((run, "base_model") for run in (pin_base, pack_rows)),
        *((run, "base_model") for run in (train, evaluate_adapter, merge_adapter)),
        *((run, "codec") for run in (pin_codec, tokenize)),
    ],
)
def test_the_configured_revision_is_requested_from_the_hub(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Path, PackedCorpus, Path], None],
    setting: str,
) -> None:
    def asked(name: str, revision: str | None = None, **_: Any) -> str:
        raise Seen(name, revision)

    monkeypatch.setattr(pretrained, "snapshot_download", asked)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: True)
    here = {"base_model": str(corpus.base), "codec": str(corpus.base / "audio_tokenizer")}
    named = {setting: NAME, f"{setting}_revision": REVISION}
    if run in (check, estimate_cost):  # which also read the other one
        named = here | named
    sections: Any = {"train": {"device": "cpu", "tracker": "none"}} if run is train else {}
    config = write_stage_config(tmp_path / "stage.json", **named, **sections)
    with pytest.raises(Seen) as seen:
        run(config, corpus, tmp_path)
    assert seen.value.args == (NAME, REVISION)


ON_CUDA = {"device": "cuda"}
SECTIONS: dict[str, dict[str, Any]] = {
    "validate": {"speech_models": {**ON_CUDA, "asr": "some/recogniser"}},
    "tokenize": ON_CUDA,
    "train": ON_CUDA,
    "eval": ON_CUDA,
}


def listen(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    recordings = corpus.directory / "data/recordings/shard-00000.parquet"
    measure.run(config, recordings, folder / "measured.parquet")


def verify_package(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    verify.run(config, NOWHERE, corpus.eval_rows, NOWHERE, folder / "proof.json")


def prove(config: Path, corpus: PackedCorpus, folder: Path) -> None:
    prove_form.run(config, "merged", NOWHERE, NOWHERE, corpus.eval_rows, folder / "proof.json")


@pytest.mark.parametrize(
    ("run", "section"),
    [
        (listen, "validate"),
        (tokenize, "tokenize"),
        (train, "train"),
        *((run, "eval") for run in (evaluate_adapter, verify_package, prove)),
    ],
)
def test_a_configured_but_missing_gpu_is_an_error(
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Path, PackedCorpus, Path], None],
    section: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    models = {"codec": "codec"} if section == "tokenize" else {"base_model": NAME}
    models = {} if section == "validate" else models
    config = write_stage_config(tmp_path / "stage.json", **models, **{section: SECTIONS[section]})
    with pytest.raises(UserError, match="device is 'cuda'"):
        run(config, corpus, tmp_path)


def test_the_codec_is_loaded_in_the_configured_dtype(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_codec(*arguments: Any) -> Any:
        raise Seen(arguments[-1])

    monkeypatch.setattr(tokenize_audio, "load_codec", load_codec)
    codec, settings = str(corpus.base / "audio_tokenizer"), {"device": "cpu", "dtype": "bfloat16"}
    config = write_stage_config(tmp_path / "stage.json", codec=codec, tokenize=settings)
    with pytest.raises(Seen, match="bfloat16"):
        tokenize(config, corpus, tmp_path)


def test_a_package_is_verified_in_the_eval_dtype(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_base(*arguments: Any) -> Any:
        raise Seen(arguments[1])

    monkeypatch.setattr(verify, "load_base", load_base)
    settings = {"device": "cpu", "dtype": "float64"}
    config = write_stage_config(tmp_path / "eval.json", base_model=str(corpus.base), eval=settings)
    with pytest.raises(Seen) as seen:
        verify_package(config, corpus, tmp_path)
    assert seen.value.args == (torch.float64,)
