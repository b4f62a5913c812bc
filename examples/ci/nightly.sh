#!/bin/sh
# Checks every finished run of a folder, for cron; ends with the gate's code of the last run that
# did not pass. A line of a crontab:
#   15 3 * * *  /opt/fedtree/examples/ci/nightly.sh /srv/fedtree/runs 8
set -u
runs=${1:?usage: nightly.sh RUNS MAX_EPSILON}
epsilon=${2:?usage: nightly.sh RUNS MAX_EPSILON}
here=$(dirname "$0")
ended=0
for run in "$runs"/*/; do
  [ -f "${run}job.json" ] || continue
  fedtree-secure gate "$run" --max-epsilon "$epsilon" --audits "$here/required.toml" \
    --json > "${run%/}.gate.json"
  code=$?
  case $code in
    0) said="passed" ;;
    10) said="budget" ;;
    11) said="an audit fails" ;;
    12) said="signature or ledger" ;;
    13) said="protocol" ;;
    14) said="inconclusive" ;;
    *) said="could not be checked" ;;
  esac
  echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) ${run%/}: $said ($code)"
  [ "$code" -eq 0 ] || ended=$code
done
exit "$ended"
