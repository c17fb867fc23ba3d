#!/bin/sh
# Builds a function of a stack file through the gateway's queue with faas-cli, in the folder of the stack file.
#
#   queued-faas-cli.sh STACK-FILE FUNCTION IMAGE
#
# $FAAS_CLI (default faas-cli) is faas-cli, $OPENFAAS_URL the gateway, $PAYLOAD_SECRET the file with the signing key. Prints
# what is known of the build, and its log to the standard error. Exit code: 0 the image was built; 1 it was not.
set -eu

stack=$1 function=$2 image=$3
faas_cli=${FAAS_CLI:-faas-cli}
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$faas_cli" build --shrinkwrap -f "$stack" --filter "$function" >&2
cp -a "build/$function" "$work/context"
printf '{"image":"%s"}' "$image" >"$work/com.openfaas.docker.config"
tar -C "$work" -cf "$work/request.tar" context com.openfaas.docker.config
signature=$(openssl dgst -sha256 -hmac "$(cat "$PAYLOAD_SECRET")" <"$work/request.tar" | sed -e 's/^.* //')

# faas-cli does not print the ID of the 202, so the caller chooses it.
id=$(openssl rand -hex 16)
"$faas_cli" invoke builder-fn --async --gateway "$OPENFAAS_URL" --content-type application/octet-stream \
  -H "X-Call-Id=$id" -H "X-Build-Signature=sha256=$signature" <"$work/request.tar" >&2

"$here/queued.sh" wait "$id"
