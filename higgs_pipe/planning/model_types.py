"""The ``model_type`` of the base models, as their ``config.json`` has it."""

V2 = "higgs_audio_v2"
V3 = "higgs_multimodal_qwen3"
