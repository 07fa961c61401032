package elastic

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testSpool(t *testing.T, dir string, limit int64) *spool {
	t.Helper()
	s, moved, err := openSpool(dir, limit)
	if err != nil || moved != "" {
		t.Fatalf("opening spool: %v, moved %q", err, moved)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func spoolDocs(from, to int) []spooled {
	var docs []spooled
	for i := from; i < to; i++ {
		docs = append(docs, spooled{Stream: testEvents, ID: fmt.Sprint(i), Body: testDoc(i)})
	}
	return docs
}

// incompressible returns a document that takes its size on disk.
func incompressible(id string, size int) spooled {
	b := make([]byte, size)
	rand.Read(b)
	return spooled{Stream: testEvents, ID: id, Body: b}
}

func ids(docs []spooled) string {
	var s []string
	for _, d := range docs {
		s = append(s, d.ID)
	}
	return strings.Join(s, " ")
}

func TestSpoolOrder(t *testing.T) {
	dir := t.TempDir()
	s := testSpool(t, dir, spoolMinLimit)
	for i := range 3 {
		if dropped, err := s.put(spoolDocs(10*i, 10*i+3)); err != nil || dropped != 0 {
			t.Fatal(dropped, err)
		}
	}
	first := spoolDocs(0, 3)
	size := 0
	for i := range first {
		size += first[i].size()
	}
	docs, _, err := s.hold(2*size + 50)
	if err != nil || ids(docs) != "0 1 2 10 11 12" {
		t.Fatalf("held %q, %v", ids(docs), err)
	}
	if string(docs[1].Body) != string(testDoc(1)) || docs[1].Stream != testEvents {
		t.Errorf("document came back as %+v", docs[1])
	}
	if kept, err := s.finishBatch(docs[2:4], false); !kept || err != nil {
		t.Fatal(kept, err)
	}
	if s.docs != 5 {
		t.Errorf("%d documents, want 5", s.docs)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = testSpool(t, dir, spoolMinLimit)
	docs, _, err = s.hold(1 << 20)
	if err != nil || ids(docs) != "2 10 20 21 22" || s.docs != 5 {
		t.Fatalf("after reopening %q, %d, %v", ids(docs), s.docs, err)
	}
	s.release()
	if docs, _, _ := s.hold(1); ids(docs) != "2 10" {
		t.Errorf("a chunk that is too big is not returned whole: %q", ids(docs))
	}
	if kept, err := s.finishBatch(docs[:1], true); !kept || err != nil {
		t.Fatal(kept, err)
	}
	if docs, _, _ := s.hold(1 << 20); ids(docs) != "20 21 22 2" {
		t.Errorf("what was put last comes as %q", ids(docs))
	}
	s.Close()
	s = testSpool(t, dir, spoolMinLimit)
	if docs, _, _ := s.hold(1 << 20); ids(docs) != "20 21 22 2" {
		t.Errorf("and after reopening as %q", ids(docs))
	}
	if kept, err := s.finishBatch(nil, false); !kept || err != nil || s.docs != 0 || s.bytes != 0 {
		t.Errorf("after settling everything: %d documents, %d bytes, %v", s.docs, s.bytes, err)
	}
}

func TestSpoolInUse(t *testing.T) {
	dir := t.TempDir()
	testSpool(t, dir, spoolMinLimit)
	_, moved, err := openSpool(dir, spoolMinLimit)
	if err == nil || moved != "" || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second opening: %v, moved %q", err, moved)
	}
}

// TestSpoolLimit pushes many times the limit through a spool.
func TestSpoolLimit(t *testing.T) {
	dir := t.TempDir()
	s := testSpool(t, dir, spoolMinLimit)
	var dropped uint64
	put := 0
	for i := range 300 {
		n, err := s.put([]spooled{incompressible(fmt.Sprint(i), 5000+i*211%60000)})
		dropped += n
		if err != nil {
			t.Fatal(i, err)
		}
		put++
		if s.bytes > spoolMinLimit {
			t.Fatalf("%d bytes in use, limit %d", s.bytes, spoolMinLimit)
		}
	}
	if s.docs+dropped != uint64(put) || dropped == 0 {
		t.Errorf("%d in the spool and %d dropped of %d", s.docs, dropped, put)
	}
	st, err := os.Stat(filepath.Join(dir, spoolFile))
	if err != nil || st.Size() > spoolMinLimit+spoolMinLimit/2+4<<20 {
		t.Errorf("file of %d bytes for a limit of %d, %v", st.Size(), spoolMinLimit, err)
	}
	docs, _, err := s.hold(10 << 20)
	if err != nil || len(docs) == 0 || docs[len(docs)-1].ID != "299" {
		t.Errorf("the newest documents are gone: %q, %v", ids(docs), err)
	}
	// All chunks are being sent: none may be evicted for a new one.
	if n, err := s.put([]spooled{incompressible("new", 500000)}); !errors.Is(err, errSpoolFull) || n != 0 {
		t.Errorf("put beside held chunks: %d, %v", n, err)
	}
	s.release()
	if _, err := s.put([]spooled{incompressible("huge", 2*spoolMinLimit)}); !errors.Is(err, errSpoolFull) {
		t.Errorf("chunk above the limit: %v", err)
	}
}

// TestSpoolShrinks wants the disk space back after an outage.
func TestSpoolShrinks(t *testing.T) {
	dir := t.TempDir()
	s := testSpool(t, dir, 64<<20)
	for i := range 20 {
		if _, err := s.put([]spooled{incompressible(fmt.Sprint(i), 1<<20)}); err != nil {
			t.Fatal(err)
		}
	}
	size := func() int64 {
		st, err := os.Stat(filepath.Join(dir, spoolFile))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	if size() < 20<<20 {
		t.Fatalf("file of %d bytes holds 20 MiB", size())
	}
	for len(s.chunks) > 0 {
		if _, _, err := s.hold(4 << 20); err != nil {
			t.Fatal(err)
		}
		if _, err := s.finishBatch(nil, false); err != nil {
			t.Fatal(err)
		}
	}
	if size() > 1<<20 {
		t.Errorf("empty spool keeps %d bytes of disk", size())
	}
	if _, err := s.put(spoolDocs(0, 5)); err != nil {
		t.Fatal(err)
	}
	if docs, _, err := s.hold(1 << 20); err != nil || len(docs) != 5 {
		t.Errorf("after shrinking: %d documents, %v", len(docs), err)
	}
}

// TestSpoolDamage breaks the file in many places: opening it and reading it
// ends in documents or in an empty spool, never in a crash.
func TestSpoolDamage(t *testing.T) {
	dir := t.TempDir()
	s := testSpool(t, dir, spoolMinLimit)
	for i := range 20 {
		if _, err := s.put([]spooled{incompressible(fmt.Sprint(i), 9000)}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	path := filepath.Join(dir, spoolFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"empty":      {},
		"one byte":   {1},
		"text":       []byte(strings.Repeat("this is no database\n", 5000)),
		"one page":   good[:4096],
		"cut":        good[:len(good)/2],
		"cut by one": good[:len(good)-4096],
		"zeros":      make([]byte, len(good)),
	}
	for at := 0; at < len(good); at += 1501 {
		b := bytes.Clone(good)
		copy(b[at:], "\xff\xff\xff\xff\xff\xff\xff\xff")
		cases[fmt.Sprint("at ", at)] = b
	}
	for name, b := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, spoolFile)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s, moved, err := openSpool(dir, spoolMinLimit)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if moved != "" {
				if kept, err := os.ReadFile(moved); err != nil || !bytes.Equal(kept, b) && len(b) > 0 {
					t.Errorf("damaged file is not kept: %v", err)
				}
			}
			docs, _, err := s.hold(10 << 20)
			if err != nil && !errors.Is(err, errSpoolDamaged) {
				t.Errorf("reading: %v", err)
			}
			for _, d := range docs {
				if len(d.Body) != 9000 {
					t.Errorf("document of %d bytes came out", len(d.Body))
				}
			}
			if err != nil {
				if _, err := s.reset(); err != nil {
					t.Fatal(err)
				}
			}
			s.release()
			if _, err := s.put(spoolDocs(0, 3)); err != nil {
				t.Errorf("writing after damage: %v", err)
			}
		})
	}
}

// FuzzSpoolChunk decodes what may be on a broken disk.
func FuzzSpoolChunk(f *testing.F) {
	s, _, err := openSpool(f.TempDir(), spoolMinLimit)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	good, err := s.encode(spoolDocs(0, 3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{spoolFormat, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		docs, err := s.decode(b)
		if err != nil && (!errors.Is(err, errSpoolDamaged) || docs != nil) {
			t.Errorf("%d documents, error %v", len(docs), err)
		}
	})
}

// TestSpoolDirectory wants an error, not an empty spool, where the directory
// cannot be used.
func TestSpoolDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openSpool(file, spoolMinLimit); err == nil {
		t.Error("a file is accepted as directory")
	}
	if _, _, err := openSpool(t.TempDir(), 1); err == nil {
		t.Error("a limit of one byte is accepted")
	}
}

// TestDeadLettersBounded wants at most two files of the limit.
func TestDeadLettersBounded(t *testing.T) {
	dir := t.TempDir()
	d := newDeadLetters(dir)
	d.limit = 4096
	defer d.Close()
	for i := range 200 {
		if err := d.write([]deadLetter{{Stream: testEvents, ID: fmt.Sprint(i), Status: 400, Reason: strings.Repeat("\x1b", 2000), Document: testDoc(i)}, {Document: []byte("no JSON")}}); err != nil {
			t.Fatal(err)
		}
	}
	files, _ := os.ReadDir(dir)
	if len(files) != 2 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		st, _ := f.Info()
		if err != nil || len(b) > 3*4096 || bytes.ContainsRune(b, '\x1b') || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v, %v", f.Name(), len(b), st.Mode(), err)
		}
	}
}
