#!/bin/sh
# Every test. Flags are passed on to pytest: sh scripts/test.sh -k brcd
set -eu
NEEDS=requirements-scale.txt
. "$(dirname "$0")/env.sh"
exec "$PY" -m pytest tests "$@"
