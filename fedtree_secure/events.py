"""What happens in a run as lines of JSON: for operators and their dashboards.

An event holds names, stages, rounds, counts, bytes and seconds. It never holds a key, a value of an
update or of a row, or the text of an error.
"""

import json
import time
from pathlib import Path
from typing import Any


class Events:
    """Appends events to a file.

    Args:
        path: The file; None to keep none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __call__(self, event: str, **facts: Any) -> None:
        """Write one event, with its time in seconds since 1970."""
        if self._path is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
