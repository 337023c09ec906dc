#!/usr/bin/env bash
# The whole job on the embedded demo corpus: two real processes under ZeRO-3, on a CPU.
# A second call does only what is missing.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
# The same code runs on GPUs; the demo shows it on any machine.
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu

code=0
mer-dist demo demo-data
mer-dist run configs/demo.yaml || code=$?
# 3: done, and the demo's damaged clips are in quarantine, as they should be.
if [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then exit "$code"; fi
mer-dist verify runs/demo
mer-dist score runs/demo demo-data/truth.csv
report=$(mer-dist report runs/demo)
# Clips of another day, by what was learned: nothing is trained again.
mer-dist predict runs/demo demo-data/new --transcripts demo-data/new-transcripts.csv --out runs/demo-new
cut -d, -f1-3 runs/demo-new/predictions.csv
printf '\nreport: %s\n' "$report"
