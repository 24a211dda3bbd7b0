"""A package reveals no folder, manifest or address of the machine that built it."""

from pathlib import Path

import pytest

from higgs_pipe.publishing.naming import public_name, public_settings

OF_THIS_MACHINE = (
    "base_model",
    "codec",
    "asr",
    "quality",
    "speaker",
    "dnsmos",
    "accelerate_config",
    "init_adapter",
)


@pytest.mark.parametrize("key", OF_THIS_MACHINE)
def test_only_the_last_part_of_a_folder_path_is_published(key: str) -> None:
    settings = {"section": {"deeper": {key: "/home/ada/models/voice"}}}
    assert public_settings(settings) == {"section": {"deeper": {key: "voice"}}}


@pytest.mark.parametrize("key", ["manifest", "other_manifest", "main_process_ip"])
def test_locations_of_recordings_and_machines_are_not_published(key: str) -> None:
    assert public_settings({"section": {key: "10.0.0.7", "seed": 0}}) == {"section": {"seed": 0}}


def test_a_hub_id_keeps_its_owner_and_an_existing_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_name("ada/voice") == "ada/voice"
    (tmp_path / "ada/voice").mkdir(parents=True)
    assert public_name("ada/voice") == "voice"
    assert public_name("ada/voice/.") == "voice"
    assert public_name("models/ada/voice") == "voice"  # no longer there, and no Hub id
    monkeypatch.chdir("ada/voice")
    assert public_name(".") == "voice"
