"""Full checkpoints: complete, proved, and usable by Transformers alone from any path."""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from accelerate import Accelerator
from helpers import Seen, edit_result, files_of_at_most, has_line_with, tone, write_stage_config
from safetensors.torch import load_file, save_file
from trainings import PackedCorpus, train
from transformers import AutoTokenizer

import higgs_pipe
from higgs_pipe import evaluate, merge, prove_form
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import form_weights
from higgs_pipe.higgs.batch import PackedRows
from higgs_pipe.higgs.family import model_shapes
from higgs_pipe.higgs.form_weights import check_bits, check_weights, load_form
from higgs_pipe.higgs.greedy import speak_greedily
from higgs_pipe.higgs.merging import Merge, read_changes
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.speaker import Speaker
from higgs_pipe.higgs.v2.original_form import native_name
from higgs_pipe.prove_form import HeldOutRows, Observed
from higgs_pipe.training.form_results import FormProof, MergeRecord
from higgs_pipe.training.results import EvalMetrics
from higgs_pipe.training.run_info import git_commit

pytestmark = pytest.mark.usefixtures("processes_as_forks")


@pytest.fixture(scope="module")
def trained(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results after train and eval on a base in bfloat16, with a part that is trained in full."""
    results = tmp_path_factory.mktemp("results")
    base = shutil.copytree(corpus.base, results / "base")
    weights = load_file(base / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(rounded, base / "model.safetensors", metadata={"format": "pt"})
    settings, config = {"base_model": str(base)}, results / "config"
    write_stage_config(config / "eval.json", **settings, eval={"device": "cpu", "num_prompts": 0})
    write_stage_config(config / "pack.json", **settings, pack={"system_prompt": 'Speak "up".'})
    lora = {"target_modules": "attention", "train_in_full": ["audio_head"]}
    train(corpus, results / "train", base=base, learning_rate=1e-3, preflight=False, lora=lora)
    evaluate.run(
        config / "eval.json",
        corpus.clips,
        results / "train/packed/eval.parquet",
        results / "train/adapter",
        eval_dir=results / "eval",
        samples_dir=results / "samples",
    )
    return results


def run_merge(results: Path, form_dir: Path, **package: Any) -> Path:
    base = json.loads((results / "config/eval.json").read_text())["base_model"]
    config = write_stage_config(form_dir.parent / "merge.json", base_model=base, package=package)
    merge.run(
        config=config,
        form=form_dir.parent.name,
        name="default",
        adapter_dir=results / "train/adapter",
        config_dir=results / "config",
        eval_rows=results / "train/packed/eval.parquet",
        form_dir=form_dir,
    )
    return form_dir


@pytest.fixture(scope="module")
def merged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_merge(trained, tmp_path_factory.mktemp("a 'b") / "merged" / "default")


@pytest.fixture(scope="module")
def original(corpus: PackedCorpus, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_merge(trained, tmp_path_factory.mktemp("o") / "original" / "default")


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


COMMON = {
    "README.md",
    "SHA256SUMS",
    "config.json",
    "files.json",
    "generation_config.json",
    "merge.json",
    "model.safetensors",
    "proof.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_a_merged_checkpoint_is_complete(merged: Path) -> None:
    codec = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert names_below(merged) == COMMON | {
        "processor_config.json",
        "chat_template.jinja",
        *(f"audio_tokenizer/{name}" for name in codec),
    }
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=merged, check=True)
    assert sorted(path.name for path in merged.parent.iterdir()) == ["default", "merge.json"]


def test_the_proof_bounds_the_effect_of_rounding(
    merged: Path, original: Path, trained: Path
) -> None:
    evals = EvalMetrics.read(trained / "eval/metrics.json").adapter.eval_loss
    record = MergeRecord.read(merged / "merge.json")
    assert (record.num_changed, record.num_weights) == (9, 33)
    assert record.base == "base"
    assert 0 < record.relative_rounding_error < 2**-8
    for folder, num_tensors in ((merged, None), (original, 33)):
        proof = FormProof.read(folder / "proof.json")
        assert proof.num_tensors_of_equal_bits == num_tensors
        assert 0 < proof.logit_difference < proof.logit_difference_bound
        assert proof.logit_difference_bound == 2 * (2**-8 + 1e-5) * 4  # 2 layers
        assert proof.logit_change > 10 * proof.logit_difference
        assert proof.eval_loss == pytest.approx(proof.eval_loss_of_adapter, rel=1e-3)
        assert proof.eval_loss != proof.eval_loss_of_adapter == pytest.approx(evals, rel=0.01)
        assert MergeRecord.read(folder / "merge.json").form == proof.form == folder.parent.name
        assert proof.largest_share_rounded_otherwise < 1e-3
        assert all(second.num_frames <= 33 for second in proof.first_seconds)


def test_the_checkpoint_card_quotes_the_numbers_of_its_files(merged: Path, trained: Path) -> None:
    record = MergeRecord.read(merged / "merge.json")
    proof = FormProof.read(merged / "proof.json")
    card = (merged / "README.md").read_text()
    adapter = (trained / "train/adapter/adapter_model.safetensors").read_bytes()
    assert record.adapter_sha256 == hashlib.sha256(adapter).hexdigest()
    difference, bound, change = (
        f"{value:.2g}"
        for value in (proof.logit_difference, proof.logit_difference_bound, proof.logit_change)
    )
    of_weights, of_change = record.relative_rounding_error, record.rounding_error_of_change
    assert of_weights < of_change
    for words in (
        "# default: Higgs Audio v2 with a LoRA adapter merged in",
        "9 of 33 weights of `base` were changed by the\nadapter `default`, computed in float32 and",
        f"| {difference}; rounding explains up to {bound}, the adapter itself changes {change} |",
        f"| {proof.eval_loss:.5f}; the adapter's is {proof.eval_loss_of_adapter:.5f} |",
        f"| {of_weights:.2g} of the weights, {of_change:.2g} of the adapter's changes |",
    ):
        assert words in card


def test_a_checkpoint_records_what_was_merged(
    trained: Path,
    corpus: PackedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A codec of 2 GB would be copied at its commit."""
    sizes = {Pretrained("codec", str(corpus.base / "audio_tokenizer"), "2" * 40): 2 * 10**9}
    monkeypatch.setattr(merge, "num_codec_bytes", sizes.__getitem__)
    monkeypatch.setattr(merge, "check_free_space", lambda *_: None)
    caplog.set_level(logging.INFO, "higgs_pipe")
    pinned = PinnedModel.of(Pretrained("base_model", str(trained / "base")))
    codec = read_codec_info(corpus.eval_rows)
    record = merge.write_form(
        "merged",
        tmp_path,
        pinned.model_copy(update={"revision": "1" * 40}),
        replace(codec, revision="2" * 40),
        trained / "train/adapter",
        torch.bfloat16,
    )
    rounding = {name for name in vars(record) if "rounding" in name}
    adapter = (trained / "train/adapter/adapter_model.safetensors").read_bytes()
    assert {name: value for name, value in vars(record).items() if name not in rounding} == {
        **{"form": "merged", "dtype": "bfloat16", "base": "base", "base_revision": "1" * 40},
        **{"base_fingerprint": pinned.fingerprint, "codec": "audio_tokenizer"},
        **{"codec_revision": "2" * 40, "codec_fingerprint": codec.fingerprint},
        **{"adapter_sha256": hashlib.sha256(adapter).hexdigest()},
        **{"num_weights": 33, "num_changed": 9, "higgs_pipe": higgs_pipe.__version__},
        "git_commit": git_commit(),
    }
    with Shards(trained / "base") as weights:
        exact = Merge(weights, read_changes(trained / "train/adapter"), torch.float32)
        errors = [
            float((tensor.float() - exact[name]).abs().max())
            for name, tensor in load_file(tmp_path / "model.safetensors").items()
        ]
    assert record.max_rounding_error == max(errors)
    writing, changed = (
        message for message in caplog.messages if "weights" in message or "GB" in message
    )
    assert writing == "writing 2.0 GB"
    of_weights, of_change = record.relative_rounding_error, record.rounding_error_of_change
    assert changed == (
        f"9 of 33 weights changed; rounding to torch.bfloat16: {of_weights:.2g} of the weights, "
        f"{of_change:.2g} of the changes (RMS)"
    )


def test_a_float32_merge_reproduces_all_greedy_codes_of_the_adapter(
    trained: Path, tmp_path: Path
) -> None:
    folder = run_merge(trained, tmp_path / "merged/default", dtype="float32")
    assert MergeRecord.read(folder / "merge.json").dtype == "float32"
    proof = FormProof.read(folder / "proof.json")
    assert len(proof.first_seconds) == 3
    assert all(s.num_equal_frames == s.num_frames > 0 for s in proof.first_seconds)
    assert proof.logit_difference < 1e-5
    assert proof.eval_loss == pytest.approx(proof.eval_loss_of_adapter, rel=1e-6)


def test_an_original_checkpoint_has_the_merged_weights_under_its_own_names(
    merged: Path, original: Path
) -> None:
    assert names_below(original) == COMMON
    expected = load_file(merged / "model.safetensors")
    found = load_file(original / "model.safetensors")
    assert {native_name(name) for name in found} == set(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[native_name(name)])
    config = json.loads((original / "config.json").read_text())
    assert config["audio_codebook_size"] == 1024
    assert config["text_config"]["rope_scaling"]["rope_type"] == "llama3"
    assert config["audio_dual_ffn_layers"] == [0, 1]


def run_outside(script: Path, *arguments: object) -> None:
    """Run a program that sees neither this project nor a network."""
    blocked = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    finished = subprocess.run(
        [sys.executable, "-I", script, *map(str, arguments)],
        env=blocked | {"HF_HUB_OFFLINE": "1"},
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


SPEAK_ORIGINAL = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

folder = sys.argv[1]
original = json.load(open(f"{folder}/config.json"))
text = original["text_config"]
same = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim hidden_act rms_norm_eps attention_bias mlp_bias").split()
config = HiggsAudioV2Config(
    **{key: text[key] for key in same},
    rope_parameters=text["rope_scaling"] | {"rope_theta": text["rope_theta"]},
    num_codebooks=original["audio_num_codebooks"],
    codebook_size=original["audio_codebook_size"] + 2,
    audio_stream_bos_id=original["audio_stream_bos_id"],
    audio_stream_eos_id=original["audio_stream_eos_id"],
    audio_token_id=original["audio_out_token_idx"],
    audio_bos_token_id=original["audio_out_bos_token_id"],
    audio_delay_token_id=int(sys.argv[3]),
    pad_token_id=original["pad_token_id"],
)
state = {}
for name, tensor in load_file(f"{folder}/model.safetensors").items():
    if name.startswith("audio_decoder_proj."):
        name = name.removeprefix("audio_decoder_proj.")
    elif name.startswith("audio_codebook_embeddings."):
        name = "model.embed_audio_tokens.embed_audio_tokens.weight"
    else:
        name = "model." + name
    state[name] = tensor
model, loading = HiggsAudioV2ForConditionalGeneration.from_pretrained(
    None, config=config, state_dict=state, use_text_head=True, output_loading_info=True
)
assert not loading["missing_keys"] and not loading["unexpected_keys"]
inputs = AutoTokenizer.from_pretrained(folder)(sys.argv[4], return_tensors="pt")
codes = model.generate(
    **inputs, max_new_tokens=20, do_sample=False, ras_win_len=None,
    eos_token_id=text["eos_token_id"],
)
torch.save(codes, sys.argv[2])
assert not any(name.startswith("higgs_pipe") for name in sys.modules)
"""


def test_the_original_checkpoint_speaks_without_this_project(
    original: Path, merged: Path, tmp_path: Path
) -> None:
    (tmp_path / "speak.py").write_text(SPEAK_ORIGINAL)
    native = load_form("merged", merged, Pretrained("checkpoint", str(merged)))
    text = "<|begin_of_text|>One.<|audio_out_bos|>"
    delay_id = native.config.audio_delay_token_id
    run_outside(tmp_path / "speak.py", original, tmp_path / "codes.pt", delay_id, text)
    inputs = AutoTokenizer.from_pretrained(merged)(text, return_tensors="pt")
    expected = native.generate(
        **inputs,
        max_new_tokens=20,
        do_sample=False,
        ras_win_len=None,
        eos_token_id=inputs["input_ids"][0, 0],
    )
    assert torch.equal(torch.load(tmp_path / "codes.pt"), expected)


def code_blocks(page: Path) -> list[str]:
    return [part.split("```")[0] for part in page.read_text().split("```python\n")[1:]]


def read_only(folder: Path) -> Path:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return folder


@pytest.mark.parametrize("is_moved", [False, True])
def test_the_recipe_of_a_merged_checkpoint_runs_from_any_folder(
    merged: Path, tmp_path: Path, is_moved: bool
) -> None:
    """From another folder; also after a move, read-only and without the codec of training."""
    folder = read_only(shutil.copytree(merged, tmp_path / "moved")) if is_moved else merged
    [recipe] = code_blocks(merged / "README.md")
    assert r'"content": "Speak \"up\"."' in recipe
    tone(tmp_path / "work/reference.wav", seconds=1.7)
    script = tmp_path / "work/speak.py"
    lines = recipe.replace('"default"', repr(str(folder)))
    script.write_text(
        f"import torch\ntorch.manual_seed(0)\n{lines}\n"
        "import sys\nassert not any(name.startswith('higgs_pipe') for name in sys.modules)\n"
        "assert model.text_lm_head.weight.dtype == torch.bfloat16\n"
    )
    run_outside(script)
    samples, rate_hz = sf.read(script.with_name("speech.wav"))
    assert rate_hz == 24_000
    assert len(samples) >= 960
    assert abs(samples).max() > 0


def test_a_merged_checkpoint_reveals_no_local_path(merged: Path) -> None:
    texts = [path for path in merged.rglob("*") if path.suffix in (".json", ".jinja", ".md")]
    assert len(texts) > 10
    assert [path for path in texts if str(merged.parents[2]) in path.read_text()] == []


def test_speak_loads_a_moved_checkpoint_with_its_bundled_codec(
    merged: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(merged, tmp_path / "moved")
    shutil.copytree(merged / "audio_tokenizer", tmp_path / "elsewhere")
    speaker = Speaker.load(base=str(moved), device="cpu")
    assert Path(speaker.codec_info.codec) == moved / "audio_tokenizer"


def test_a_base_that_changed_since_training_is_not_merged(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "write_form", None)  # nothing is written first
    results = shutil.copytree(trained, tmp_path / "results")
    path = results / "train/adapter/base_model.json"
    edit_result(path, fingerprint="0" * 64)
    with pytest.raises(UserError, match="000000000000"):
        run_merge(results, tmp_path / "merged/default")
    assert not (tmp_path / "merged/default").exists()


def prove(results: Path, form_dir: Path) -> None:
    prove_form.run(
        config=results / "config/eval.json",
        form="merged",
        form_dir=form_dir,
        adapter_dir=results / "train/adapter",
        eval_rows=results / "train/packed/eval.parquet",
        result=form_dir / "proof.json",
    )


@pytest.mark.parametrize(
    ("kept", "pattern", "wrong"),
    [
        (0.0, "", 9),  # the adapter was forgotten
        (0.9, "proj", 8),  # a wrong scale
        (0.0, "layers.1.self_attn.v_proj", 1),  # a layer was missed
        (0.0, "audio_lm_head", 1),  # a part that was trained in full
    ],
)
def test_a_merge_with_a_mistake_fails_its_proof(
    trained: Path, merged: Path, tmp_path: Path, kept: float, pattern: str, wrong: int
) -> None:
    folder = shutil.copytree(merged, tmp_path / "merged")
    base = load_file(trained / "base/model.safetensors")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if pattern in name:
            change = weights[name].float() - base[name].float()
            weights[name] = (base[name].float() + kept * change).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"(?s): {wrong} tensors .*{pattern}.* of the weights"):
        prove(trained, folder)


def test_a_loss_changed_too_much_by_rounding_fails_the_proof(
    trained: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove_form, "LOSS_BOUND", 1e-7)
    with pytest.raises(UserError, match=r"the held-out loss is .* package.dtype: float32"):
        prove(trained, shutil.copytree(merged, tmp_path / "merged"))


def test_logits_not_explained_by_rounding_fail_the_proof(
    trained: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove_form, "ROUNDOFF", dict.fromkeys(prove_form.ROUNDOFF, 0.0))
    with pytest.raises(UserError, match=r"logits differ .* rounding explains 0.00%"):
        prove(trained, shutil.copytree(merged, tmp_path / "merged"))


def test_greedy_codes_that_differ_without_a_tie_fail_the_proof(
    trained: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint, which speaks second, gets codes that differ from its own."""
    heard: list[str] = []

    def speak(model: Any, prompt: Any, num_frames: int) -> Any:
        assert num_frames == 25  # a second
        heard.append(prompt.sample_id)
        codes = speak_greedily(model, prompt, num_frames)
        return codes if heard.count(prompt.sample_id) == 1 else (codes + 1) % 1024

    monkeypatch.setattr(prove_form, "speak_greedily", speak)
    with pytest.raises(UserError, match="greedy codes differ") as caught:
        prove(trained, shutil.copytree(merged, tmp_path / "merged"))
    assert has_line_with(str(caught.value), heard[0])


def test_an_original_checkpoint_with_other_tensor_names_is_refused(
    original: Path, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(original, tmp_path / "original")
    weights = load_file(folder / "model.safetensors")
    weights["more.weight"] = weights.pop("norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_form("original", folder, Pretrained("base_model", str(trained / "base")))
    assert has_line_with(str(caught.value), "norm.weight")
    assert has_line_with(str(caught.value), "more.weight")


def test_a_tensor_that_differs_from_the_merged_weight_is_named(
    original: Path, trained: Path, tmp_path: Path
) -> None:
    base, adapter = Pretrained("base_model", str(trained / "base")), trained / "train/adapter"
    assert check_bits(original, "original", base, adapter) == 33
    folder = shutil.copytree(original, tmp_path / "original")
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"][0] *= 1 + 2**-7
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 tensors are not") as caught:
        check_bits(folder, "original", base, adapter)
    assert has_line_with(str(caught.value), "norm.weight")


def test_zero_and_negative_zero_differ_in_bits() -> None:
    zeros = torch.tensor([0.0, -0.0])
    assert form_weights._same_bits(zeros, zeros.clone())
    assert not form_weights._same_bits(zeros, -zeros)


def test_missing_unexpected_and_wrong_weights_are_named(
    merged: Path, trained: Path, tmp_path: Path
) -> None:
    """Weights that no adapter can change, such as a codec's, are compared with the base's."""
    base = Pretrained("base_model", str(trained / "base"))
    folder = shutil.copytree(merged, tmp_path / "merged")
    weights = load_file(folder / "model.safetensors")
    changed, kept = "audio_lm_head.weight", "model.norm.weight"
    others = {name: tensor for name, tensor in weights.items() if name != kept}
    assert check_weights(folder, others, "merged", base) == 0
    largest = max(weights, key=lambda name: weights[name].numel())
    moved = weights[largest].clone()
    moved.flatten()[0] += 1
    share = check_weights(folder, weights | {largest: moved}, "merged", base)
    assert share == pytest.approx(1 / moved.numel())
    moved.flatten()[: moved.numel() // 1000 + 1] += 1  # more than 1 in 1,000
    with pytest.raises(UserError, match=rf"1 tensors are not .*\n *{re.escape(largest)}: 0.10%"):
        check_weights(folder, weights | {largest: moved}, "merged", base)
    weights["more.weight"] = weights.pop(kept)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    del others[changed]
    with pytest.raises(UserError, match="3 tensors are not") as caught:
        check_weights(folder, others, "merged", base)
    lines = ((kept, "missing"), ("more.weight", "unknown"), (changed, "100.00%"))
    for line in lines:
        assert has_line_with(str(caught.value), *line)


def test_base_and_adapter_are_checked_against_the_model_shapes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: Merge, shapes: Any) -> None:
        raise Seen(shapes)

    monkeypatch.setattr(Merge, "check", look)
    with pytest.raises(Seen) as seen:
        run_merge(trained, tmp_path / "merged/default")
    assert seen.value.args == (model_shapes(Pretrained("base_model", str(trained / "base"))),)


def test_the_proof_records_the_observations_of_both_models(
    trained: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's logits are [0, 4], the checkpoint's 0.03 off, the base's 3 off."""
    codes = np.zeros((33, 8), np.int16)
    adapters = Observed([torch.tensor([0.0, 4.0])], [codes], 5.0)
    found = Observed([torch.tensor([0.03, 4.0])], [codes], 5.001)
    observed = [found, adapters]
    prompts: list[Any] = []

    def observe(rows: HeldOutRows, _: Any) -> Observed:
        prompts.append(rows.prompts)
        return observed.pop()

    monkeypatch.setattr(prove_form, "NUM_PROMPTS", 1)
    monkeypatch.setattr(HeldOutRows, "observe", observe)
    monkeypatch.setattr(HeldOutRows, "logits", lambda *_: [torch.tensor([3.0, 4.0])])
    folder = shutil.copytree(merged, tmp_path / "merged")
    prove(trained, folder)
    proof = FormProof.read(folder / "proof.json")
    second = proof.first_seconds[0].model_dump()
    assert second.pop("largest_margin_of_a_tie") == pytest.approx(0.06)
    sample_id = prompts[0][0].sample_id
    assert second == {
        **{"sample_id": sample_id, "num_frames": 33, "num_equal_frames": 33, "margin": None}
    }
    assert proof.max_logit_difference == pytest.approx(0.03)
    assert proof.logit_difference == pytest.approx(0.03 / 4)
    assert proof.logit_change == pytest.approx(3 / 4)
    assert proof.logit_difference_bound == 2 * (2**-8 + 1e-5) * 4
    assert (proof.eval_loss, proof.eval_loss_of_adapter) == (5.001, 5.0)


def test_the_proof_compares_with_the_base_in_its_own_dtype(
    trained: Path, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base in float32 is not rounded to the dtype of the checkpoint."""

    def look(base: Pretrained, dtype: torch.dtype) -> None:
        raise Seen(base.name, dtype)

    dtypes = {merged: torch.bfloat16, trained / "base": torch.float32}
    monkeypatch.setattr(prove_form, "stored_dtype", dtypes.__getitem__)
    monkeypatch.setattr(prove_form, "load_base", look)
    with pytest.raises(Seen) as seen:
        prove(trained, merged)
    assert seen.value.args == (str(trained / "base"), torch.float32)


def test_the_proof_covers_held_out_rows_and_both_heads(
    trained: Path, corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*arguments: Any) -> None:
        raise Seen(arguments[1], arguments[3])

    model = DualLossModel(load_base(Pretrained("base", str(trained / "base")), torch.float32))
    table = PackedRows(corpus.eval_rows)
    rows = HeldOutRows(table, [], Accelerator(cpu=True), rows_per_batch=3)
    text, audio = rows.logits(model)
    labels = np.array(table[0].labels)
    assert (len(text), audio.shape[1:]) == ((labels != -100).sum(), (8, 1026))
    monkeypatch.setattr(prove_form, "held_out_sums", look)
    with pytest.raises(Seen) as seen:
        rows.observe(model)
    assert seen.value.args == (table, 3)


def test_a_standalone_proof_needs_the_base_of_training(
    trained: Path, merged: Path, tmp_path: Path
) -> None:
    results = shutil.copytree(trained, tmp_path / "results")
    edit_result(results / "train/adapter/base_model.json", fingerprint="0" * 64)
    with pytest.raises(UserError, match="000000000000"):
        prove(results, merged)


def test_a_checkpoint_that_fails_its_proof_is_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_form = merge.write_form

    def write_the_base(form: Any, folder: Path, *rest: Any) -> MergeRecord:
        record = write_form(form, folder, *rest)
        shutil.copy(trained / "base/model.safetensors", folder)
        return record

    monkeypatch.setattr(merge, "write_form", write_the_base)
    with pytest.raises(UserError, match=r"(?s)merged checkpoint failed its proof.* 9 tensors"):
        run_merge(trained, tmp_path / "merged/default")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["merge.json"]


def test_a_full_disk_leaves_nothing_behind(trained: Path, tmp_path: Path) -> None:
    with files_of_at_most(200_000), pytest.raises(UserError, match="no room"):
        run_merge(trained, tmp_path / "merged/default")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["merge.json"]


@pytest.mark.parametrize(
    ("dtype", "bytes_per_value", "has_codec"),
    [("bfloat16", 2, True), ("float32", 4, True), ("bfloat16", 2, False)],
)
def test_the_space_check_covers_weights_and_codec(
    corpus: PackedCorpus,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    bytes_per_value: int,
    has_codec: bool,
) -> None:
    def look(_: Path, num_bytes: int, what: str) -> None:
        raise Seen(num_bytes)

    monkeypatch.setattr(merge, "check_free_space", look)
    form = "merged" if has_codec else "original"
    with pytest.raises(Seen) as seen:
        run_merge(trained, tmp_path / form / "default", dtype=dtype)
    weights = load_file(trained / "base/model.safetensors").values()
    codec = (corpus.base / "audio_tokenizer").iterdir()
    expected = bytes_per_value * sum(weight.numel() for weight in weights)
    expected += sum(path.stat().st_size for path in codec) if has_codec else 0
    assert seen.value.args == (expected,)
