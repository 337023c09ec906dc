#!/usr/bin/env bash
# The documentation site, into build/docs. What mkdocs warns of, as a link that leads nowhere, is an error.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export COLUMNS=90  # width of the help in the reference of commands
export NO_MKDOCS_2_WARNING=1  # a box about other tools
exec mkdocs build --strict
