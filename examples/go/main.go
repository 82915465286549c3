// Sends two events over gRPC, retries until the service has answered, and prints each event's result.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"time"

	ingest "example.com/you/gen/go/ingest/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The delay before the next try; false where a retry cannot help.
func retryDelay(err error, tries int) (time.Duration, bool) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration(), tries < 6
		}
	}
	broken := status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded
	return mathrand.N(400 * time.Millisecond << tries), broken && tries < 6
}

func main() {
	// For https: credentials.NewTLS(nil).
	address := strings.TrimPrefix(os.Getenv("WEPEOPLE_BASE_URL"), "http://")
	connection, _ := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	// The same key on every try: the service stores the batch once, however often it arrives.
	call := metadata.AppendToOutgoingContext(context.Background(), "idempotency-key", rand.Text(),
		"authorization", "Bearer "+os.Getenv("WEPEOPLE_API_KEY"))
	actor := &ingest.Actor{Id: &ingest.Actor_ExternalId{ExternalId: "crm-user-42"}}
	batch := &ingest.EventsRequest{Events: []*ingest.Event{
		{EventType: "ticket.resolved", Category: ingest.EventCategory_EVENT_CATEGORY_PROJECT_MANAGEMENT, Actor: actor},
		{EventType: "deploy.finished", Category: ingest.EventCategory_EVENT_CATEGORY_CODE, Actor: actor}}}
	for tries := 1; ; tries++ {
		ctx, cancel := context.WithTimeout(call, 10*time.Second)
		answer, err := ingest.NewIngestClient(connection).Events(ctx, batch)
		cancel()
		if err == nil {
			fmt.Printf("accepted %d\nrejected %v\n", answer.GetAccepted(), answer.GetResults().GetRejected())
			return
		} else if delay, canHelp := retryDelay(err, tries); canHelp {
			log.Printf("try %d failed (%v); next in %s", tries, err, delay)
			time.Sleep(delay)
		} else {
			log.Fatal(err)
		}
	}
}
