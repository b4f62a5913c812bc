"""Remove each guard in turn and see its test fail: `python tests/secagg/mutants.py [part of a mutant's name ...]`.

A mutant is one replacement in the source of the package, applied to a copy in a temporary folder, and the tests that
must notice. A mutant that survives means that a guard is not tested; the script then ends with status 1. First all
named tests must pass on the unchanged copy, so that a failure means what it says.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "secagg" / "fedtree_secagg"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str  # a pytest -k expression
    within: str = "test_attacks.py"


M = Mutant
MUTANTS = (
    M(
        "01 key and seeds opened together",
        "session.py",
        "(any(opens), *(False for _ in opens))",
        "(any(opens), *opens)",
        "row_01_no_holder",
    ),
    M(
        "01 partial upload accepted",
        "server.py",
        'if len(body) != expected:\n        raise ProtocolError(f"masked',
        'if False:\n        raise ProtocolError(f"masked',
        "row_01_an_upload",
    ),
    M("02 votes for another set accepted", "client.py", "if vote.view != agreed:", "if False:", "row_02_a_split_view"),
    M(
        "02 heads with other sharers accepted",
        "client.py",
        "if head.sharers != sharers_hash(session, sharers):",
        "if False:",
        "row_02_a_client_that_was_shown",
    ),
    M("02 silent survivors accepted", "client.py", "    if silent:", "    if False:", "row_02"),
    M(
        "02 view without the sharers",
        "session.py",
        "session, sharers_hash(session, sharers), *survivors",
        "session, *survivors",
        "row_02_the_view",
    ),
    M(
        "02 uploads with other sharers accepted",
        "server.py",
        "if head.sharers != sharers_hash(state.cohort.id, state.digests):",
        "if False:",
        "row_02_a_client_that_was_shown",
    ),
    M(
        "04 session of forwarded words unchecked",
        "client.py",
        "if word.session != session:",
        "if False:",
        "row_02_the_heads",
    ),
    M(
        "02 too few votes accepted",
        "client.py",
        'require(state.session.plan, "votes", len(voters))',
        "pass",
        "row_02_a_split_view or row_02_too_few",
    ),
    M("02 a vote counts twice", "client.py", "len(set(spoke)) != len(spoke) or ", "", "row_02_a_vote_counts"),
    M(
        "02 votes of the dead count",
        "client.py",
        " or not set(spoke) <= set(state.survivors)",
        "",
        "row_02_a_vote_counts",
    ),
    M("02 own death accepted", "client.py", "if state.name not in names:", "if False:", "row_02_own_name"),
    M(
        "02 repeated names accepted",
        "session.py",
        "if list(names) != sorted(set(names)):",
        "if False:",
        "row_02_own_name",
    ),
    M("02 unknown survivors accepted", "session.py", "    if unknown:", "    if False:", "row_02"),
    M(
        "02 too few sharers or survivors accepted",
        "client.py",
        "require(state.session.plan, stage, len(names))",
        "pass",
        "row_02_too_few",
    ),
    M(
        "02 too few adverts accepted",
        "session.py",
        'require(session.plan, "adverts", len(self.names))',
        "pass",
        "row_02_too_few",
    ),
    M(
        "02 threshold below the rule accepted",
        "plan.py",
        "n + self.colluders < 2 * self.threshold and ",
        "",
        "row_02_thresholds",
    ),
    M(
        "03 no self mask",
        "client.py",
        "masks = [(keys.self_mask_key(seed.reveal(), cohort.id, state.name, node.name), 1)]",
        "masks = []",
        "row_03",
    ),
    M(
        "03 seeds of the dead opened",
        "session.py",
        "(any(opens), *(False for _ in opens))",
        "(any(opens), *opens)",
        "row_03",
    ),
    M("04 signatures not bound to the session", "messages.py", "+ tag + context + ", "+ tag + ", "row_04"),
    M("04 advert's instance unchecked", "session.py", "if advert.instance != session.instance:", "if False:", "row_04"),
    M(
        "04 session of client messages unchecked",
        "server.py",
        "if message.session != state.cohort.id:",
        "if False:",
        "row_04",
    ),
    M(
        "04 session of votes message unchecked",
        "client.py",
        "if message.session != session:",
        "if False:",
        "row_04_server",
    ),
    M(
        "04 session of inbox and survivors unchecked",
        "client.py",
        "if session != state.cohort.id:",
        "if False:",
        "row_04",
    ),
    M(
        "04 boxes not bound to the session",
        "keys.py",
        "return Secret(extract(session, shared))",
        "return Secret(extract(b'', shared))",
        "row_11_no_mask_key",
    ),
    M("05 states serve twice", "secret.py", "if not self._lock.acquire(blocking=False):", "if False:", "row_05"),
    M("05 a refused step eats the state", "secret.py", "if kind is not None:", "if False:", "row_05"),
    M("06 small changes of membership accepted", "plan.py", "if 0 < len(group) < min_group:", "if False:", "row_06"),
    M(
        "07 small groups for many colluders",
        "plan.py",
        "least = max(SMALLEST_GROUP, self.colluders + 2)",
        "least = SMALLEST_GROUP",
        "row_07_a_group",
    ),
    M(
        "07 members not in the plan hash",
        "plan.py",
        "[node.name, list(node.members), ",
        "[node.name, ",
        "row_07_and_10",
    ),
    M(
        "07 identity not compared with the roster",
        "client.py",
        "if not hmac.compare_digest(roster.keys[name], identity.public_bytes):",
        "if False:",
        "row_07_only",
    ),
    M(
        "07 own advert not looked for",
        "client.py",
        "if state.advert not in message.adverts:",
        "if False:",
        "row_07_and_10",
    ),
    M("08 small nodes accepted", "plan.py", "if len(node.members) < self.min_group:", "if False:", "row_08"),
    M(
        "08 overlapping nodes accepted",
        "plan.py",
        "if start < stop:\n                    raise",
        "if False:\n                    raise",
        "row_08",
    ),
    M("08 min_group below three accepted", "plan.py", "self.min_group < least", "False", "row_08"),
    M("09 small nodes opened", "session.py", ">= plan.min_group)", ">= 1)", "row_09"),
    M("10 context not in the plan hash", "plan.py", "            self.context,\n", "", "row_07_and_10"),
    M(
        "10 plan not in the instance",
        "session.py",
        "self.roster.hash, self.plan.hash, counters",
        "self.roster.hash, counters",
        "row_07_and_10",
    ),
    M("11 pair mask key without the node", "keys.py", 'b"pair-mask", node)', 'b"pair-mask")', "row_11"),
    M(
        "11 self mask key without the session",
        "keys.py",
        'expand(extract(session, seed), b"self-mask"',
        'expand(extract(b"", seed), b"self-mask"',
        "row_11",
    ),
    M("11 attempt not in the instance", "session.py", ' + self.attempt.to_bytes(8, "big")', "", "row_04 or row_11"),
    M(
        "11 round not in the instance",
        "session.py",
        'counters = self.round.to_bytes(8, "big") + ',
        "counters = ",
        "row_11",
    ),
    M(
        "11 box key not bound to direction and holder",
        "keys.py",
        'expand(agreed.reveal(), b"channel", info)).encrypt',
        'expand(agreed.reveal(), b"channel")).encrypt',
        "row_11_boxes",
    ),
    M(
        "13 seed commitment unchecked",
        "server.py",
        "if seed is None or keys.seed_commitment(seed, cohort.session.instance, owner, node.name) != promised:",
        "if seed is None:",
        "row_13",
    ),
    M(
        "13 rebuilt key unchecked",
        "server.py",
        "if pair is None or pair.public_bytes != self._state.cohort.adverts[owner].mask_key:",
        "if pair is None:",
        "row_13",
    ),
    M(
        "13 holders' answers not compared",
        "server.py",
        "if keys.bundle_digest(hashes) != self._state.digests[owner][holder]:",
        "if False:",
        "row_13_a_holder",
    ),
    M(
        "13 bundle digest unchecked",
        "client.py",
        "if not hmac.compare_digest(_digest(bundle, session, dealer, state.name), digest):",
        "if False:",
        "row_13",
    ),
    M(
        "13 bundle length unchecked",
        "client.py",
        "if len(plain) != state.cohort.bundle_bytes(dealer):",
        "if False:",
        "row_13",
    ),
    M("13 non-elements accepted", "client.py", "if not all(map(shamir.is_share, bundle)):", "if False:", "row_13"),
    M(
        "15 masks left out",
        "ring.py",
        "stream.update_into(source, self._keystream)",
        "pass",
        "masks_hide",
        "test_round.py",
    ),
    M("16 overflow accepted", "plan.py", "if largest > capacity:", "if False:", "row_16"),
    M("16 clip unchecked", "quantise.py", "if -self.clip <= low and high <= self.clip:", "if True:", "row_16"),
    M(
        "16 oversize sum accepted",
        "server.py",
        "if max(int(total.max()), -int(total.min())) > limit:",
        "if False:",
        "row_16",
    ),
    M(
        "17 signatures unchecked",
        "identity.py",
        "        except (InvalidSignature, KeyError):\n            return False",
        "        except (InvalidSignature, KeyError):\n            return True",
        "row_17",
    ),
    M(
        "17 sender not compared",
        "messages.py",
        "if sender is not None and name != sender:",
        "if False:",
        "row_17_one_client",
    ),
    M("17 stage not signed", "messages.py", "+ bytes([len(tag)]) + tag + ", "+ ", "row_17_a_signature"),
    M(
        "17 content not signed",
        "messages.py",
        "return head + hashlib.sha256(payload).digest()",
        "return head",
        "row_17",
    ),
    M(
        "17 tag of the vector unchecked",
        "server.py",
        "if not keys.upload_verifies(agreed, head.nonce, head.tag, body):",
        "if False:",
        "row_17_a_vector",
    ),
    M(
        "17 server key not in the session",
        "session.py",
        "session.instance, server_key, hashlib",
        "session.instance, hashlib",
        "row_17_a_man",
    ),
    M(
        "17 server key unchecked",
        "session.py",
        'keys.check_public(server_key, "the server", blame=False)',
        "pass",
        "row_17_a_server",
    ),
    M(
        "17 server key may be a client's",
        "session.py",
        'seen = {server_key: "the server"}',
        "seen: dict[bytes, str] = {}",
        "row_17_a_server",
    ),
    M("18 small-order keys accepted", "keys.py", "or point in SMALL_ORDER", "", "row_18"),
    M("18 second encodings of a key accepted", "keys.py", "point >= FIELD or ", "", "row_18"),
    M("18 shared keys accepted", "session.py", "if key in seen:", "if False:", "row_18"),
    M(
        "05 burnt updates accepted",
        "journal.py",
        "if update.hex() in self.burnt:",
        "if False:",
        "row_05",
        "test_journal.py",
    ),
    M(
        "12 attempts begun before a crash go on",
        "journal.py",
        "self._open = False",
        "self._open = True",
        "row_12_after",
        "test_journal.py",
    ),
    M(
        "12 older rounds accepted",
        "journal.py",
        "if round < last_round:",
        "if False:",
        "row_12_counters",
        "test_journal.py",
    ),
    M(
        "12 attempts repeat",
        "journal.py",
        "attempt = last_attempt + 1 if",
        "attempt = 0 if",
        "row_12_counters",
        "test_journal.py",
    ),
    M(
        "12 stages repeat",
        "journal.py",
        " or stage != STAGES[STAGES.index(current.stage) + 1]",
        "",
        "row_12_no_stage",
        "test_journal.py",
    ),
    M(
        "second encodings of a message accepted",
        "messages.py",
        "if encode(message) != data:",
        "if False:",
        "one_encoding",
        "test_parts.py",
    ),
    M(
        "weak randomness accepted",
        "secret.py",
        "if randomness == randomness[:1] * 32:",
        "if False:",
        "bad_randomness",
        "test_parts.py",
    ),
    M(
        "states are pickled",
        "secret.py",
        'raise TypeError(f"{type(self).__name__} holds secrets: it is neither pickled nor copied")',
        "return (object, ())",
        "neither_pickled",
        "test_parts.py",
    ),
    M(
        "sketch: values that wrap accepted",
        "sketch.py",
        "if not float(np.abs(projected).max()) < LIMIT:",
        "if False:",
        "would_wrap",
        "test_sketch.py",
    ),
    M(
        "sketch: no blind",
        "sketch.py",
        "integers + (offset >> np.uint64(32)).astype(np.int64)",
        "integers",
        "common_shift",
        "test_sketch.py",
    ),
    M(
        "sketch: one projection for all layers",
        "sketch.py",
        'layer.to_bytes(4, "big"), size',
        "bytes(4), size",
        "one_layers_projection",
        "test_sketch.py",
    ),
    M(
        "sketch: seed commitment unchecked",
        "sketch.py",
        "if seed is None or _commitment(group, seed) != message.commitment:",
        "if seed is None:",
        "false_seal",
        "test_sketch.py",
    ),
    M(
        "sketch: own hello not looked for",
        "sketch.py",
        "if group.hellos.get(state.name) != ",
        "if False and ",
        "slip_its_own_key",
        "test_sketch.py",
    ),
    M(
        "sketch: shared keys accepted",
        "sketch.py",
        "if len({hello.channel_key for hello in self.hellos.values()}) != len(self.names):",
        "if False:",
        "equal_keys",
        "test_sketch.py",
    ),
)


def run_tests(folder: Path, within: str, expression: str) -> int:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--rootdir",
        str(ROOT),
    ]
    command += [str(HERE / within), "-k", expression]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode


def copy_of_package(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "fedtree_secagg", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def try_mutant(mutant: Mutant) -> str:
    """Return an empty string when the mutant was noticed, otherwise what went wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_of_package(Path(scratch))
        path = folder / "fedtree_secagg" / mutant.file
        source = path.read_text()
        if source.count(mutant.old) != 1:
            return f"its text occurs {source.count(mutant.old)} times in {mutant.file}: update the mutant"
        path.write_text(source.replace(mutant.old, mutant.new))
        code = run_tests(folder, mutant.within, mutant.tests)
    return {1: "", 0: "SURVIVED", 5: "no test matches its expression"}.get(code, f"pytest ended with {code}")


def baseline(mutants: list[Mutant]) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_of_package(Path(scratch))
        found = True
        for within in sorted({m.within for m in mutants}):
            expression = " or ".join(sorted({f"({m.tests})" for m in mutants if m.within == within}))
            found &= run_tests(folder, within, expression) == 0
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose name holds one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if not arguments.names or any(part in m.name for part in arguments.names)]
    if not baseline(chosen):
        print("the tests fail without any mutation: repair them first")
        return 1
    failures = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, problem in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            failures += bool(problem)
            print(f"{'FAIL' if problem else 'ok  '} {mutant.name}{': ' + problem if problem else ''}", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} mutants noticed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
