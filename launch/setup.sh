# Sourced by the scripts beside it: leaves a virtual environment .venv with everything installed.
# Does nothing when setup.cfg and constraints.txt are as at the last time.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "mer_dist needs Python 3.11 or newer; set PYTHON to one" >&2
  exit 2
fi
wanted=$(cat setup.cfg constraints.txt launch/setup.sh | sha256sum)
# What DeepSpeed compiles is kept in the environment: two checkouts would compile in turns to one place below HOME.
export TORCH_EXTENSIONS_DIR="$PWD/.venv/torch_extensions"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "installing into .venv" >&2
  rm -rf "$TORCH_EXTENSIONS_DIR"
  # One that is there is kept: written over by another Python, its programs would no longer find their library.
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  pip=".venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt"
  # DeepSpeed's build looks at the installed torch, so torch comes first and builds are not isolated.
  $pip setuptools wheel packaging ninja torch
  $pip --no-build-isolation -e '.[train,test,check,docs]'
  # DeepSpeed compiles its CPU communication at first use, about a minute: part of the installation.
  echo "building DeepSpeed's CPU communication" >&2
  PATH="$PWD/.venv/bin:$PATH" DS_ACCELERATOR=cpu .venv/bin/python -c '
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
ShareMemCommBuilder().load(verbose=False)' >/dev/null
  echo "$wanted" > .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
