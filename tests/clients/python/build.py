#!/usr/bin/env python3
"""Builds one function like the published Python example: shrinkwrap, tar, HMAC, POST.

    build.py --image IMAGE --handler FOLDER [--lang TEMPLATE] [--build-arg NAME=VALUE]

With --lang, faas-cli ($FAAS_CLI) lays out the context from ./template. The current folder must not contain a
stack.yaml, which faas-cli would use instead of its flags. Without --lang, FOLDER is the context.
$BUILDER_URL is the builder's URL without "/build", $PAYLOAD_SECRET the file with the signing key.
Prints one line of JSON. Exit code: 0 the image was built; 1 a JSON answer reports a failure; 2 there was no answer,
or none in JSON.
"""

import argparse
import hmac
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request


def shrinkwrap(image, handler, lang):
    command = [os.environ.get("FAAS_CLI", "faas-cli"), "build", "--shrinkwrap"]
    command += ["--lang", lang, "--handler", handler, "--name", "context", "--image", image]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return os.path.join("build", "context")


def make_tar(path, config, context):
    """Packs the tar: config first, and a PAX header for every entry, because times have fractions of a second."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, tarfile.open(path, "w") as tar:
        json.dump(config, file)
        file.flush()
        tar.add(file.name, arcname="com.openfaas.docker.config")
        tar.add(context, arcname="context")


def call_builder(path):
    with open(os.environ["PAYLOAD_SECRET"], encoding="utf-8") as file:
        key = file.read().strip()
    with open(path, "rb") as file:
        body = file.read()
    digest = hmac.new(key.encode(), body, "sha256").hexdigest()
    headers = {"X-Build-Signature": f"sha256={digest}", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(os.environ["BUILDER_URL"].rstrip("/") + "/build", body, headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def main():
    parser = argparse.ArgumentParser(description="Builds one function.")
    parser.add_argument("--image", required=True)
    parser.add_argument("--handler", required=True, help="folder of the handler; without --lang, the context")
    parser.add_argument("--lang", help="template to use")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()

    handler = os.path.abspath(args.handler)
    context = shrinkwrap(args.image, handler, args.lang) if args.lang else handler
    config = {"image": args.image, "buildArgs": dict(arg.split("=", 1) for arg in args.build_arg)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "req.tar")
        make_tar(path, config, context)
        http, body = call_builder(path)

    try:
        result = json.loads(body)
    except ValueError:
        print(json.dumps({"http": http, "error": body.decode(errors="replace")}))
        return 2
    line = {key: result[key] for key in ("status", "image", "error") if key in result}
    print(json.dumps({"http": http, **line, "log_lines": len(result.get("log") or [])}))
    return 0 if http == 200 and result.get("status") == "success" else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
