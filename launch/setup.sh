# shellcheck shell=bash
# Source this from the checkout with a requirements file as argument. It creates or reuses .venv there, installs the
# requirements and puts .venv first on the PATH. A stamp with the files' content avoids installing them twice.

find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.12 python3.11 python3.13; do
    if [ -n "$name" ] && "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo 'error: Python 3.11 or newer (with venv) was not found; install it, or set PYTHON=/path/to/python' >&2
  return 1
}

setup() {
  local python stamp wanted
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || return 1
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv || return 1
  fi
  stamp=.venv/installed-$(echo "$1" | tr / -)
  wanted=$(cat requirements.txt "$1")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $1 (a minute or two)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" || return 1
    printf '%s\n' "$wanted" >"$stamp"
  fi
  PATH=$PWD/.venv/bin:$PATH
}

setup "$1"
