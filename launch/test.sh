#!/usr/bin/env bash
# The test suite. Arguments go to pytest, for example: bash launch/test.sh -k shard
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec python -m pytest "$@"
