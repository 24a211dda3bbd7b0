"""Stage 5b: refuse an adapter whose verdict does not meet ``eval.require``.

This is a separate stage so that the results of eval stay, for the report, and changing
``eval.require`` does not evaluate again.
"""

import logging
from pathlib import Path

from higgs_pipe.cli import main
from higgs_pipe.config.stages import AcceptStage, load_stage
from higgs_pipe.data.files import write_text
from higgs_pipe.listening.verdict import Verdict

logger = logging.getLogger("higgs_pipe")


def run(config: Path, verdict: Path, accepted: Path) -> None:
    """Accept an adapter for packaging, or refuse it.

    Args:
        config: ``results/config/accept.json``.
        verdict: ``verdict.json`` of the eval stage.
        accepted: File to write if the adapter is accepted, with the sentences of the verdict.

    Raises:
        UserError: The verdict does not meet the requirement; the message names the measures.
    """
    required = load_stage(AcceptStage, config).eval.require
    found = Verdict.read(verdict)
    if required is not None:
        found.require(required)
    write_text(accepted, "".join(f"{sentence}\n" for sentence in found.sentences))
    if required is not None:
        logger.info("eval.require is %s, the verdict %s: accepted", required, found.overall)


if __name__ == "__main__":
    main(run)
