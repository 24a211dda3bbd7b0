"""Rules of the prompts of Higgs Audio v2."""

import re

from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.higgs.v2.marks import NAME
from higgs_pipe.higgs.v3.tags import NAME as V3
from higgs_pipe.higgs.v3.tags import TAGS as V3_TAGS

RULES = PromptRules(model=NAME, foreign={V3: re.compile("|".join(map(re.escape, sorted(V3_TAGS))))})
