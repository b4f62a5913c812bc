"""Known ways in which a claim of differential privacy fails in practice, and what stands against
each here.

The subjects follow NIST SP 800-226 (Guidelines for Evaluating Differential Privacy Guarantees,
March 2025), in our own words and without its numbering. For each: what is done, the tests of this
repository that hold it, and the audits that look for it in a finished run.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Hazard:
    """One hazard.

    Attributes:
        name: What goes wrong.
        measure: What is done about it, or that nothing is.
        tests: Names of tests, or beginnings of names.
        audits: Audits that look for it.
        of_units: What is done where a job protects units, ``{}`` their name; the same if empty.
        of_shared: What is done where noise is shared; the same if empty.
    """

    name: str
    measure: str
    tests: tuple[str, ...] = ()
    audits: tuple[str, ...] = ()
    of_units: str = ""
    of_shared: str = ""


HAZARDS = (
    Hazard(
        "the unit of privacy is smaller than a person",
        "The unit is one training row. A person with many rows is protected less: the statement "
        "says so, and nothing here joins rows of a person.",
        of_units="The unit is one {} with all its rows: sampled together, bounded together in "
        "every mechanism, and never mixed with another unit on the same data set. A person with "
        "two of them, or at two clients, is protected less.",
    ),
    Hazard(
        "epsilon too large to mean much",
        "The job states epsilon and delta, nothing fills them in, and a delta of 1/n or more is "
        "refused. Whether the number is small enough is for people to decide.",
        ("test_bad_jobs_are_refused_before_a_store_is_made",),
    ),
    Hazard(
        "releases that nobody counted",
        "A ledger for each data set, over all jobs; every release is charged durably before it "
        "leaves.",
        ("test_hostile_restored_store", "test_hostile_second_budget"),
        ("ledger", "accounted"),
    ),
    Hazard(
        "sensitivity that is not bounded",
        "Every record's gradient is clipped by one norm over all trained values; a gradient that "
        "is no number counts as zero.",
        (
            "test_hostile_guards_as_oracle",
            "test_one_record_moves_the_sum_by_at_most_the_bound",
            "test_a_nonfinite_record_contributes_exactly_zero",
            "test_a_whole_unit_moves_the_sum_by_at_most_the_bound",
        ),
        ("components", "replay"),
        "The gradients of all rows of a {} are summed and clipped once, by one norm over all "
        "trained values; a gradient that is no number counts as zero.",
    ),
    Hazard(
        "sampling that is not what was accounted for",
        "Batches are drawn by an independent coin for each record, with public rates; batches are "
        "never shown.",
        ("test_rate_independence_and_batch_sizes", "test_divisor_and_rate_from_the_private_size"),
        ("components", "replay"),
        "Batches are drawn by an independent coin for each {} with all its rows, with public "
        "rates; batches are never shown.",
    ),
    Hazard(
        "floating-point noise that can be read off",
        "What is uploaded is noised and masked on an integer grid; what stays in floating point "
        "is rounded to a grid before it is delivered.",
        ("test_exact_probabilities_and_power",),
        ("lattice",),
    ),
    Hazard(
        "random numbers that can be guessed",
        "Noise, sampling and keys come from the operating system's generator; the job's seed never "
        "reaches them.",
        ("test_no_seed_reaches_it", "test_a_forked_child_cannot_repeat_the_noise"),
        ("components",),
    ),
    Hazard(
        "answering times and sizes that depend on the data",
        "Batches have fixed shapes, messages fixed sizes; a client may answer at fixed times only. "
        "Times on one's own machine are not hidden from others on it.",
        ("test_hostile_telling_time", "test_hostile_long_record"),
    ),
    Hazard(
        "settings tuned on the private rows",
        "Budget plans use public numbers only. Whoever runs a job many times to choose settings "
        "pays for each run in the ledger.",
        ("test_hostile_second_budget",),
        ("ledger",),
    ),
    Hazard(
        "values that are released without noise",
        "Label names and declared sizes are public; test metrics are computed at home and sent to "
        "nobody. Who publishes a metric releases it.",
        (),
        ("accounted",),
    ),
    Hazard(
        "a server that is trusted",
        "A client's own noise protects it without trusting the server. Beside it the server sees "
        "sums over a minimum group only.",
        ("test_hostile_unsigned_requests", "test_hostile_invented_distances"),
        ("hostile_server", "secagg_transcript", "disclosure"),
        of_shared="What a client adds to a sum protects it at own_epsilon without trusting "
        "anybody. That it is protected at epsilon assumes honest others in every sum; a server "
        "can choose neither how many nor how much each adds.",
    ),
    Hazard(
        "raw data that is badly kept",
        "Rows stay in their owner's files; access to them is the owner's matter. Stores are "
        "private files, secrets are encrypted at rest where a key file is given.",
        ("test_hostile_names_and_files",),
    ),
    Hazard(
        "results that are less accurate for some",
        "Noise costs small classes and small clients more. Metrics are shown for each client; "
        "fairness between groups of people is not measured.",
    ),
)

_OF_NOISE = (
    "Each client's program is trusted by that client. A client that lies about its own rows or "
    "noise harms the accuracy of all and its own protection, not the protection of others."
)

LIMITS = (
    (
        "Protection is for single rows. Whoever has many rows here is protected less, and what is "
        "true of all rows of a client together is not hidden."
    ),
    (
        "Epsilon bounds what a row changes in anybody's guess. It says nothing about what can be "
        "concluded from facts that hold without that row."
    ),
    _OF_NOISE,
    (
        "Metrics on private test rows are exact figures. They are not covered by epsilon, and "
        "should not be published without thought."
    ),
    (
        "Deleted memory cannot be wiped in Python: who reads the memory of a client's process "
        "reads its rows."
    ),
    (
        "Signatures show that files are as the clients' keys signed them. They do not show who "
        "holds a key; compare the roster with what each site says is its own."
    ),
)

_LIMITS_OF_UNITS = (
    (
        "Protection is for one {} with all its rows. Whoever has several here, or rows at several "
        "clients, is protected less, and what is true of all rows of a client together is not "
        "hidden."
    ),
    (
        "Epsilon bounds what a {} changes in anybody's guess. It says nothing about what can be "
        "concluded from facts that hold without it."
    ),
)


_LIMIT_OF_SHARED = (
    "Each client's program is trusted by that client, and by the others of its sums to add its "
    "part of the noise: one that adds none leaves them with less, down to own_epsilon."
)


def hazards_of(unit: str | None, *, shared: bool = False) -> tuple[Hazard, ...]:
    """Return the hazards with what is done about them, for a unit's name; None for rows.

    Args:
        unit: See above.
        shared: Whether noise is shared.
    """
    found: tuple[Hazard, ...] = HAZARDS
    if unit is not None:
        found = tuple(
            replace(hazard, measure=(hazard.of_units or hazard.measure).replace("{}", unit))
            for hazard in HAZARDS
        )
    if not shared:
        return found
    return tuple(replace(h, measure=h.of_shared or h.measure) for h in found)


def limits_of(unit: str | None, *, shared: bool = False) -> tuple[str, ...]:
    """Return the limits in plain words, for a unit's name; None for rows. `shared` as above."""
    limits = tuple(_LIMIT_OF_SHARED if shared and text == _OF_NOISE else text for text in LIMITS)
    if unit is None:
        return limits
    said = tuple(text.replace("{}", unit) for text in _LIMITS_OF_UNITS)
    return said + limits[len(said) :]
