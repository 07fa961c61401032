package attribute

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of what is read from a runtime that speaks gRPC.
const (
	maxHeader  = 64 << 10
	maxWindow  = 64 << 10 // bytes that a runtime may send before they are read
	maxMessage = 8 << 20  // bytes of a list: some 2,000 containers of Kubernetes
	maxSingle  = 1 << 20  // bytes of any other answer

	// An empty message takes 2 bytes of an answer, and some hundred in memory. An honest
	// answer has 40 bytes or more for each message; an entry of a map is one, too.
	messagesFree  = 4 << 10
	messageBytes  = 24
	messagesMost  = 128 << 10
	messagesDepth = 16 // of messages in messages
)

// dialGRPC prepares a connection to a unix socket; it connects at the first call.
func dialGRPC(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return dialSocket(ctx, path)
		}),
		grpc.WithAuthority("localhost"),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithInitialWindowSize(maxWindow), grpc.WithInitialConnWindowSize(maxWindow), // else they grow to 16 MiB
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.ForceCodecV2(boundedCodec{encoding.GetCodecV2(protocodec.Name)})),
	)
	if err != nil {
		return nil, fmt.Errorf("asking the runtime at %q: %w", socket, err)
	}
	return conn, nil
}

// single bounds a call that is not a list.
func single() grpc.CallOption { return grpc.MaxCallRecvMsgSize(maxSingle) }

// boundedCodec decodes no answer that would take much more memory than an honest one of
// its size.
type boundedCodec struct{ encoding.CodecV2 }

func (c boundedCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("unexpected message %T", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	left := min(messagesFree+data.Len()/messageBytes, messagesMost)
	if err := countMessages(buf.ReadOnlyData(), m.ProtoReflect().Descriptor(), messagesDepth, &left); err != nil {
		return err
	}
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(buf.ReadOnlyData(), m)
}

// countMessages takes the number of messages in an encoded message from left, and fails
// when there are more.
func countMessages(b []byte, d protoreflect.MessageDescriptor, depth int, left *int) error {
	if depth == 0 {
		return fmt.Errorf("messages within messages: %w", errTooLarge)
	}
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		f := d.Fields().ByNumber(num)
		var value []byte
		switch {
		case kind == protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		// Elements of repeated strings count as well: an empty one has a header in memory.
		if f == nil || kind != protowire.BytesType || f.Message() == nil && !f.IsList() {
			continue
		}
		if *left--; *left < 0 {
			return fmt.Errorf("too many messages for its size: %w", errTooLarge)
		}
		if f.Message() != nil {
			if err := countMessages(value, f.Message(), depth-1, left); err != nil {
				return err
			}
		}
	}
	return nil
}

// errNotOffered says that a runtime answers but does not offer this API.
var errNotOffered = errors.New("not offered")

// rpcError gives errors of gRPC the same causes as those of all other sessions.
func rpcError(what string, err error) error {
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w: %w", what, context.DeadlineExceeded, err)
	case codes.Internal:
		if strings.Contains(err.Error(), errTooLarge.Error()) { // of boundedCodec: gRPC keeps the text only
			return fmt.Errorf("%s: %w: %w", what, errTooLarge, err)
		}
	case codes.ResourceExhausted:
		return fmt.Errorf("%s: %w: %w", what, errTooLarge, err)
	case codes.Unimplemented:
		return fmt.Errorf("%s: %w: %w", what, errNotOffered, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
