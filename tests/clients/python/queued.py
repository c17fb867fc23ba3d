#!/usr/bin/env python3
"""Builds one function through the gateway's queue, and asks about the build by its ID.

    queued.py build IMAGE FOLDER | log ID | status ID | cancel ID

$OPENFAAS_URL is the gateway, $PAYLOAD_SECRET the file with the signing key. FOLDER is the build context. A request that is too
large for the queue is stored first: at $BUILDER_URL if that is set, otherwise through the gateway.
The log goes to the standard error. The last line of the standard output is what is known of the build. Exit code: 0 the image
was built (`log`, `status`, `cancel`: there was an answer); 1 it was not; 2 there was no answer.
"""

import datetime
import hmac
import http.client
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request

from build import make_tar

GATEWAY = os.environ["OPENFAAS_URL"].rstrip("/")
BUILDER = GATEWAY + "/function/builder-fn"
QUEUED_BYTES_MAX = 256_000


def sign(body):
    with open(os.environ["PAYLOAD_SECRET"], encoding="utf-8") as file:
        key = file.read().strip()
    return "sha256=" + hmac.new(key.encode(), body, "sha256").hexdigest()


def ask(method, path, accept="application/json"):
    """Sends a question, which has no body to sign."""
    at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    signature = sign(f"{method}\n{path}\n{at}".encode())
    headers = {"X-Signed-At": at, "X-Build-Signature": signature, "Accept": accept}
    return urllib.request.urlopen(urllib.request.Request(BUILDER + path, None, headers, method=method), timeout=60)


def post(url, body, media_type):
    headers = {"Content-Type": media_type, "X-Build-Signature": sign(body)}
    return urllib.request.urlopen(urllib.request.Request(url, body, headers))


def submit(image, folder):
    """Returns the ID of the build."""
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "request.tar")
        make_tar(path, {"image": image}, folder)
        with open(path, "rb") as file:
            body = file.read()
    media_type = "application/octet-stream"
    if len(body) > QUEUED_BYTES_MAX:
        with post(os.environ.get("BUILDER_URL", BUILDER) + "/contexts", body, media_type) as stored:
            context = json.load(stored)["context"]
        body = json.dumps({"image": image, "context": context}).encode()
        media_type = "application/json"
    with post(GATEWAY + "/async-function/builder-fn", body, media_type) as queued:
        return queued.headers["X-Call-Id"]


def follow(build_id):
    """Prints the log to its end. A lost connection continues at the next line; 404 means that no builder has the call yet."""
    next_line = 1
    while True:
        try:
            with ask("GET", f"/builds/{build_id}/log?from={next_line}", "text/event-stream") as log:
                for line in log:
                    if not line.startswith(b"data: "):
                        continue
                    record = json.loads(line[len(b"data: "):])
                    if record["status"] != "in_progress":
                        return
                    print(*record["log"], sep="\n", end="\n" if record["log"] else "", file=sys.stderr)
                    next_line = record["seq"] + 1
        except urllib.error.HTTPError as error:
            if error.code != 404 and error.code < 500:
                raise
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(1)


def status(build_id):
    """Returns what is known of the build. The builder may still deploy the image when the log has ended."""
    while True:
        with ask("GET", f"/builds/{build_id}") as answer:
            build = json.load(answer)
        if build["state"] not in ("waiting", "running", "deploying"):
            return build
        time.sleep(1)


def main(command, *arguments):
    if command == "log":
        return follow(arguments[0])
    if command in ("status", "cancel"):
        with ask("DELETE" if command == "cancel" else "GET", f"/builds/{arguments[0]}") as answer:
            print(answer.read().decode())
        return 0
    build_id = submit(*arguments)
    print(build_id, file=sys.stderr)
    follow(build_id)
    build = status(build_id)
    print(json.dumps(build))
    return 0 if build["state"] == "success" else 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
