#!/bin/sh
# Builds one function with the steps of OpenFaaS's documentation: tar, openssl, curl.
#
#   curl.sh IMAGE FOLDER [CONFIG-JSON] [curl's own arguments …]
#
# FOLDER is the build context. CONFIG-JSON replaces {"image":"IMAGE"}. A file com.openfaas.secrets in the current
# folder is packed too. $BUILDER_URL is the builder's URL without "/build", $PAYLOAD_SECRET the file with the signing
# key. ACCEPT=application/x-ndjson streams records during the build.
# Prints the answer as it arrives. Exit code: 0 the image was built; 1 the answer reports a failure; 22 (from curl) an
# HTTP error.
set -eu

image=$1 folder=$2
config=${3:-"{\"image\": \"$image\"}"}
if [ $# -gt 3 ]; then shift 3; else shift $#; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/build"
cp -a "$folder" "$work/build/context"
if [ -f com.openfaas.secrets ]; then cp com.openfaas.secrets "$work/build/"; fi
printf '%s' "$config" >"$work/build/com.openfaas.docker.config"

# All names start with ./, and the first entry is the folder itself.
tar -C "$work/build" --exclude=req.tar -cf "$work/req.tar" .

hmac=$(openssl dgst -sha256 -hmac "$(cat "$PAYLOAD_SECRET")" <"$work/req.tar" | sed -e 's/^.* //')

{
  curl --silent --show-error --no-buffer --fail-with-body \
    -H "X-Build-Signature: sha256=$hmac" ${ACCEPT:+-H "Accept: $ACCEPT"} "$@" \
    -X POST --data-binary "@$work/req.tar" "${BUILDER_URL%/}/build" && code=0 || code=$?
  echo "$code" >"$work/code"
} | tee "$work/answer"
code=$(cat "$work/code")
if [ "$code" -ne 0 ]; then exit "$code"; fi
# The last record is the result. Quotation marks in a log line would be escaped.
tail -n 1 "$work/answer" | grep -Eq '"status": ?"success"'
