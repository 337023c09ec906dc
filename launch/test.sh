#!/usr/bin/env bash
# The test suite. Arguments go to pytest, for example: bash launch/test.sh -k shard
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu  # the same on every machine
exec python -m pytest "$@"
