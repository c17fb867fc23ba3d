#!/bin/sh
# Renews the certificates of daemon and builder in their secrets, once less than a third of their time is left.
#
#   ACCOUNT                       the folder with the service account's token (default: Kubernetes's)
#   DAYS                          how long certificates are valid
#   AUTHORITY, DAEMON, CLIENT     the secrets, as NAMESPACE/NAME
#   DAEMON_NAMES, CLIENT_NAMES    the names in the certificates, separated by commas
#
# The authority keeps its key and its name: old and new certificates are valid under the old and the new authority. The
# kubelet brings renewed secrets into the pods; the daemon restarts once no build runs.
set -eu
umask 077
account=${ACCOUNT:-/var/run/secrets/kubernetes.io/serviceaccount}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
third=$((DAYS * 86400 / 3))

fail() {
    echo "$*" >&2
    exit 1
}

# api METHOD SECRET [FILE]: sends a request about a secret, with the body in FILE, and leaves the answer in the file `answer`
api() {
    body=${3-/dev/null}
    path=/api/v1/namespaces/${2%/*}/secrets/${2#*/}
    host=$KUBERNETES_SERVICE_HOST
    case $host in *:*) host="[$host]" ;; esac
    {
        printf '%s %s HTTP/1.0\r\nHost: kubernetes.default.svc\r\n' "$1" "$path"
        printf 'Authorization: Bearer %s\r\nAccept: application/json\r\n' "$(cat "$account/token")"
        printf 'Content-Type: application/merge-patch+json\r\nContent-Length: %s\r\n\r\n' "$(wc -c <"$body" | tr -d ' ')"
        cat "$body"
    } | openssl s_client -quiet -verify_quiet -verify_return_error -CAfile "$account/ca.crt" \
        -servername kubernetes.default.svc -verify_hostname kubernetes.default.svc \
        -connect "$host:$KUBERNETES_SERVICE_PORT" 2>errors | tr -d '\r' >response || fail "$1 $path: $(cat errors)"
    status=$(sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p' response)
    sed '1,/^$/d' response | tr -d '\n' >answer
    [ "$status" = 200 ] || fail "$1 $path: status ${status:-none}: $(sed -n 's/.*"message": *"\([^"]*\)".*/\1/p' answer)$(cat errors)"
}

# entry NAME: prints an entry of the object in `answer`
entry() { sed -n "s/.*[{,] *\"$1\": *\"\([^\"]*\)\".*/\1/p" answer; }

# load SECRET FOLDER: writes the files of a secret, and its version
load() {
    api GET "$1"
    mkdir "$2"
    for file in ca.crt tls.crt tls.key; do entry "$file" | openssl base64 -d -A >"$2/$file"; done
    entry resourceVersion >"$2/version"
}

# due FOLDER: whether the certificate has less than a third of its time left, or is none
due() { ! openssl x509 -in "$1/tls.crt" -noout -checkend "$third" >/dev/null 2>&1; }

# store SECRET FOLDER NAMES: puts the files into the secret, unless it has changed since `load`
store() {
    {
        printf '{"metadata":{"resourceVersion":"%s","annotations":' "$(cat "$2/version")"
        printf '{"slipway/not-after":"%s","slipway/names":"%s"}},"data":{' "$(($(date +%s) + DAYS * 86400))" "$3"
        for file in ca.crt tls.crt; do
            [ ! -s "$2/$file" ] || printf '"%s":"%s",' "$file" "$(openssl base64 -A -in "$2/$file")"
        done
        printf '"tls.key":"%s"}}' "$(openssl base64 -A -in "$2/tls.key")"
    } >patch
    api PATCH "$1" patch
    echo "renewed $1"
}

# leaf SECRET USAGE NAMES: renews a certificate that the authority signs
leaf() {
    folder=$2
    load "$1" "$folder"
    # An authority that was renewed alone, because a run ended early, comes with the next certificate.
    if ! due "$folder" && cmp -s "$folder/ca.crt" authority/tls.crt; then
        return
    fi
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$folder/tls.key" 2>errors || fail "$(cat errors)"
    {
        printf 'basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\nextendedKeyUsage = %s\n' "$2"
        printf 'subjectAltName = DNS:%s\n' "$(echo "$3" | sed 's/,/, DNS:/g')"
    } >extensions
    openssl req -new -key "$folder/tls.key" -config request -subj "/O=slipway/CN=$2" -out signing 2>errors || fail "$(cat errors)"
    openssl x509 -req -in signing -CA authority/tls.crt -CAkey authority/tls.key -set_serial "0x$(openssl rand -hex 16)" \
        -days "$DAYS" -extfile extensions -out "$folder/tls.crt" 2>errors || fail "$(cat errors)"
    cp authority/tls.crt "$folder/ca.crt"
    store "$1" "$folder" "$3"
}

printf '[req]\ndistinguished_name = subject\n[subject]\n' >request
load "$AUTHORITY" authority
[ -s authority/tls.crt ] && [ -s authority/tls.key ] || fail "the secret $AUTHORITY has no authority; an upgrade of the release makes one"
if due authority; then
    openssl x509 -in authority/tls.crt -signkey authority/tls.key -days "$DAYS" -out renewed 2>errors || fail "$(cat errors)"
    mv renewed authority/tls.crt
    store "$AUTHORITY" authority ""
fi
leaf "$DAEMON" serverAuth "$DAEMON_NAMES"
leaf "$CLIENT" clientAuth "$CLIENT_NAMES"
