// Sends two events over gRPC, retries until the service has answered, and prints each event's result.
import com.google.rpc.RetryInfo;
import ingest.v1.IngestGrpc;
import ingest.v1.IngestOuterClass.*;
import io.grpc.*;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

public class Main {
  /** Milliseconds until the next try; -1 where a retry cannot help. */
  static long retryDelay(StatusRuntimeException error, int tries) throws Exception {
    for (var detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(RetryInfo.class)) return detail.unpack(RetryInfo.class).getRetryDelay().getSeconds() * 1000;
    }
    // The connection broke, or no answer came in time.
    var code = error.getStatus().getCode();
    if (code != Status.Code.UNAVAILABLE && code != Status.Code.DEADLINE_EXCEEDED) return -1;
    return (long) (200 * (1 << tries) * (0.5 + Math.random()));
  }

  static EventsResponse send(IngestGrpc.IngestBlockingStub stub, EventsRequest batch) throws Exception {
    for (int tries = 1; ; tries++) {
      try {
        return stub.withDeadlineAfter(10, TimeUnit.SECONDS).events(batch);
      } catch (StatusRuntimeException error) {
        long delay = retryDelay(error, tries);
        if (delay < 0 || tries == 6) throw error;
        System.err.printf("try %d failed (%s); next in %d ms%n", tries, error.getStatus().getCode(), delay);
        Thread.sleep(delay);
      }
    }
  }

  public static void main(String[] arguments) throws Exception {
    // For https leave usePlaintext out.
    var address = System.getenv("WEPEOPLE_BASE_URL").replaceFirst("^https?://", "");
    var channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
    var headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + System.getenv("WEPEOPLE_API_KEY"));
    // The same key on every try: the service stores the batch once, however often it arrives.
    headers.put(Metadata.Key.of("idempotency-key", Metadata.ASCII_STRING_MARSHALLER), UUID.randomUUID().toString());
    var stub = IngestGrpc.newBlockingStub(channel).withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    var batch = EventsRequest.newBuilder();
    for (var type : new String[] {"ticket.resolved", "deploy.finished"}) {
      batch.addEventsBuilder().setEventType(type).setCategory(EventCategory.EVENT_CATEGORY_PROJECT_MANAGEMENT)
          .setActor(Actor.newBuilder().setExternalId("crm-user-42"));
    }
    var answer = send(stub, batch.build());
    System.out.println("accepted " + answer.getAccepted());
    for (var one : answer.getResults().getRejectedList()) {
      System.out.printf("rejected %d %s: %s%n", one.getIndex(), one.getCode(), one.getMessage());
    }
    channel.shutdown();
  }
}
