#!/bin/sh
# Builds one function whose context is a tar on a web server.
#
#   context-url.sh IMAGE URL TAR
#
# TAR is the file that the server sends for URL; only its SHA-256 is used. $BUILD_URL receives the build, $BUILDER_URL/build by
# default; http://GATEWAY/async-function/builder-fn sends it to the queue. $PAYLOAD_SECRET is the file with the signing key.
# Prints the answer to the build. Exit code: 0 unless the request fails, then curl's 22.
set -eu

IMAGE=$1 URL=$2 tar=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sha256=$(sha256sum <"$tar" | cut -d' ' -f1)
printf '{"image":"%s","context":{"url":"%s","sha256":"%s"}}' "$IMAGE" "$URL" "$sha256" >"$work/req.json"

signature=$(openssl dgst -sha256 -hmac "$(cat "$PAYLOAD_SECRET")" <"$work/req.json" | sed -e 's/^.* //')
curl --silent --show-error --fail-with-body -H "X-Build-Signature: sha256=$signature" \
  -H "Content-Type: application/json" --data-binary "@$work/req.json" "${BUILD_URL:-${BUILDER_URL%/}/build}"
