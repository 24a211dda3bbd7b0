"""The ``model_type`` of checkpoints, from their ``config.json``."""

V2 = "higgs_audio_v2"
V3 = "higgs_multimodal_qwen3"
CODEC = "higgs_audio_v2_tokenizer"
# Of the codec's tensors in a bundle, by the model_type of the base that it belongs to.
BUNDLED_CODECS = {V3: "tied.embedding.modality_embeddings.0.model."}
