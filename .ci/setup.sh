#!/usr/bin/env bash
# Makes .venv and fills it from the hashed requirement files; does nothing when everything is current.
#
#   .ci/setup.sh base      what `make demo` needs
#   .ci/setup.sh dev       what `make test` needs; takes base in
#   .ci/setup.sh system    system packages that only some tests need
#   .ci/setup.sh tests     that, and the programs that tests of deploy/ need
#   .ci/setup.sh lock      write requirements/*.txt anew from pyproject.toml
#
# PYTHON=python3.12               the interpreter to take instead of the first that fits
# FRAMEGATE_SYSTEM_PACKAGES=no    install no system package, also not as root

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
venv=.venv

# What the pinned wheels cover. A newer Python needs `make lock UPGRADE=1` first.
oldest_minor=11
newest_minor=14
oldest_glibc=2.28
oldest_java=17
uv_version=0.13.9

say() { printf '%s\n' "$*" >&2; }
fail() {
    printf 'framegate setup: %s\n' "$@" >&2
    exit 1
}

# --- what the machine offers ------------------------------------------------------------------------------------

apt_may_install() {
    [ "${FRAMEGATE_SYSTEM_PACKAGES:-yes}" != no ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

# Installs the packages named. Fresh images carry no package lists, hence the second try after an update.
apt_install() {
    say "Installing system packages: $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@")
    "${install[@]}" >/dev/null 2>&1 </dev/null && return
    apt-get update -q >/dev/null 2>&1 </dev/null || true
    "${install[@]}" >/dev/null </dev/null
}

version_at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

check_platform() {
    local system machine glibc
    system=$(uname -s) machine=$(uname -m)
    case "$system $machine" in
        "Linux x86_64" | "Linux aarch64") ;;
        *) fail "$system on $machine is not supported: the pinned wheels are for Linux on x86_64 or aarch64." \
            "Use such a machine, or a Debian 12 container on this one." ;;
    esac
    glibc=$( (getconf GNU_LIBC_VERSION 2>/dev/null || true) | awk '{print $2}')
    [ -n "$glibc" ] || fail "this Linux has no glibc (Alpine?): the pinned wheels need glibc $oldest_glibc or newer." \
        "Use Debian 12, Ubuntu 22.04 or newer."
    version_at_least "$glibc" "$oldest_glibc" ||
        fail "glibc $glibc is too old: the pinned wheels need $oldest_glibc or newer. Use Debian 12, Ubuntu 22.04 or newer."
}

# Is $1 a CPython of a version that the pinned wheels cover? It is run, not only looked up: a pyenv shim exists and fails.
python_fits() {
    "$1" -c "import sys; sys.exit(not (3, $oldest_minor) <= sys.version_info[:2] <= (3, $newest_minor))" >/dev/null 2>&1
}

# Debian keeps the half of `venv` that brings pip in a package of its own.
python_makes_venvs() { "$1" -c "import ensurepip, venv" >/dev/null 2>&1; }

find_python() {
    local candidate fallback=
    if [ -n "${PYTHON:-}" ]; then
        python_fits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python from 3.$oldest_minor to 3.$newest_minor that runs here."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        python_fits "$candidate" || continue
        if python_makes_venvs "$candidate"; then
            echo "$candidate"
            return
        fi
        fallback=${fallback:-$candidate}
    done
    [ -n "$fallback" ] || no_python
    echo "$fallback"
}

no_python() {
    local found
    found=$(python3 --version 2>&1) || found="no python3"
    fail "Python 3.$oldest_minor to 3.$newest_minor is needed; found $found." \
        "  Debian 12 or newer, Ubuntu 24.04 or newer:  apt install python3 python3-venv" \
        "  Ubuntu 22.04:                               apt install python3.11 python3.11-venv" \
        "  elsewhere:                                  uv python install 3.12, or pyenv install 3.12" \
        "  one that is not on the PATH:                make PYTHON=/path/to/python3 …"
}

# --- the environment --------------------------------------------------------------------------------------------

make_venv() {
    local python=$1 package
    mkdir -p "$venv"
    touch "$venv/.incomplete"
    if python_makes_venvs "$python"; then
        "$python" -m venv "$venv"
    elif "$python" -m pip --python "$(command -v "$python")" --version >/dev/null 2>&1; then
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet --require-hashes --only-binary :all: -r requirements/build.txt
    elif command -v uv >/dev/null; then
        uv venv --quiet --allow-existing --seed --python "$python" "$venv"
    else
        package=python$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])")-venv
        if ! apt_may_install || ! apt_install "$package"; then
            rm -rf "$venv"
            fail "$python cannot make an environment: its module ensurepip is missing. Install it, then run make again:" \
                "  Debian, Ubuntu:  sudo apt install $package" \
                "  or:              pip for $python, or uv, or another Python (make PYTHON=/path/to/python3 …)"
        fi
        "$python" -m venv "$venv"
    fi
}

is_the_python_asked_for() {
    local version='import sys; print(sys.version)'
    [ -z "${PYTHON:-}" ] || [ "$("$venv/bin/python" -c "$version")" = "$("$PYTHON" -c "$version" 2>/dev/null)" ]
}

# A venv that was cut short, whose interpreter has gone, or that was moved here (its scripts name the old place) is of no use.
venv_is_sound() {
    [ ! -e "$venv/.incomplete" ] && python_fits "$venv/bin/python" &&
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 && is_the_python_asked_for &&
        grep -qF "$root/$venv/bin/python" "$venv/bin/pip"
}

pip_install() {
    local quiet=()
    [ -t 1 ] || quiet=(--quiet)
    "$venv/bin/python" -m pip --disable-pip-version-check install "${quiet[@]}" "$@"
}

install_python_packages() {
    local set=$1 key installed
    key=$(cat pyproject.toml requirements/*.txt "${BASH_SOURCE[0]}" | sha256sum | cut -d ' ' -f 1)
    if venv_is_sound; then
        installed=$(cat "$venv/.installed" 2>/dev/null || true)
        [ "$installed" = "dev $key" ] || [ "$installed" = "$set $key" ] && return
    else
        check_platform
        local python
        python=$(find_python)
        say "Making $venv with $("$python" --version)"
        rm -rf "$venv"
        make_venv "$python"
    fi
    say "Installing requirements/$set.txt into $venv (the first time takes a minute)"
    touch "$venv/.incomplete"
    # --only-binary: a missing wheel ends here with its name, not in a compiler's output. pyspark has none: it is Python and
    # jars alone, built by what requirements/build.txt pins.
    pip_install --require-hashes --only-binary :all: -r requirements/build.txt &&
        pip_install --require-hashes --only-binary :all: --no-binary pyspark --no-build-isolation -r "requirements/$set.txt" &&
        pip_install --no-deps --no-build-isolation --editable . ||
        fail "pip could not install requirements/$set.txt; its own words are above." \
            "Behind a proxy or with an own package index: set HTTPS_PROXY, PIP_INDEX_URL, PIP_CERT, then run make again."
    echo "$set $key" >"$venv/.installed"
    rm "$venv/.incomplete"
}

# --- system packages for some tests -----------------------------------------------------------------------------

java_is_new_enough() {
    local major
    major=$( (java -version 2>&1 || true) | sed -nE '1s/.*"([0-9]+).*/\1/p')
    [ -n "$major" ] && [ "$major" -ge "$oldest_java" ]
}

# The newest Java that this distribution can install. (`apt-cache show` also knows names that nothing provides.)
java_package() {
    local package
    for package in openjdk-25-jdk-headless openjdk-21-jdk-headless openjdk-17-jdk-headless; do
        # No `grep -q`: it stops reading, and pipefail then counts apt-cache's broken pipe as a failure.
        if LC_ALL=C apt-cache policy "$package" 2>/dev/null | grep 'Candidate: [0-9]' >/dev/null; then
            echo "$package"
            return
        fi
    done
    return 1
}

install_java_and_maven() {
    local missing=() java
    if ! java_is_new_enough; then
        java=$(java_package) || { apt-get update -q >/dev/null 2>&1 </dev/null || true; }
        java=${java:-$(java_package)} || return
        missing+=("$java")
    fi
    command -v mvn >/dev/null || missing+=(maven)
    apt_install "${missing[@]}"
}

# Prometheus and promtool out of the distribution's package into the environment: installed as a package it would start a
# server as a service. They need nothing but the C library, and this no rights.
unpack_prometheus() {
    local folder
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return
    folder=$(mktemp -d)
    (
        cd "$folder"
        apt-get download -q prometheus >/dev/null 2>&1 </dev/null || {
            { [ "$(id -u)" != 0 ] || apt-get update -q >/dev/null 2>&1 </dev/null; } &&
                apt-get download -q prometheus >/dev/null 2>&1 </dev/null
        }
    ) && dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb |
        tar -x -C "$venv/bin" --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool
    rm -rf "$folder"
    [ -x "$venv/bin/promtool" ]
}

# What only some tests need, each on its own: a machine without one of them skips those tests and says so.
install_system_packages() {
    if ! java_is_new_enough || ! command -v mvn >/dev/null; then
        { apt_may_install && install_java_and_maven && java_is_new_enough && command -v mvn >/dev/null; } ||
            say "Note: Java $oldest_java or newer and Maven are not both here, so the tests on Apache Kafka and Apache Spark will be" \
                "skipped. To run them: apt install openjdk-17-jdk-headless maven"
    fi
    if ! command -v chromium >/dev/null; then
        { apt_may_install && apt_install chromium; } ||
            say "Note: there is no chromium here, so the tests in a browser will be skipped. To run them: apt install chromium"
    fi
    if ! command -v ffmpeg >/dev/null; then
        { apt_may_install && apt_install ffmpeg; } ||
            say "Note: there is no ffmpeg here, so two tests on cameras will be skipped. To run them: apt install ffmpeg"
    fi
    if ! command -v promtool >/dev/null && [ ! -x "$venv/bin/promtool" ]; then
        { [ "${FRAMEGATE_SYSTEM_PACKAGES:-yes}" != no ] && say "Unpacking prometheus into $venv" && unpack_prometheus; } ||
            say "Note: there is no promtool here, so the tests of the alert rules will be skipped. To run them: put promtool" \
                "and prometheus on the path (Debian, Ubuntu: they are in the package prometheus, which starts a service)"
    fi
    if ! command -v npm >/dev/null; then
        { apt_may_install && apt_install nodejs npm; } ||
            say "Note: there is no npm here, so the tests on Azurite will be skipped. To run them: apt install nodejs npm"
    fi
    if command -v npm >/dev/null; then
        install_node_packages || say "Note: npm could not install tests/node, so the tests on Azurite will be skipped."
    fi
}

# What the tests of deploy/ need beyond that.
install_deploy_tools() {
    if command -v go >/dev/null; then
        build_helm || say "Note: Helm could not be built from tests/deploy/go, so the tests of the chart will be skipped."
    else
        say "Note: there is no Go 1.26 or newer here, so the tests of the Helm chart, of the images and of compose are skipped."
    fi
}

# Helm out of its pinned sources: 5 to 10 minutes of a processor's time and 2 GB of Go's caches, once. `tests/chart.py` builds
# it too, where it is not here.
build_helm() {
    local key
    key=$(sha256sum tests/deploy/go/helm/go.sum | cut -c 1-16)
    [ ! -e ".tools/helm-$key" ] || return 0
    say "Building Helm (the first time takes minutes)"
    go build -C tests/deploy/go/helm -o "$root/.tools/helm.part" helm.sh/helm/v4/cmd/helm >/dev/null 2>&1 </dev/null &&
        mv "$root/.tools/helm.part" "$root/.tools/helm-$key"
}

install_node_packages() {
    local key
    key=$(sha256sum tests/node/package-lock.json | cut -d ' ' -f 1)
    [ "$(cat tests/node/node_modules/.installed 2>/dev/null || true)" != "$key" ] || return 0
    say "Installing tests/node (the first time takes a minute)"
    npm ci --prefix tests/node --no-audit --no-fund --loglevel=error --ignore-scripts >/dev/null 2>&1 </dev/null &&
        echo "$key" >tests/node/node_modules/.installed
}

# --- pinned requirements ----------------------------------------------------------------------------------------

# One resolution for every Python and platform; the smaller sets take their versions from the largest.
lock() {
    local tools=.venv-tools python compile
    if [ "$("$tools/bin/uv" --version 2>/dev/null | cut -d ' ' -f 2)" != "$uv_version" ]; then
        python=$(find_python)
        "$python" -m venv --clear "$tools"
        "$tools/bin/python" -m pip --disable-pip-version-check install --quiet "uv==$uv_version"
    fi
    compile=("$tools/bin/uv" pip compile --quiet --universal "--python-version=3.$oldest_minor" --generate-hashes --no-header)
    [ -z "${UPGRADE:-}" ] || compile+=(--upgrade)
    "${compile[@]}" pyproject.toml --extra dev --output-file requirements/dev.txt
    "${compile[@]}" pyproject.toml --constraint requirements/dev.txt --output-file requirements/base.txt
    "${compile[@]}" --group build --constraint requirements/dev.txt --output-file requirements/build.txt
    # The images' sets. TensorRT comes with NVIDIA's image, so only what is beside it is pinned here.
    "${compile[@]}" pyproject.toml --extra azure --extra s3 --extra spark --constraint requirements/dev.txt \
        --output-file requirements/trainer.txt
    "${compile[@]}" pyproject.toml --extra gpu --constraint requirements/dev.txt --no-emit-package tensorrt \
        --no-emit-package tensorrt-cu13 --no-emit-package tensorrt-cu13-bindings --no-emit-package tensorrt-cu13-libs \
        --output-file requirements/gpu.txt
    "${compile[@]}" --group gpu-build --constraint requirements/dev.txt --output-file requirements/gpu-build.txt
}

# Two makes in one checkout wait for each other; the lock is on the folder itself, so nothing is left behind.
exec 9<.
if command -v flock >/dev/null; then flock 9; fi

case "${1:-}" in
    base | dev) install_python_packages "$1" ;;
    system) install_system_packages ;;
    tests) install_system_packages && install_deploy_tools ;;
    lock) lock ;;
    *) fail "usage: .ci/setup.sh base|dev|system|tests|lock" ;;
esac
