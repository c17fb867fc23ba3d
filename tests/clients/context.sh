#!/bin/sh
# Builds one function whose context is too large for a queue's message: stores the tar, and refers to it.
#
#   context.sh IMAGE FOLDER
#
# FOLDER is the build context. $BUILDER_URL is the builder's URL, without a path; it stores the tar. $BUILD_URL receives the
# build, $BUILDER_URL/build by default; http://GATEWAY/async-function/builder-fn sends it to the queue. $PAYLOAD_SECRET is the
# file with the signing key. Prints the answer to the build. Exit code: 0 unless a request fails, then curl's 22.
set -eu

IMAGE=$1 folder=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/build"
cp -a "$folder" "$work/build/context"
tar -C "$work/build" -cf "$work/context.tar" context

signature=$(openssl dgst -sha256 -hmac "$(cat "$PAYLOAD_SECRET")" <"$work/context.tar" | sed -e 's/^.* //')
curl --silent --show-error --fail-with-body -H "X-Build-Signature: sha256=$signature" \
  -T "$work/context.tar" -X POST "${BUILDER_URL%/}/contexts" -o "$work/stored.json" || { cat "$work/stored.json"; exit 22; }
context=$(sed -e 's/.*"context":\({[^}]*}\).*/\1/' "$work/stored.json")
printf '{"image":"%s","context":%s}' "$IMAGE" "$context" >"$work/req.json"

signature=$(openssl dgst -sha256 -hmac "$(cat "$PAYLOAD_SECRET")" <"$work/req.json" | sed -e 's/^.* //')
curl --silent --show-error --fail-with-body -H "X-Build-Signature: sha256=$signature" \
  -H "Content-Type: application/json" --data-binary "@$work/req.json" "${BUILD_URL:-${BUILDER_URL%/}/build}"
