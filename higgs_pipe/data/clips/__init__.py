"""Judging of rows: each is accepted as a clip or rejected with a reason; clips are then split.

``judging`` rejects a row by its own faults (``row_faults``; ``higgs_pipe.measure`` finds those of a
recording), by ``filters``, and by what it shares with other rows (``keys``). ``reasons`` lists each
reason code with its remedy. Only a prompt that the chat template cannot render is rejected later,
by pack. ``wrong_texts`` stops a run whose texts are not transcripts; ``text_findings``,
``contradictions`` and ``overlap`` count for the ``summary`` what rejects no row.

Memory holds the measures in their columns (``measured``), one other column at a time, and objects
of a few rows: rows are read anew where they are needed, and sound ones wait on disk (``drafts``)
until all are known.
"""
