"""Parts specific to Higgs models: those that both families share, and a folder for each family.

``family`` is the boundary: it names what differs, field by field, and takes it from ``v2`` and
``v3``. Everything else here serves both: ``codec``, ``codes`` (the delay), ``prompts`` and
``packer`` (from conversations to packed rows), ``batch``, ``packed_body``, ``attention``,
``model`` and ``loss`` (one forward pass and its losses), ``lora``, ``memory``, ``generation``.
"""
