#!/bin/sh
# Every test. Flags are passed on to pytest: sh scripts/test.sh -k brcd
set -eu
. "$(dirname "$0")/env.sh"
exec "$PY" -m pytest tests "$@"
