#!/bin/sh
# Make a virtual environment at $1 and install statefield into it, in editable form, with the tools for its tests.
# Works on a bare Debian: python3 and pip suffice (python3-venv may be missing), g++ gives the fast kernels.
set -eu
venv=$1
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/python" ]; then
    echo "Making $venv ..."
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then  # Debian without python3-venv has no ensurepip
        rm -rf "$venv"
        "$python" -m venv --without-pip "$venv"
    fi
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip --python "$venv/bin/python" install --quiet pip
fi

echo "Installing statefield and what it needs (torch and its friends: some minutes on a first install) ..."
"$venv/bin/python" -m pip install --quiet --upgrade 'pip>=24'
"$venv/bin/python" -m pip install --quiet --editable '.[dev]'
"$venv/bin/statefield" doctor --brief
