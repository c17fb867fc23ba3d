#!/bin/sh
# Builds, deploys and calls a sample function, with the programs of BuildKit's image.
#
#   GATEWAY      the gateway's URL, http://HOST:PORT or https://HOST:PORT
#   GATEWAY_CA   a file with the authority of a gateway with https; if unset, the system's authorities
#   BUILDER      the name of the function that builds
#   IMAGE        the name of the image, with its tag
#   FUNCTION     the name of the function that is deployed
#   BASE_IMAGE   an image with busybox
#   KEY_FILE     the file with the key that signs the build (default: /var/run/sample/key)
set -eu
key=$(tr -d '[:space:]' <"${KEY_FILE:-/var/run/sample/key}")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
text="built by slipway at $(date -u +%Y-%m-%dT%H:%M:%SZ)"

authority=${GATEWAY#*://}
authority=${authority%%/*}
host=${authority%:*}
port=${authority##*:}
case $authority in
*:*) ;;
*) case $GATEWAY in https:*) port=443 ;; *) port=80 ;; esac ;;
esac

# The gateway ends a call whose client closes its half of the connection, so that stays open until the response is there.
keep_open() {
    cat
    until [ -e "$dir/answered" ]; do sleep 1; done
}

# exchange: sends the request on standard input, and writes the response into $dir/response
exchange() {
    rm -f "$dir/answered"
    case $GATEWAY in
    https:*)
        openssl s_client -quiet -verify_return_error -verify_hostname "$host" -servername "$host" \
            ${GATEWAY_CA:+-CAfile "$GATEWAY_CA"} -connect "$host:$port" 2>"$dir/tls" >"$dir/raw" || {
            cat "$dir/tls" >&2
            return 1
        }
        tr -d '\r' <"$dir/raw" >"$dir/response"
        ;;
    *)
        keep_open | {
            nc "$host" "$port" | tr -d '\r' >"$dir/response"
            : >"$dir/answered"
        }
        ;;
    esac
}
status() { sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p' "$dir/response"; }
body() { sed '1,/^$/d' "$dir/response"; }

umask 022
mkdir -p "$dir/tar/context/www/_"
cat >"$dir/tar/com.openfaas.docker.config" <<EOF
{"image": "$IMAGE", "deploy": {"service": "$FUNCTION"}, "probe": {"path": "/index.html"}}
EOF
cat >"$dir/tar/context/Dockerfile" <<EOF
FROM $BASE_IMAGE
COPY www /www
USER 12000
EXPOSE 8080
CMD ["busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
EOF
echo "$text" >"$dir/tar/context/www/index.html"
# The paths of faas-netes' probes.
for probe in health ready; do echo OK >"$dir/tar/context/www/_/$probe"; done
tar -cf "$dir/fn.tar" -C "$dir/tar" com.openfaas.docker.config context
signature=$(openssl dgst -sha256 -hmac "$key" -r "$dir/fn.tar" | cut -d' ' -f1)

echo "building $IMAGE through $GATEWAY/function/$BUILDER"
{
    printf 'POST /function/%s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/octet-stream\r\n' "$BUILDER" "$authority"
    printf 'X-Build-Signature: sha256=%s\r\nContent-Length: %s\r\n\r\n' "$signature" "$(wc -c <"$dir/fn.tar")"
    cat "$dir/fn.tar"
} | exchange
body
echo
if [ "$(status)" != 200 ]; then
    echo "the build failed: the builder answered with the status $(status)" >&2
    exit 1
fi

echo "calling $GATEWAY/function/$FUNCTION"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    printf 'GET /function/%s/index.html HTTP/1.0\r\nHost: %s\r\n\r\n' "$FUNCTION" "$authority" | exchange
    if [ "$(status)" = 200 ] && [ "$(body)" = "$text" ]; then
        echo "the function answers: $text"
        exit 0
    fi
    sleep 2
done
echo "the function does not answer with its page; the last response was:" >&2
cat "$dir/response" >&2
exit 1
