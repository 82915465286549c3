"""Sends two events over gRPC, retries until the service has answered, and prints each event's result."""
import os
import random
import sys
import time
import uuid

import grpc

sys.path.insert(0, "gen/python")
from google.rpc import error_details_pb2, status_pb2
from ingest.v1 import ingest_pb2, ingest_pb2_grpc

actor = ingest_pb2.Actor(external_id="crm-user-42")
batch = ingest_pb2.EventsRequest(events=[
    ingest_pb2.Event(event_type=event_type, category="EVENT_CATEGORY_PROJECT_MANAGEMENT", actor=actor)
    for event_type in ("ticket.resolved", "deploy.finished")
])


def retry_delay(error, tries):
    """Seconds until the next try; None where a retry cannot help."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    info = error_details_pb2.RetryInfo()
    if any(detail.Unpack(info) for detail in status.details):
        return info.retry_delay.ToSeconds()
    # The connection broke, or no answer came in time.
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return 0.2 * 2**tries * random.uniform(0.5, 1.5)
    return None


def send(stub):
    # The same key on every try: the service stores the batch once, however often it arrives.
    metadata = [("authorization", f"Bearer {os.environ['WEPEOPLE_API_KEY']}"), ("idempotency-key", str(uuid.uuid4()))]
    for tries in range(1, 7):
        try:
            return stub.Events(batch, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            seconds = retry_delay(error, tries)
            if seconds is None or tries == 6:
                raise
            print(f"try {tries} failed ({error.code().name}); next in {seconds:.1f} s", file=sys.stderr)
            time.sleep(seconds)


# For https: grpc.secure_channel(address, grpc.ssl_channel_credentials()).
address = os.environ["WEPEOPLE_BASE_URL"].removeprefix("http://")
with grpc.insecure_channel(address) as channel:
    answer = send(ingest_pb2_grpc.IngestStub(channel))
print(f"accepted {answer.accepted}")
for one in answer.results.rejected:
    print(f"rejected {one.index} {one.code}: {one.message}")
