"""Parts that are particular to Higgs TTS 3 (Higgs v3), as :mod:`higgs_pipe.higgs.family` names it."""
