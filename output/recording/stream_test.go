package recording

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// streamOf is a stream of n intervals, and what was written.
func streamOf(t testing.TB, n int) ([]byte, []*output.Interval) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewStreamWriter(&b, Options{Tool: "test", Host: output.Host{Name: "web1", ID: "id"}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var all []*output.Interval
	for i := range n {
		start := time.Unix(int64(1_800_000_000+i), 0).UTC()
		iv := &output.Interval{Start: start, End: start.Add(time.Second), Host: output.Host{Name: "web1", ID: "id"}, Samples: []output.Sample{{
			Source: output.SourceBlock, Level: output.LevelWire, Project: []string{"shop", "backup", "media"}[i%3],
			Write: output.Amount{Bytes: uint64(i) * 4096, Ops: uint64(i)},
		}}}
		if err := w.Write(iv); err != nil {
			t.Fatal(err)
		}
		all = append(all, iv)
	}
	return b.Bytes(), all
}

// TestStream reads each interval as soon as it was written, and the same bytes as a file.
func TestStream(t *testing.T) {
	data, want := streamOf(t, 3*keyEvery+5)
	in, out := io.Pipe()
	go func() {
		for i := range data { // in the smallest pieces
			out.Write(data[i : i+1])
		}
		out.Close()
	}()
	s, err := NewStreamReader(in)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Header().Host != want[0].Host {
		t.Errorf("host %+v", s.Header().Host)
	}
	path := filepath.Join(t.TempDir(), "rec")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range want {
		got, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		same, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, same) || got.Samples[0].Write.Bytes != want[i].Samples[0].Write.Bytes || got.Samples[0].Project != want[i].Samples[0].Project {
			t.Fatalf("interval %d: %+v, from a file %+v", i, got, same)
		}
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// TestStreamDamaged: a changed or cut stream is an error that stays, and none is read wrong.
func TestStreamDamaged(t *testing.T) {
	data, want := streamOf(t, 5)
	read := func(b []byte) (n int, err error) {
		s, err := NewStreamReader(bytes.NewReader(b))
		if err != nil {
			return 0, err
		}
		defer s.Close()
		for {
			iv, err := s.Next()
			if err != nil {
				if _, again := s.Next(); again != err {
					t.Errorf("after %v comes %v", err, again)
				}
				return n, err
			}
			if n >= len(want) || iv.Samples[0].Write.Bytes != want[n].Samples[0].Write.Bytes {
				t.Errorf("interval %d is another one", n)
			}
			n++
		}
	}
	for i := 0; i < len(data); i += 5 { // each makes a decoder, which takes time
		if n, err := read(data[:i]); n == len(want) || err == nil {
			t.Errorf("cut at %d: %d intervals, %v", i, n, err)
		}
		b := bytes.Clone(data)
		b[i] ^= 0x41
		read(b)
	}
	if _, err := read([]byte("Welcome to web1!\n")); !errors.Is(err, ErrNotRecording) {
		t.Errorf("a greeting: %v", err)
	}
}

// FuzzStream: whatever comes, the reader ends with an error and takes little memory.
func FuzzStream(f *testing.F) {
	data, _ := streamOf(f, 3)
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := NewStreamReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer s.Close()
		for err == nil {
			_, err = s.Next()
		}
	})
}
