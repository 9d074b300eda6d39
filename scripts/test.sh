#!/bin/sh
# Every test. Flags, or files, are passed on to pytest: sh scripts/test.sh -k brcd
#   sh scripts/test.sh core     lint, types and the tests of the method alone: no Ray, Milvus or browser is needed
# Tests of the search page drive a browser: a Chromium on PATH, else Playwright's own, which is installed, else Debian's
# package where this is root, else one line says what is missing and they are skipped.
set -eu
NEEDS="requirements-search.txt requirements-scale.txt requirements-dev.txt"
[ "${1:-}" != core ] || NEEDS="requirements-dev.txt"
. "$(dirname "$0")/env.sh"

"$PY" -m ruff check --quiet .
"$PY" -m ruff format --quiet --check .
"$PY" -m mypy --no-error-summary
if [ "${1:-}" = core ]; then
    shift
    CORE="structure losses brcd baselines hashing clusters metrics training options lists data decode resize"
    set -- $(for NAME in $CORE; do echo "tests/test_$NAME.py"; done) -m "not slow and not whole" "$@"
    exec "$PY" -m pytest -q -n auto --dist loadfile "$@"
fi

has_chromium() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" > /dev/null; then return; fi
    done
    "$PY" -c '
import pathlib, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    sys.exit(not pathlib.Path(playwright.chromium.executable_path).exists())' 2> /dev/null
}

has_chromium || "$PY" -m playwright install chromium > /dev/null 2>&1 || {
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null &&
        { apt-get install -y -q chromium || { apt-get update -q && apt-get install -y -q chromium; }; } > /dev/null 2>&1
} || echo "note: no Chromium: tests of the search page are skipped; put one on PATH (apt install chromium) and run again" >&2

# The site is tried on a real nginx and Caddy, where there are any.
{ command -v nginx && command -v caddy; } > /dev/null || { [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null &&
    apt-get install -y -q nginx-light caddy > /dev/null 2>&1; } || true

exec "$PY" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
