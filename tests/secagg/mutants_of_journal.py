"""The guards of the journal; see `mutants.py`."""

from mutant import Mutant

M = Mutant
JOURNAL = (
    M(
        "reused update: burnt updates accepted",
        "journal.py",
        "if update.hex() in self.burnt:",
        "if False:",
        "test_reused_update_",
        "test_journal.py",
    ),
    M(
        "reused update: burnt by its own reveal only",
        "journal.py",
        'for entry in self._entries if entry.stage == "masked")',
        'for entry in self._entries if entry.stage == "masked" and any('
        'e.stage == "revealed" and (e.round, e.attempt) == (entry.round, entry.attempt) '
        "for e in self._entries))",
        "test_reused_update_",
        "test_journal.py",
    ),
    M(
        "rollback: attempts begun before a crash go on",
        "attempts.py",
        "        self._open = ()",
        "        pass",
        "rollback_after",
        "test_journal.py",
    ),
    M(
        "rollback: older rounds accepted",
        "attempts.py",
        "if round < last_round and not back:",
        "if False:",
        "rollback_counters",
        "test_journal.py",
    ),
    M(
        "rollback: attempts repeat",
        "attempts.py",
        "number = used + 1 if",
        "number = 0 if",
        "rollback_counters",
        "test_journal.py",
    ),
    M(
        "rollback: stages repeat",
        "attempts.py",
        "if stage not in STAGES[at + 1 : at + 2]:",
        "if stage not in STAGES:",
        "rollback_no_stage",
        "test_journal.py",
    ),
    M(
        "rollback: attempts of the server's that were used",
        "attempts.py",
        "if not used < number <= used + jump:",
        "if not number <= used + jump:",
        "a_number_that_the_server_chose",
        "test_journal.py",
    ),
    M(
        "rollback: attempts that jump",
        "attempts.py",
        "if not used < number <= used + jump:",
        "if not used < number:",
        "an_absurd_counter",
        "test_journal.py",
    ),
    M(
        "rollback: counters of any size",
        "attempts.py",
        "if type(value) is not int or not 0 <= value <= LARGEST_COUNTER:",
        "if type(value) is not int or not 0 <= value:",
        "an_absurd_counter",
        "test_journal.py",
    ),
    M(
        "journal: memory before the line",
        "journal.py",
        "        self._records.append(msgspec.json.encode(entry))\n        self._note(entry)",
        "        self._note(entry)\n        self._records.append(msgspec.json.encode(entry))",
        "is_not_written_changes_nothing",
        "test_journal.py",
    ),
    M(
        "journal: lines after a torn one",
        "journal_file.py",
        "if self._torn:",
        "if False:",
        "half_a_line",
        "test_journal.py",
    ),
    M(
        "journal: foreign files emptied",
        "journal_file.py",
        "if not data.startswith(_HEAD) and not _HEAD.startswith(data):",
        "if False:",
        "a_foreign_file",
        "test_journal.py",
    ),
)
