#!/usr/bin/env bash
# All that a change has to pass: ruff's lint and layout, the types, the syntax of the shell scripts, the
# documentation site, the tests.
# With --no-tests all but the tests: seconds, about a minute the first time. Other arguments go to
# launch/test.sh, for example: bash launch/check.sh --fast
# .pre-commit-config.yaml has the same commands, without the site and the tests.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
tests=yes arguments=()
for word in "$@"; do
  if [ "$word" = --no-tests ]; then tests=no; else arguments+=("$word"); fi
done
ruff check .
ruff format --check .
mypy
for script in .ci/run launch/*.sh slurm/*.sh slurm/*.sbatch; do bash -n "$script"; done
bash launch/docs.sh
if [ "$tests" = yes ]; then exec bash launch/test.sh "${arguments[@]}"; fi
