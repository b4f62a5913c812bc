"""Estimators of `fedtree_audits` against jax-privacy on the same scores: same answers, how much
faster, coverage.

    python benchmarks/audits.py [--jax-privacy PYTHON] [--repeats N] [--coverage RUNS]

jax-privacy runs in a child of the interpreter given with --jax-privacy (default: this one), so that
it needs no place in our environment; its API is called from the raw scores, like ours. Without it
the comparison is with the theorems written out densely (scipy distributions, one value at a time),
and the output says so. Calls alternate in one run on fresh scores each time, so that neither side's
caches help; medians are taken. Times are CPU milliseconds, which a busy machine disturbs less than
the clock's. Both use one threshold that is fixed before the scores are drawn, which is where both
compute the same quantity. Then every bound is drawn for `--coverage` null and true mechanisms and
its violations are counted, with their exact 95% interval. The last line of output is one JSON
object.
"""

import argparse
import functools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DELTA, LEVEL = 1e-5, 0.05
METHODS = ("one_run", "one_run_fdp", "clopper_pearson")
CANARIES = (1_000, 10_000)
EPSILONS = (1.0, 4.0)


def timed(call):
    """Return the result and CPU milliseconds of one call."""
    start = time.process_time()
    found = call()
    return float(found), 1000 * (time.process_time() - start)


# Ours


def ours(method, values, included, threshold):
    from fedtree_audits.statistics import estimators as est

    given = est.scores(values, included)
    if method == "clopper_pearson":
        return est.clopper_pearson_epsilon(given, threshold, DELTA)
    bound = {"one_run": est.one_run_epsilon, "one_run_fdp": est.one_run_fdp_epsilon}[method]
    return bound(est.guess_above(given, threshold), DELTA)


# jax-privacy, in a child process: this part imports jax_privacy and numpy only


def theirs(method, values, included, threshold):
    from jax_privacy import auditing

    judge = auditing.CanaryScoreAuditor(values[included], values[~included])
    fixed = auditing.Explicit(threshold)
    if method == "clopper_pearson":
        return judge.epsilon_clopper_pearson(
            LEVEL, DELTA, one_sided=False, threshold_strategy=fixed
        )
    bound = {"one_run": judge.epsilon_one_run, "one_run_fdp": judge.epsilon_one_run_fdp}[method]
    return bound(LEVEL, DELTA, threshold_strategy=fixed)


def child():
    """Answer requests, one JSON line each, until the input ends."""
    from importlib.metadata import version

    import jax_privacy.auditing  # noqa: F401 - the import is not part of any time

    print(json.dumps({"version": version("jax-privacy")}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked["file"]) as held:
            values, included = held["values"], held["included"]
        call = functools.partial(theirs, asked["method"], values, included, asked["threshold"])
        print(json.dumps(timed(call)), flush=True)


class Other:
    """The other implementation: jax-privacy in a child, or the dense reference where it is not
    installed.
    """

    def __init__(self, python, folder):
        self.file = Path(folder) / "scores.npz"
        self.process = subprocess.Popen(
            [python, __file__, "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        first = self.process.stdout.readline()
        self.version = json.loads(first)["version"] if first else None
        if self.version is None:
            said = self.process.stderr.read().strip().splitlines()[-1:]
            print(
                f"jax-privacy did not start with {python}: {said}; comparing with the dense "
                "reference"
            )

    def __call__(self, method, values, included, threshold):
        """Return epsilon and milliseconds of one call."""
        if self.version is None:
            return timed(lambda: dense(method, values, included, threshold))
        np.savez(self.file, values=values, included=included)
        asked = {"method": method, "file": str(self.file), "threshold": threshold}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        """End the child."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


# The theorems written out, for where jax-privacy is not installed


def dense(method, values, included, threshold):
    from scipy.optimize import brentq
    from scipy.stats import beta, binom, norm

    above = values >= threshold
    canaries, made, correct = len(values), int(above.sum()), int((above & included).sum())

    def one_run(epsilon):
        q = 1 / (1 + math.exp(-epsilon))
        tail = binom.sf(correct - 1, made, q)
        alpha = max((binom.sf(correct - i - 1, made, q) - tail) / i for i in range(1, correct + 1))
        return LEVEL - min(1.0, tail + 2 * canaries * DELTA * alpha)

    def fdp(mu):
        h, r = LEVEL * (made - correct) / canaries, LEVEL * correct / canaries
        for i in range(correct - 1, -1, -1):
            following = max(h, norm.cdf(norm.ppf(min(r, 1.0)) - mu))
            r, h = r + i / (made - i) * (following - h), following
        return r + h - made / canaries

    if method == "clopper_pearson":
        members, others = int(included.sum()), int((~included).sum())
        passed = beta.ppf(1 - LEVEL / 2, made - correct + 1, others - (made - correct))
        missed = beta.ppf(1 - LEVEL / 2, members - correct + 1, correct)
        return max(
            0.0, math.log((1 - DELTA - passed) / missed), math.log((1 - DELTA - missed) / passed)
        )
    if method == "one_run":
        return brentq(one_run, 0, 20, xtol=1e-6) if one_run(0.0) > 0 else 0.0
    mu = brentq(fdp, 0, 12, xtol=1e-7) if fdp(0.0) > 0 else 0.0
    return (
        brentq(
            lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - DELTA,
            0,
            100,
        )
        if mu
        else 0.0
    )


# What is measured


def draw(epsilon, canaries, seed):
    """Scores of a Gaussian mechanism that spends exactly epsilon, and a threshold fixed
    beforehand.
    """
    from fedtree_audits.statistics import estimators as est

    mu = est.gaussian_mu(epsilon, DELTA) if epsilon else 0.0
    rng = np.random.default_rng([seed, canaries, round(1000 * epsilon)])
    included = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * included, included, mu + 0.5


def compare(other, repeats):
    rows = []
    for canaries in CANARIES:
        for epsilon in EPSILONS:
            for method in METHODS:
                mine, yours, off = [], [], []
                for seed in range(repeats + 1):
                    given = draw(epsilon, canaries, seed)
                    a, fast = timed(functools.partial(ours, method, *given))
                    b, slow = other(method, *given)
                    off.append(abs(a - b) / max(abs(b), 1e-3))
                    mine.append(fast)
                    yours.append(slow)
                rows.append(
                    {
                        "method": method,
                        "canaries": canaries,
                        "epsilon": epsilon,
                        "ours_ms": statistics.median(mine[1:]),
                        "other_ms": statistics.median(yours[1:]),
                        "worst_difference": max(off),
                    }
                )
                row = rows[-1]
                row["times_faster"] = row["other_ms"] / row["ours_ms"]
                print(
                    f"{method:16} {canaries:6d} canaries, epsilon {epsilon:g}: "
                    f"{row['ours_ms']:8.3f} ms, other "
                    f"{row['other_ms']:9.2f} ms, {row['times_faster']:7.1f} times; largest "
                    f"difference {max(off):.1e}"
                )
    return rows


def bounds():
    """Every 95% bound of the library on drawn scores; each takes scores and a generator."""
    from fedtree_audits.statistics import estimators as est

    def guessed(bound):
        return lambda s, rng: bound(est.guess(s, len(s.values) // 10, order=rng), DELTA)

    return {
        "one_run": guessed(est.one_run_epsilon),
        "one_run_fdp": guessed(est.one_run_fdp_epsilon),
        "clopper_pearson": lambda s, _: est.clopper_pearson_epsilon(s, 1.5, DELTA),
        "hold_out": lambda s, rng: est.hold_out_epsilon(s, DELTA, order=rng),
        "dkw": lambda s, _: est.dkw_epsilon(s, DELTA),
        "noncentral_t": lambda s, _: est.gaussian_epsilon_bound(s, DELTA),
    }


def slowest(repeats):
    """Median milliseconds of every bound at the largest number of canaries, from raw scores."""
    from fedtree_audits.statistics import estimators as est

    found = {}
    for name, bound in bounds().items():
        times = []
        for seed in range(repeats + 1):
            values, included, _ = draw(4.0, CANARIES[-1], seed)
            call = functools.partial(
                lambda b, v, c, r: b(est.scores(v, c), r),
                bound,
                values,
                included,
                np.random.default_rng(0),
            )
            times.append(timed(call)[1])
        found[name] = statistics.median(times[1:])
        print(f"{name:16} {found[name]:8.3f} ms at {CANARIES[-1]} canaries")
    return found


def coverage(runs):
    """Violations of each bound for null and true mechanisms, with Clopper and Pearson's 95%
    interval.
    """
    from scipy.stats import beta

    from fedtree_audits.statistics import estimators as est

    rows = []
    for name, bound in bounds().items():
        for epsilon in (0.0, *EPSILONS):
            found = []
            for seed in range(runs):
                values, included, _ = draw(epsilon, 400, seed)
                found.append(bound(est.scores(values, included), np.random.default_rng(seed)))
            bad = int((np.array(found) > epsilon).sum())
            low = float(beta.ppf(0.025, bad, runs - bad + 1)) if bad else 0.0
            high = float(beta.ppf(0.975, bad + 1, runs - bad)) if bad < runs else 1.0
            rows.append(
                {
                    "method": name,
                    "epsilon": epsilon,
                    "runs": runs,
                    "violations": bad,
                    "interval": [low, high],
                }
            )
            print(
                f"{name:16} epsilon {epsilon:g}: {bad} of {runs} above it, 95% interval {low:.3f} "
                f"to {high:.3f}"
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--jax-privacy", default=sys.executable, help="interpreter with jax-privacy"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--coverage", type=int, default=1000)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Other(arguments.jax_privacy, folder)
        rows = compare(other, arguments.repeats)
        other.close()
    times = slowest(arguments.repeats)
    covered = coverage(arguments.coverage)
    result = {
        "compared_with": f"jax-privacy {other.version}" if other.version else "dense reference",
        "least_times_faster": min(row["times_faster"] for row in rows),
        "worst_difference": max(row["worst_difference"] for row in rows),
        "slowest_ms_at_10000": max(times.values()),
        "ms_at_10000": times,
        "most_violations": max(row["violations"] / row["runs"] for row in covered),
        "comparison": rows,
        "coverage": covered,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
