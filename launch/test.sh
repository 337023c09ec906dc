#!/usr/bin/env bash
# The test suite. Arguments go to pytest, for example: bash launch/test.sh -k shard
# With --fast what takes longest is left out, and all that starts processes which compute.
# With --long only the long tests, which are left out otherwise: a call starts no further test after
# 25 minutes and ends with 0 when all have passed on these sources, with 75 when some are left (call
# again, it goes on with those), with 1 when one failed.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu  # the same on every machine
# Where nothing compiled may be kept, each of some hundred commands that tests start would compile the package again.
export PYTHONDONTWRITEBYTECODE=
export OMP_NUM_THREADS=1  # the workers are the parallelism: threads of small products wait for each other
# Three workers: one for tests of several processes that compute, one for the local cluster, which mostly waits
# (tests/conftest.py); the long suite goes one by one.
workers=(-n 3 --no-loadscope-reorder)
for word in "$@"; do
  if [ "$word" = --long ]; then workers=(); fi
  if [ "$word" = --fast ]; then workers=(-n 2); fi  # none of these waits
done
exec python -m pytest "${workers[@]}" "$@"
