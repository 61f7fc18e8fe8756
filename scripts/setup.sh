#!/usr/bin/env bash
# Sets up everything in .venv: what the project needs, one cached build of llama-cpp-python, and the demo's model.
# Installs the versions in requirements/*.lock, which `make upgrade` renews. Safe to run again. Environment: PYTHON (default python3), BATCHER_CACHE (default ~/.cache/batcher).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
cache=${BATCHER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/batcher}
llama_version=$(sed -n 's/^llama-cpp-python==\([0-9.]*\).*/\1/p' requirements/llama.lock)
# Only libllama and the CPU backend: no multimodal library (LLAVA), no `common`, and attention and matrix products of
# our own (see llama_build.cmake).
cmake_args="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$PWD/scripts/llama_build.cmake ${CMAKE_ARGS:-}"

others=()

say() { printf '==> %s\n' "$*" >&2; }

need() { # need COMMAND DEBIAN_PACKAGE
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $2"
        apt-get update -qq && apt-get install -y -qq "$2" >/dev/null
    else
        say "$1 is missing: install it (Debian: apt-get install $2) and run make again"
        exit 1
    fi
}

need c++ g++
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "$python is older than 3.11: set PYTHON"; exit 1; }
"$python" -c 'import ensurepip' 2>/dev/null || need python-venv-is-missing python3-venv

if ! [ -x .venv/bin/python ]; then
    say "creating .venv"
    "$python" -m venv .venv
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@" 2> >(grep -v '^WARNING: Location' >&2); }
# Each package with each version that it takes is in the lock, so there is nothing to resolve.
locked() { # locked NAME [OPTION...]
    pip "${@:2}" install --no-deps --require-hashes -r "requirements/$1.lock"
}
locked tools

# AMX is used only where it works. That this compiler and this processor know it, a probe of a second tells before the
# build (see amx_probe.cpp); that the kernels of the build compute what they should is compared once it is installed.
uses_amx=
if grep -qs amx_tile /proc/cpuinfo; then
    probe=$(mktemp)
    if c++ -O3 -march=native scripts/amx_probe.cpp -o "$probe" 2>/dev/null && "$probe" 2>/dev/null; then
        uses_amx=1
    else
        say "AMX does not work here: building without"
    fi
    rm -f "$probe"
fi
own_cflags=${CFLAGS:-} own_cxxflags=${CXXFLAGS:-}

# Builds llama-cpp-python unless the cache has it, and installs it unless it is. Sets `wheels`, its folder in the cache.
install_llama() {
    local no_amx="" key temp
    [ -n "$uses_amx" ] || ! grep -qs amx_tile /proc/cpuinfo || no_amx=" -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    export CFLAGS=$own_cflags$no_amx CXXFLAGS=$own_cxxflags$no_amx
    # The build is native to this processor, so the cache is keyed by it too.
    key=$(cat scripts/llama_* \
        <(echo "$llama_version ${CMAKE_ARGS:-} $CXXFLAGS") \
        <(grep -m1 '^model name' /proc/cpuinfo) <(grep -m1 '^flags' /proc/cpuinfo) <(c++ --version) <(uname -m) \
        2>/dev/null | sha256sum | cut -c1-16)
    wheels=$cache/llama-cpp-python/$llama_version-$key
    if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
        say "building llama-cpp-python $llama_version (once: about 2 minutes on 2 cores; kept in $wheels)"
        mkdir -p "$wheels"
        temp=$(mktemp -d "$wheels/.build-XXXXXX")
        # shellcheck disable=SC2064  # as it is now
        trap "rm -rf '$temp'" EXIT
        "$python" -m venv "$temp/venv"
        "$temp/venv/bin/python" -m pip --disable-pip-version-check -q install --no-deps --require-hashes \
            -r requirements/llama-build.lock
        # build.targets: `llama` brings what it links to, and nothing else is compiled. pip's own cache of built wheels
        # knows nothing of compiler flags.
        CMAKE_ARGS=$cmake_args "$temp/venv/bin/python" -m pip --disable-pip-version-check -q wheel --no-cache-dir \
            --no-deps --no-build-isolation --no-binary llama-cpp-python -C build.targets=llama -w "$temp" \
            --require-hashes -r requirements/llama.lock
        mv "$temp"/*.whl "$wheels/"
        rm -rf "$temp"
    fi
    # Also where somebody has removed it since.
    if [ "$(cat .venv/.llama-build 2>/dev/null)" != "$key" ] ||
        ! ls -d .venv/lib/python*/site-packages/llama_cpp >/dev/null 2>&1; then
        pip install --force-reinstall --no-deps "$wheels"/*.whl
        echo "$key" >.venv/.llama-build
    fi
}
install_llama
if [ -n "$uses_amx" ] && [ -e "$wheels/.amx-is-wrong" ]; then
    uses_amx=
    install_llama
fi

say "installing batcher and its dependencies"
# The server's tests talk to it through each major version of the OpenAI SDK, which cannot share an environment, and
# through litellm and langchain-openai, which many programs use.
for name in openai-1 openai-2 openai-3 clients; do
    {
        "$python" -m venv --without-pip ".venv/$name"
        locked "$name" --python ".venv/$name/bin/python"
    } &
    others+=($!)
done
locked dev
locked model
pip install --no-deps --no-build-isolation -e .
for other in "${others[@]}"; do
    wait "$other"
done
# In a process of its own, which a wrong kernel may end by a signal. 1 says that nothing could be compared.
if [ -n "$uses_amx" ] && ! [ -e "$wheels/.amx-is-right" ]; then
    status=0
    { .venv/bin/python -m workers.engines.llama.kernels >"$wheels/.amx-check" 2>&1; } 2>/dev/null || status=$?
    if [ "$status" = 0 ]; then
        touch "$wheels/.amx-is-right"
    elif [ "$status" = 1 ]; then
        cat "$wheels/.amx-check" >&2
        exit 1
    else
        touch "$wheels/.amx-is-wrong"
        say "this compiler's AMX kernels do not compute what they should ($wheels/.amx-check): building without"
        uses_amx=
        install_llama
    fi
fi
touch .venv/.ready
