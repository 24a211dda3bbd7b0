"""Judging of rows: each is accepted as a clip or rejected with a reason; clips are then split.

A row is rejected in ``judging``: by its texts, by what measuring found (``higgs_pipe.measure``
gives a recording its reason), by ``filters``, by facts that contradict the file (``declared``), and
by what it shares with others. ``reasons`` lists every reason code with its remedy. Only a prompt
that the chat template cannot render is rejected later, by pack.
"""
