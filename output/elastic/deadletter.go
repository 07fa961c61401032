package elastic

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output/file"
)

// deadLetter is a document that the server rejected, with the reason.
type deadLetter struct {
	Time     string          `json:"@timestamp"`
	Stream   string          `json:"stream"`
	ID       string          `json:"id"`
	Status   int             `json:"status"`
	Type     string          `json:"type,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Document json.RawMessage `json:"document"`
}

const (
	deadLetterFile  = "dead-letter.ndjson"
	deadLetterLimit = 16 << 20 // bytes of the file; the one before it takes as much
)

// deadLetters appends to a file. A full file replaces FILE.1 and a new one begins.
type deadLetters struct {
	path  string
	limit int64
	f     *os.File
}

func newDeadLetters(dir string) *deadLetters {
	return &deadLetters{path: filepath.Join(dir, deadLetterFile), limit: deadLetterLimit}
}

func (d *deadLetters) write(letters []deadLetter) error {
	now := time.Now().UTC().Format(time.RFC3339Nano)
	var buf []byte
	for i := range letters {
		l := &letters[i]
		l.Time, l.Reason = now, cut(l.Reason, 1000)
		if !json.Valid(l.Document) {
			// As a string it stays on one line.
			l.Document, _ = json.Marshal(string(l.Document))
		}
		line, err := json.Marshal(l)
		if err != nil {
			return err
		}
		buf = append(append(buf, line...), '\n')
	}
	if d.f == nil {
		f, err := file.Open(d.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
		if err != nil {
			return err
		}
		d.f = f
	}
	st, err := d.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > 0 && st.Size()+int64(len(buf)) > d.limit {
		err := errors.Join(d.Close(), os.Rename(d.path, d.path+".1"))
		if err != nil {
			return err
		}
		return d.write(letters)
	}
	_, err = d.f.Write(buf)
	return err
}

// Close closes the file. The next write opens it again.
func (d *deadLetters) Close() error {
	if d.f == nil {
		return nil
	}
	err := d.f.Close()
	d.f = nil
	return err
}
