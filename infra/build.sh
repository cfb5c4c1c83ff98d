#!/usr/bin/env bash
# Build both images: asymflow:VERSION-cuda and asymflow:VERSION-cpu. Arguments go to `docker build`.
#
#   REPOSITORY=registry.example/team/asymflow infra/build.sh --push
#
# PyTorch's wheels on the usual index carry CUDA on x86-64. CPU_WHEELS names the index of those without, and makes the
# smaller image some gigabytes smaller still.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

repository=${REPOSITORY:-asymflow}
version=$(sed -nE 's/^version = "(.*)"/\1/p' pyproject.toml)
commit=$(git rev-parse HEAD)
git diff --quiet HEAD || commit+=-changed

build() { # TAG [OPTION ...]
    local image=$repository:$1
    shift
    docker build --file infra/Dockerfile --tag "$image" --build-arg IMAGE="$image" --build-arg COMMIT="$commit" "$@" .
}

build "$version-cuda" "$@"
build "$version-cpu" --build-arg BASE=ubuntu:24.04 --build-arg EXTRAS=cluster,demo,server \
    --build-arg WHEELS="${CPU_WHEELS:-}" "$@"
