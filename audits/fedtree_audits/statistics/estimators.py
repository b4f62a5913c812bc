"""All estimators under one name; each module's docstring names its theorem.

>>> from fedtree_audits.statistics.estimators import Guesses, one_run_epsilon
>>> round(one_run_epsilon(Guesses(canaries=1000, made=200, correct=180), 1e-5), 1)
1.8
"""

from fedtree_audits.statistics.intervals import (
    best_threshold,
    clopper_pearson_epsilon,
    gaussian_epsilon_bound,
    mu_lower_bound,
    per_step_epsilon,
    upper_rate,
)
from fedtree_audits.statistics.membership import (
    Curve,
    Rate,
    area,
    area_interval,
    exposure,
    relative,
    roc,
    tpr_at_fpr,
)
from fedtree_audits.statistics.one_run import (
    Inverse,
    one_run_epsilon,
    one_run_fdp_epsilon,
    p_value,
    refutes,
)
from fedtree_audits.statistics.profiles import (
    accountant_points,
    epsilon_at_least,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    profile_inverse,
)
from fedtree_audits.statistics.scores import Guesses, Scores, guess, hold_out, scores
from fedtree_audits.statistics.thresholds import (
    dkw_epsilon,
    dkw_margin,
    guess_above,
    hold_out_epsilon,
)

__all__ = [
    "Curve",
    "Guesses",
    "Inverse",
    "Rate",
    "Scores",
    "accountant_points",
    "area",
    "area_interval",
    "best_threshold",
    "clopper_pearson_epsilon",
    "dkw_epsilon",
    "dkw_margin",
    "epsilon_at_least",
    "exposure",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_epsilon_bound",
    "gaussian_mu",
    "guess",
    "guess_above",
    "hold_out",
    "hold_out_epsilon",
    "mu_lower_bound",
    "one_run_epsilon",
    "one_run_fdp_epsilon",
    "p_value",
    "per_step_epsilon",
    "profile_inverse",
    "refutes",
    "relative",
    "roc",
    "scores",
    "tpr_at_fpr",
    "upper_rate",
]
