"""Parts specific to Higgs Audio v2, as :mod:`higgs_pipe.higgs.family` names it.

``chat_template`` and ``renderer`` (prompts and text labels), ``text_cleaning``, ``native`` and
``body`` (Transformers' model, and its forward pass on packed rows), ``generation``, ``lora`` (names
of layers and parts), ``original_form`` (Boson AI's own names of the weights), ``miniature``.
"""
