"""Parts that are particular to Higgs Audio v2.

For another model of the family, these change: ``chat_template`` and ``prompts`` (prompt and text
labels), ``text_cleaning``, ``codes`` (delay pattern and audio labels), ``base_config`` (what is
read of the checkpoint's config), ``model`` and ``attention`` (the forward pass), ``lora`` (layers
and parts to train), ``sampler`` and ``generation`` (how speech ends), ``miniature``. ``codec``,
``loss``, ``batch`` and ``packer`` stay while the codec and its codes do.
"""
