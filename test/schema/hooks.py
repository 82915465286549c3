"""What a schema cannot say of this API: which key is for which call, and rules that span requests."""

import os
import re
import uuid

import schemathesis

USABLE_KEY = re.compile(r"[ -~]{1,200}\Z")


@schemathesis.auth(cache_by_key=lambda case, context: "read" if is_read(case) else "ingest")
class Bearer:
    """The timeline is read with a key of another scope."""

    def get(self, case, context):
        return os.environ["READ_KEY" if is_read(case) else "INGEST_KEY"]

    def set(self, case, key, context):
        case.headers["Authorization"] = f"Bearer {key}"


def is_read(case):
    return case.path.startswith("/api/v1/timeline/")


def is_positive(case):
    return case.meta is not None and case.meta.generation.mode.is_positive


def holders(body):
    """The events of a body, or its snapshot."""
    if not isinstance(body, dict):
        return []
    return body["events"] if isinstance(body.get("events"), list) else [body]


def actors(body):
    """Every actor of a body of events or of a snapshot."""
    return [one["actor"] for one in holders(body) if isinstance(one, dict) and isinstance(one.get("actor"), dict)]


def without_nulls(value):
    if value is None:
        return []
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items()}
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    # An Idempotency-Key belongs to one request: two cases with the same key are a mistake of the caller. A key that is
    # not valid stays as it is.
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and USABLE_KEY.match(key) and key.strip():
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    if not is_positive(case):
        # An optional member that is null counts as left out; a list is wrong in its place, too.
        case.body = without_nulls(case.body)
        return
    # A time of the future is refused, which no schema can say.
    for holder in holders(case.body):
        if isinstance(holder, dict) and "timestamp" in holder:
            holder["timestamp"] = "2026-04-19T12:05:00Z"
    # These are checked against what is stored, and against each other.
    for name in ("workerId", "startTime", "endTime"):
        if case.query and name in case.query:
            del case.query[name]
    # A page token is one that the service gave out; no schema tells how to make one.
    if case.query and "pageToken" in case.query:
        del case.query["pageToken"]
    # An actor without any id fits the schema, and its event is rejected on its own.
    for actor in actors(case.body):
        if not {"workerId", "externalId", "email"} & actor.keys():
            actor["externalId"] = "somebody"
