"""Mutants of what is told while a run works: events, metrics, time left, advice."""

from mutant import Mutant

EVENTS, PAGE, ADVICE = "test_events.py", "test_prometheus.py", "test_advice.py"

WATCHING = (
    Mutant(
        "what is not documented is written as an event",
        "events.py",
        ' - {"run"}:\n',
        ' - {"run"} - set(facts):\n',
        "not_documented",
        EVENTS,
    ),
    Mutant(
        "advice that was measured at home is an event",
        "embedded/run.py",
        "        if advice.public:",
        "        if advice.key:",
        "advice_from_public_facts",
        EVENTS,
    ),
    Mutant(
        "events are written among the files that are signed",
        "embedded/options.py",
        "    if path.resolve().is_relative_to(out.resolve()):\n",
        "    if path.resolve() == out.resolve():\n",
        "cannot_be_written_is_refused",
        EVENTS,
    ),
    Mutant(
        "a lost line stops a run",
        "events.py",
        "            self._failed = True\n            return\n",
        "            raise\n",
        "lines_that_are_lost",
        EVENTS,
    ),
    Mutant(
        "the text of an error leaves with its round",
        "server/telemetry.py",
        'record.error.partition(":")[0]',
        "record.error",
        "class_is_told_alone",
        "test_telemetry.py",
    ),
    Mutant(
        "metrics are served to every network",
        "metrics.py",
        'HOST = "127.0.0.1"',
        'HOST = "0.0.0.0"',
        "port_of_this_machine",
        PAGE,
    ),
    Mutant(
        "a page of a browser may ask for metrics under another name",
        "metrics.py",
        'partition(":")[0] not in NAMES',
        'partition(":")[0] is None',
        "port_of_this_machine",
        PAGE,
    ),
    Mutant(
        "a network's word becomes a label",
        "metrics.py",
        '        return "other"\n',
        "        return stage\n",
        "sites_events",
        PAGE,
    ),
    Mutant(
        "the time left is negative",
        "embedded/forecast.py",
        "            seconds += each * max(waiting, 0)\n        return max(seconds, 0.0)\n",
        "            seconds += each * waiting\n        return seconds\n",
        "more_answers_than_planned",
        "test_forecast.py",
    ),
    Mutant(
        "a folder's name puts control characters into a log",
        "embedded/progress.py",
        'c if c.isprintable() else "?"',
        "c",
        "control_character",
        "test_progress.py",
    ),
    Mutant(
        "adapters that pay are advised against",
        "report/advice.py",
        "found[0] > 0 or",
        "found[1] > 9 or",
        "better_beyond_chance",
        ADVICE,
    ),
)
