#!/bin/sh
# Builds one function through the gateway's queue, and asks about the build by its ID.
#
#   queued.sh build IMAGE FOLDER | wait ID | log ID | status ID | cancel ID
#
# $OPENFAAS_URL is the gateway, $PAYLOAD_SECRET the file with the signing key. FOLDER is the build context. A request that is
# too large for the queue is stored first: at $BUILDER_URL if that is set, otherwise through the gateway. The queue posts the
# answer to $CALLBACK_URL if that is set.
# `build` and `wait` print the records of the log to the standard error, `build` after the ID. The last line of the standard
# output is what is known of the build. Exit code: 0 the image was built (`log`, `status`, `cancel`: there was an answer); 1 it
# was not; 22 (from curl) an HTTP error.
set -eu

builder="${OPENFAAS_URL%/}/function/builder-fn"
queue="${OPENFAAS_URL%/}/async-function/builder-fn"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sign() { openssl dgst -sha256 -hmac "$(cat "$PAYLOAD_SECRET")" | sed -e 's/^.* //'; }

# ask METHOD PATH [curl's own arguments …] sends a question, which has no body to sign.
ask() {
  method=$1 path=$2 && shift 2
  at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
  signature=$(printf '%s\n%s\n%s' "$method" "$path" "$at" | sign)
  curl --silent --show-error --fail-with-body --speed-time 60 --speed-limit 1 --request "$method" "$builder$path" \
    -H "X-Signed-At: $at" -H "X-Build-Signature: sha256=$signature" "$@"
}

# post FILE URL [curl's own arguments …] sends a signed body.
post() {
  body=$1 url=$2 && shift 2
  curl --silent --show-error --fail-with-body -X POST --data-binary "@$body" "$url" \
    -H "X-Build-Signature: sha256=$(sign <"$body")" "$@"
}

# The gateway passes events on at once, and other streams when they are complete. It answers 404 until a builder has the call.
follow() {
  until ask GET "/builds/$1" >/dev/null 2>&1; do sleep 1; done
  ask GET "/builds/$1/log?from=1" --no-buffer -H 'Accept: text/event-stream' | sed -n 's/^data: //p'
}

build() {
  mkdir "$work/build"
  cp -a "$2" "$work/build/context"
  printf '{"image":"%s"}' "$1" >"$work/build/com.openfaas.docker.config"
  tar -C "$work/build" -cf "$work/request" .
  type=application/octet-stream
  if [ "$(wc -c <"$work/request")" -gt 256000 ]; then
    post "$work/request" "${BUILDER_URL:-$builder}/contexts" -H "Content-Type: $type" >"$work/stored.json"
    context=$(sed -e 's/.*"context":\({[^}]*}\).*/\1/' "$work/stored.json")
    printf '{"image":"%s","context":%s}' "$1" "$context" >"$work/request"
    type=application/json
  fi
  post "$work/request" "$queue" -H "Content-Type: $type" ${CALLBACK_URL:+-H "X-Callback-Url: $CALLBACK_URL"} -D "$work/head"
  id=$(tr -d '\r' <"$work/head" | sed -n 's/^[Xx]-[Cc]all-[Ii]d: //p')
  echo "$id" >&2
  wait_for_end "$id"
}

# The builder may still deploy the image when the log has ended.
wait_for_end() {
  follow "$1" >&2
  while ask GET "/builds/$1" >"$work/build.json" && grep -Eq '"state": *"(waiting|running|deploying)"' "$work/build.json"; do
    sleep 1
  done
  cat "$work/build.json"
  grep -q '"state": *"success"' "$work/build.json"
}

case $1 in
  build) build "$2" "$3" ;;
  wait) wait_for_end "$2" ;;
  log) follow "$2" ;;
  status) ask GET "/builds/$2" ;;
  cancel) ask DELETE "/builds/$2" ;;
esac
