"""A plugin of pytest for `mutants.py`: the tests must have imported the copy and nothing else.

The suite's conftest files change the path, and the package may be installed as well; a test of the
installed one would notice no mutant, or one for a wrong reason.
"""

import os
import sys
from pathlib import Path

ELSEWHERE = 77


def pytest_sessionfinish(session):
    copy = Path(os.environ["FEDTREE_COPY"])
    loaded = [m for name, m in sys.modules.items() if name.partition(".")[0] == copy.name]
    foreign = [m.__file__ for m in loaded if copy not in Path(m.__file__ or "").parents]
    if not loaded or foreign:
        print(f"not of {copy}: {foreign or 'nothing was imported'}", file=sys.stderr)
        session.exitstatus = ELSEWHERE
