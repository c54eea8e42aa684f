#!/bin/sh
# Prints the digests of the images that are not built here, as lines for infra/.env: `sh infra/digests.sh >> infra/.env`.
# What a tag means today is looked up once and then stays; look again to take what is newer. Needs docker with buildx.
set -eu
folder=$(dirname "$0")

digest() {  # of the image NAME:TAG that a file names
  image=$(sed -n "s|.*[ :]\($2:[^@ ]*\)@\${$1.*|\1|p" "$folder/$3" | head -n 1)
  found=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
  printf '%s=%s\n' "$1" "$found"
}

digest POSTGRES_DIGEST postgres compose.yaml
digest SEAWEEDFS_DIGEST chrislusf/seaweedfs compose.yaml
digest PYTHON_DIGEST python docker/Dockerfile
