"""Hooks for schemathesis that pack and sign request bodies, and parse streamed records.

For the description, a body is any bytes. The hooks pack some generated bodies into a tar, as config or as Dockerfile,
replace most by a tar of their own, and sign most, so that all answers in the description occur and are compared with
it.
"""

import datetime
import hashlib
import hmac
import io
import json
import os
import re
import tarfile

import requests
import schemathesis
from schemathesis.core.transport import DEFAULT_MAX_STREAM_EVENTS
import yaml

KEY = open(os.environ["PAYLOAD_SECRET"], "rb").read().strip()
IMAGE = os.environ["IMAGE"]
# Gets a line for each answer: method, path, the media type of the request, status, and the media type of the answer.
ANSWERS = open(os.environ["ANSWERS"], "a", encoding="utf-8")

# Config keys to combine with image and skipPush, each as one config.
CONFIGS = [
    {},
    {"platforms": [""], "buildArgs": {"ADDITIONAL_PACKAGE": ""}},
    {"platforms": ["linux/amd64", "linux/arm64"], "tags": ["2"], "labels": {"a": "b"}},
    {"noCache": True, "timeout": "1m", "notAfter": "2099-01-01T00:00:00Z", "provenance": "max"},
    {"target": "no-such-stage"},
    {"unheard-of": 1},
    {"image": ""},
    {"image": 1},
    {"buildArgs": {"BUILDKIT_SYNTAX": "x"}},
    {"platforms": "linux/amd64"},
    {"notAfter": "2001-01-01T00:00:00Z"},
    {"submittedAt": "2099-01-01T00:00:00Z"},
    {"supersede": "no"},
    {"noCache": None, "tags": None, "labels": {"a": None}, "target": ""},
    {"timeout": "soon"},
    {"deploy": {"service": "x", "image": "y"}},
    {"sbom": True},
    # The builder connects to no private address.
    {"notify": "https://127.0.0.1/none"},
    # Nor has it a token for any forge.
    {"commitStatus": {"github": "acme/hello", "commit": "0" * 40}},
]
# All described keys, except those that need a deployer, a receiver or a token.
EVERY = {
    "image": IMAGE,
    "buildArgs": {"A": ""},
    "platforms": ["linux/amd64"],
    "skipPush": True,
    "tags": ["2"],
    "target": "0",
    "dockerfile": "Dockerfile",
    "labels": {"a": "b"},
    "noCache": False,
    "cacheFrom": [],
    "cacheTo": [],
    "compression": "gzip",
    "compressionLevel": 1,
    "provenance": False,
    "sbom": False,
    "timeout": "1m",
    "notAfter": "2099-01-01T00:00:00Z",
    "submittedAt": "2026-01-01T00:00:00Z",
    "supersede": False,
}
CONFIGS.append(EVERY)
with open(os.environ["DESCRIPTION"], encoding="utf-8") as file:
    DESCRIBED = yaml.safe_load(file)["components"]["schemas"]["BuildConfig"]["properties"]
assert set(EVERY) | {"deploy", "probe", "notify", "commitStatus"} == set(DESCRIBED), set(EVERY) ^ set(DESCRIBED)

ACCEPT = ["*/*", "application/json", "application/x-ndjson", "text/event-stream"]


def pack(config, dockerfile):
    """Returns the tar of a build request with this config and Dockerfile, and one more file in the context."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in [("com.openfaas.docker.config", config), ("context/Dockerfile", dockerfile), ("context/a", b"a")]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def sign(body):
    return "sha256=" + hmac.new(KEY, body, "sha256").hexdigest()


def store_context():
    """Stores a context, and returns the reference to it."""
    body = pack(b"{}", b"FROM scratch\nCOPY a /a\n")
    answer = requests.post(os.environ["BUILDER_URL"] + "/contexts", body, headers={"X-Build-Signature": sign(body)}, timeout=60)
    assert answer.status_code == 201, answer.text
    return answer.json()["context"]


# The number of builds that questions are about.
KNOWN_BUILDS = 8


def known_id(number):
    """Returns one of the IDs of builds that questions are about."""
    return f"openapi-{number % KNOWN_BUILDS}"


def send_known_builds():
    """Sends builds that succeed, fail and are rejected, so that questions find some."""
    for number in range(KNOWN_BUILDS):
        config = {"image": IMAGE, "skipPush": True} | CONFIGS[number]
        body = pack(json.dumps(config).encode(), b"FROM scratch\nCOPY a /a\n")
        headers = {"X-Build-Signature": sign(body), "X-Call-Id": known_id(number)}
        requests.post(os.environ["BUILDER_URL"] + "/build", body, headers=headers, timeout=60)


CONTEXT = store_context()
send_known_builds()


def hash_of(content):
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big")


def sign_question(case):
    """Signs a question about builds, if the generator sends both headers of a signature in their described forms."""
    number = hash_of(repr((case.path_parameters, case.query, case.headers)).encode())
    # Most generated IDs are those of no build.
    if "id" in (case.path_parameters or {}) and number % 4:
        case.path_parameters["id"] = known_id(number // 4)
    headers = dict(case.headers or {})
    if case.path.endswith("/log"):
        headers["Accept"] = ["text/plain", "application/x-ndjson", "text/event-stream"][number % 3]
    sent = {name.lower(): str(value) for name, value in headers.items()}
    is_signed = re.fullmatch("sha256=[0-9A-Fa-f]{64}", sent.get("x-build-signature", ""))
    if is_signed and re.match(r"\d{4}-\d\d-\d\d[Tt]", sent.get("x-signed-at", "")):
        headers = {name: value for name, value in headers.items() if name.lower() not in ("x-signed-at", "x-build-signature")}
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        url = requests.Request("GET", "http://x" + case.formatted_path, params=case.query).prepare()
        text = f"{case.method.upper()}\n{url.path_url}\n{now}"
        headers["X-Signed-At"] = now
        headers["X-Build-Signature"] = sign(text.encode())
    case.headers = headers


@schemathesis.hook
def before_call(context, case, kwargs):
    """Signs a question, or packs and signs the body of a build request in the way that a hash of the body selects."""
    if case.path.startswith("/builds"):
        return sign_question(case)
    if case.method.upper() != "POST" or case.path not in ("/", "/build", "/contexts"):
        return
    is_json = case.media_type == "application/json"
    if is_json:
        context = case.body.get("context") if isinstance(case.body, dict) else None
        if isinstance(context, dict) and isinstance(context.get("oci"), str) and "@" in context["oci"]:
            # The generator's registries lead nowhere. This one answers that the context is not there.
            context["oci"] = IMAGE.split("/")[0] + "/none@" + context["oci"].split("@")[1]
        if isinstance(context, dict) and isinstance(context.get("url"), str):
            # Nor do its servers. The builder connects to none at a private address.
            context["url"] = "https://127.0.0.1/none"
        if isinstance(case.body, dict) and isinstance(case.body.get("notify"), str):
            case.body["notify"] = "https://127.0.0.1/none"
        git = context.get("git") if isinstance(context, dict) else None
        if isinstance(git, dict) and isinstance(git.get("repository"), str):
            git["repository"] = "https://127.0.0.1/none.git"
        # The generator's invalid JSON is bytes already.
        generated = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
    else:
        generated = case.body if isinstance(case.body, bytes) else str(case.body).encode()
    # Most generated bodies of one media type are the same, and their headers are not.
    varied = sorted((case.headers or {}).items(), key=str)
    number = hash_of(generated + repr((case.path, case.query, varied)).encode())
    way, which = number % 8, number // 8
    config = {"image": IMAGE, "skipPush": True} | CONFIGS[which % len(CONFIGS)]
    if is_json and way == 0:
        # The context of hardly any generated request can be built.
        generated = json.dumps(config | {"context": CONTEXT}).encode()
    config = json.dumps(config).encode()
    body = generated if is_json else {
        0: generated,
        1: pack(generated, b"FROM scratch\n"),
        2: pack(config, generated),
    }.get(way, pack(config, b"FROM scratch\nCOPY a /a\n"))
    case.body = body
    headers = dict(case.headers or {})
    # Another digit than the one that chose the config, so that each config meets each form of answer.
    headers["Accept"] = ACCEPT[which // len(CONFIGS) % len(ACCEPT)]
    # Sign only if the generator sends a signature header; with way 7, keep its own signature, which the builder rejects.
    if any(name.lower() == "x-build-signature" for name in headers) and way != 7:
        headers["X-Build-Signature"] = sign(body)
    # A call that came from the queue is tried again for minutes after failures of the platform.
    case.headers = {name: value for name, value in headers.items() if name.lower() != "x-start-time" or "," not in value}


def parse_records(content, before, after, read_at_most=float("inf")):
    """Returns a stream's records, and checks the order that clients expect: progress, then one terminal record. Of a longer
    stream, only the first `read_at_most` records were read."""
    parts = content.split(after)
    assert parts.pop() == b"", "the last record has no terminator"
    found = [json.loads(part.removeprefix(before)) for part in parts]
    assert all(record["status"] == "in_progress" for record in found[:-1]), found
    assert found[-1]["status"] in ("success", "failed") or len(found) >= read_at_most, found
    return found


@schemathesis.deserializer("application/x-ndjson")
def records(context, response):
    """Returns the terminal record of a stream, which is compared with the description."""
    # The description is of a single record. The terminal one has the most fields.
    return parse_records(response.content, b"", b"\n")[-1]


@schemathesis.hook
def after_call(context, case, response):
    """Fails if an answer as events has a wrong order of records, or if a described key of a config was ignored."""
    media_type = response.headers.get("content-type", [""])[0].split(";")[0]
    print(case.method.upper(), case.path, case.media_type, response.status_code, media_type, file=ANSWERS, flush=True)
    if "text/event-stream" in response.headers.get("content-type", [""])[0]:
        parse_records(response.content, b"data: ", b"\n\n", DEFAULT_MAX_STREAM_EVENTS)
    if case.method.upper() != "POST" or case.media_type == "application/json":
        # The generator adds keys of its own to a JSON request, and questions about builds are answered with the warnings of
        # such requests.
        return
    # The builder must not ignore a key that is in the description.
    for line in response.content.decode(errors="replace").split('"'):
        # A generated time may be far ahead.
        is_time = "nanoseconds since 1970" in line
        assert "is ignored" not in line or is_time or "unheard-of" in response.text, line
