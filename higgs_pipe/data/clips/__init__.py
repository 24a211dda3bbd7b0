"""Judging of rows: each is accepted as a clip or rejected with a reason; clips are then split.

A row is rejected in ``judging``: by its texts, by what measuring found (``higgs_pipe.measure``
gives a recording its reason), by ``filters``, by facts that contradict the file (``declared``), and
by what it shares with others (``keys``). ``reasons`` lists every reason code with its remedy. Only
a prompt that the chat template cannot render is rejected later, by pack.

Memory holds the measures in their columns (``measured``), one other column at a time, and objects
of a few rows: rows are read anew where they are needed, and sound ones wait on disk (``drafts``)
until all are known.
"""
