"""The Hub revisions of the config, as the stages that load base and codec get them."""

import json

import pytest
from helpers import SCHEMA

from higgs_pipe.config.settings import Config
from higgs_pipe.config.stages import STAGES, BaseModelStage, CodecStage, Pretrained
from higgs_pipe.planning import config_check

CONFIG = Config(
    manifest="m.jsonl",
    base_model="acme/higgs",
    base_model_revision="v2",
    codec="acme/codec",
    codec_revision="v1",
).model_dump(by_alias=True)
LOADING = [n for n, stage in STAGES.items() if issubclass(stage, BaseModelStage | CodecStage)]


@pytest.mark.parametrize("name", LOADING)
def test_every_stage_gets_the_configured_revisions_of_base_and_codec(name: str) -> None:
    text = config_check.stage_config_text(CONFIG, name, SCHEMA)
    stage = STAGES[name].model_validate(json.loads(text))
    if isinstance(stage, BaseModelStage):
        assert stage.pretrained_base == Pretrained("base_model", "acme/higgs", "v2")
    if isinstance(stage, CodecStage):
        assert stage.pretrained_codec == Pretrained("codec", "acme/codec", "v1")
