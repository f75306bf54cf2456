#!/usr/bin/env bash
# Sets up .venv on first use, then works in the repository's folder, wherever it is called from.
#
#   ./run.sh                  the main job: make the scenes, train on them, evaluate, report
#   ./run.sh --FLAG=VALUE     the same with flags of cfinet_jax.main; --config and --workdir take the place of its own
#   ./run.sh test [ARGUMENT]  every check; arguments go to pytest
#   ./run.sh COMMAND ...      any command inside the environment, for example ./run.sh python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv="$PWD/.venv"

say() { echo "run.sh: $*" >&2; }

find_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "install Python 3.11, 3.12 or 3.13 (on Debian and Ubuntu with its python3-venv package), then try again"
    return 1
}

accelerator() {
    if [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; then
        echo cuda
    elif compgen -G '/dev/accel[0-9]*' >/dev/null || { compgen -G '/dev/vfio/[0-9]*' && compgen -e TPU_; } >/dev/null; then
        echo tpu
    fi
}

pip_install() {
    local python
    if command -v uv >/dev/null; then
        [[ -x $venv/bin/python ]] || uv venv --quiet --clear --python '>=3.11,<3.14' "$venv"
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            python=$(find_python)
            "$python" -m venv --clear "$venv"
        fi
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

# Enter the environment, with the package and the given extras (comma-separated) as these two files ask for.
enter() {
    local stamp="$venv/installed${1:+-$1}" wanted
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        say "installing into .venv, about a minute, once"
        pip_install -c constraints.txt -e ".${1:+[$1]}"
        echo "$wanted" >"$stamp"
    fi
    export PATH="$venv/bin:$PATH"
    export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
}

extras=$(accelerator)
case "${1:-}" in
    test)
        enter "dev${extras:+,$extras}"
        say "checking style, imports, types and documents"
        ruff check
        ruff format --check
        lint-imports --no-logo
        pyright
        mkdocs build --quiet --site-dir "$(mktemp -d)"
        say "running the tests"
        # Two files of tests at a time, as ordered by tests/conftest.py: much of a test is tracing, which takes one core.
        exec pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "${@:2}"
        ;;
    "" | --*)
        enter "$extras"
        given=" $* " defaults=()
        # What is trained knows its configuration, as long as nothing in it is to be changed.
        of_a_run=' --mode=(evaluate|export|predict) '
        if [[ $given != *" --config="* ]] && [[ $given == *" --config."* || ! $given =~ $of_a_run ]]; then
            defaults+=(--config=configs/scenes.py)
        fi
        if [[ $given != *" --workdir="* ]]; then
            defaults+=(--workdir=runs/scenes)
        fi
        exec python -m cfinet_jax.main ${defaults[@]+"${defaults[@]}"} "$@"
        ;;
    *)
        enter "$extras"
        exec "$@"
        ;;
esac
