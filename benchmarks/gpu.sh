#!/usr/bin/env bash
# Measures a machine with a GPU: benchmarks/gpu.py says what, and takes the flags.
#
#     [PYTHON=python3] [WHEELS=FOLDER] benchmarks/gpu.sh [--smoke] ...
#
# It takes the jax of PYTHON, whichever that is, and installs only packages that PYTHON lacks: from
# the folder WHEELS if there is one, so that it needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

needed='haiku:dm-haiku optax:optax chex:chex absl:absl-py cloudpickle:cloudpickle ml_collections:ml-collections
  matplotlib:matplotlib PIL:pillow cv2:opencv-python-headless orbax.checkpoint:orbax-checkpoint rich:rich
  safetensors:safetensors sklearn:scikit-learn simplejpeg:simplejpeg tensorboardX:tensorboardX
  tensorflow_datasets:tensorflow-datasets flatbuffers:flatbuffers'
missing=()
for pair in $needed; do
  "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('${pair%%:*}'.split('.')[0]) is None)" \
    || missing+=("${pair#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}"
  "$PYTHON" -m pip install --quiet ${WHEELS:+--no-index --find-links "$WHEELS"} "${missing[@]}"
fi
# Compiled programs are kept, and each process takes only the memory that it needs.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(mktemp -d)}
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "$PYTHON" -m benchmarks.gpu "$@"
