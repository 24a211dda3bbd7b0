"""The JSON schema of ``config.yaml``, generated from the settings."""

from typing import Any

from higgs_pipe.config.rules import Section
from higgs_pipe.config.settings import EXPERIMENT_NAME, Config, ExperimentConfig
from higgs_pipe.config.stages import STAGES


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of ``config.yaml``.

    Its ``x-stages`` lists the keys that each stage reads: ``codec``, or ``data.num_shards`` where
    a stage reads only a part of a section. The workflow uses it to give each stage its part
    without importing this module.
    """
    schema = Config.model_json_schema(by_alias=True)
    # An experiment may name any part of `train` and its base, and nothing else.
    experiment = ExperimentConfig.model_json_schema(by_alias=True)
    del experiment["allOf"]  # its combinations with `train` are checked when both are complete
    schema["$defs"] |= {**experiment.pop("$defs"), "ExperimentConfig": experiment}
    experiments = schema["properties"]["experiments"]
    experiments["additionalProperties"] = {"$ref": "#/$defs/ExperimentConfig"}
    experiments["propertyNames"] = {"pattern": EXPERIMENT_NAME}
    schema["x-stages"] = {name: _keys_read(stage, Config) for name, stage in STAGES.items()}
    return schema


def _keys_read(part: type[Section], whole: type[Section]) -> list[str]:
    """Return the keys of ``whole`` that ``part`` has, dotted for parts of a section."""
    keys = []
    for name, field in part.model_fields.items():
        key = field.alias or name
        own: Any = field.annotation
        full: Any = whole.model_fields[name].annotation
        if own is not full and isinstance(own, type) and issubclass(own, Section):
            keys += [f"{key}.{inner}" for inner in _keys_read(own, full)]
        else:
            keys.append(key)
    return keys


def schema_text() -> str:
    """Return the text of ``workflow/schemas/config.schema.yaml``."""
    import yaml

    command = "python -m higgs_pipe.config.schema > workflow/schemas/config.schema.yaml"
    return f"# Generated: {command}\n" + yaml.safe_dump(json_schema(), sort_keys=False, width=100)


if __name__ == "__main__":
    print(schema_text(), end="")
