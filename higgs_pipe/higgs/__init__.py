"""Parts specific to Higgs models: those that both families share, and a folder for each family.

``family`` is the boundary: it names what differs, field by field, and takes it from ``v2`` and
``v3``. Everything else here serves both:

- Samples: ``rules`` (bounds of a family's prompts), ``prompts`` and ``renderers`` (conversations
  as tokens; ``rendering`` bounds an untrusted template), ``codes`` (the delay), ``packer`` (packed
  rows), ``text_tokens`` (the number of tokens).
- One forward pass: ``batch`` and ``padding``, ``packed_body``, ``attention``, ``model``,
  ``head_loss`` and ``loss``; ``frame_losses`` for evaluation.
- The adapter: ``lora``, ``fused_lora``, ``dropout``, ``quantization``, ``ancestor``,
  ``adapter_files``; merged into its base: ``merging``, ``forms``, ``form_weights``, ``float32``.
- Checkpoints: ``pretrained`` (pinning and loading), ``hub``, ``loading_errors``, ``shards``,
  ``tokenizer``, ``shape``, ``origin``, ``packed_for``; also ``codec_checkpoint``, ``codec``.
- Speech: ``generation``, ``sampler``, ``greedy``, ``speech_prompts``, ``speaker``.
- Costs: ``memory`` and ``parameters``, ``compilation`` and ``compilation_costs``, ``devices``.
- Miniatures for tests and the demo: ``miniature_codec``, ``miniature_parts``.
"""
