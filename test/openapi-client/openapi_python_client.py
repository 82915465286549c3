"""A caller with classes and functions made from the published document."""

import json
import sys

from client import AuthenticatedClient
from client.api.ingest import ingest_events, ingest_snapshot, ping
from client.api.timeline import list_events
from client.models import Actor, EventCategory, IngestEvent, IngestEventBatch, IngestSnapshot, IngestSnapshotMetrics
from client.models import Measure, MetricUnit, TimelineKind

base_url, key, read_key = sys.argv[1:]
sender = AuthenticatedClient(base_url=base_url, token=key)
reader = AuthenticatedClient(base_url=base_url, token=read_key)

pong = ping.sync(client=sender)
actor = Actor(external_id="python-1")
event = IngestEvent(event_type="ticket.resolved", category=EventCategory.CODE, actor=actor, duration=240)
other = IngestEvent(event_type="deploy.shipped", category=EventCategory.CODE, actor=actor)
batch = ingest_events.sync_detailed(
    client=sender, body=IngestEventBatch(events=[event, other]), idempotency_key="openapi-python-client-1"
)
metrics = IngestSnapshotMetrics()
metrics["age"] = Measure(value=3, unit=MetricUnit.COUNT)
card = ingest_snapshot.sync(
    client=sender, body=IngestSnapshot(snapshot_type="tickets_open", actor=actor, metrics=metrics)
)
refused = ping.sync(client=AuthenticatedClient(base_url=base_url, token="wrong"))
page = list_events.sync(client=reader, kind=TimelineKind.EVENT, page_size=1)
# The first message of a stream, without waiting for an end.
with reader.get_httpx_client().stream("GET", "/api/v1/timeline/events:watch") as stream:
    line = next(stream.iter_lines())

print(
    json.dumps(
        {
            "slug": pong.app.slug,
            "status": batch.status_code,
            "rejectedCode": batch.parsed.results.rejected[0].code,
            "workerId": card.worker.id,
            "code": refused.error.code,
            "listed": page.events[0].type_,
            "watched": "string" if isinstance(json.loads(line)["resumeToken"], str) else "",
        }
    )
)
