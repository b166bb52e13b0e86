#!/usr/bin/env bash
# What a release consists of, in dist/, and whether it is sound. `make` calls it, with .venv in place.
#
#   .ci/release.sh build            wheel and sdist
#   .ci/release.sh sbom [IMAGE…]    a bill of materials (CycloneDX) for each image: every package it may hold, by hash
#   .ci/release.sh audit [OPTION…]  known vulnerabilities of every locked package; fails where one has some, and where
#                                   one could not be audited. OPTIONs are pip-audit's, for example --ignore-vuln ID
#   .ci/release.sh check            all of build and sbom, and the tests of what they made, strictly: see tests/test_release.py

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=.venv/bin
dist=${DIST:-dist}

say() { printf '%s\n' "$*" >&2; }

build() {
    rm -f "$dist"/framegate-*.whl "$dist"/framegate-*.tar.gz
    "$bin/hatchling" build -t sdist -t wheel -d "$dist"
}

# From the lock files, which are what the images are installed from; who needs whom does not stand in them. That they are
# valid is the tests' business, for it takes long.
sbom() {
    local image set
    [ $# -gt 0 ] || set -- cpu gpu trainer
    mkdir -p "$dist/sbom"
    for image in "$@"; do
        set=${image/cpu/base}
        "$bin/python" -W "ignore:The Component this BOM is describing:UserWarning" -m cyclonedx_py requirements \
            "requirements/$set.txt" --pyproject pyproject.toml --mc-type application --spec-version 1.6 \
            --output-reproducible --no-validate --output-format JSON --output-file "$dist/sbom/framegate-$image.cdx.json"
        say "$dist/sbom/framegate-$image.cdx.json"
    done
}

# Every version of every package, also of those that are only for another Python or machine than this one: pip-audit
# would leave them out without a word. It takes one version of a package at a time, so they are dealt out.
audit() {
    local hand
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    grep -hoE '^[a-z0-9._-]+==[^ ;]+' requirements/*.txt | sort -u |
        awk -F '==' -v folder="$folder" '{ print > (folder "/" ++times[$1] ".txt") }'
    say "Auditing $(cat "$folder"/*.txt | wc -l) locked versions of $(wc -l <"$folder/1.txt") packages"
    for hand in "$folder"/*.txt; do
        "$bin/pip-audit" --strict --no-deps --disable-pip --progress-spinner off --requirement "$hand" "$@"
    done
}

check() {
    build
    sbom
    FRAMEGATE_RELEASE=1 "$bin/python" -m pytest -q tests/test_release.py
}

case "${1:-}" in
    build | sbom | audit | check) "$@" ;;
    *)
        say "usage: .ci/release.sh build|sbom|audit|check"
        exit 2
        ;;
esac
