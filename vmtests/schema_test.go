//go:build vm

package vmtests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/iotrace-bpf/iotrace-bpf/output/schema"
)

// schemas are the compiled schemas, by dataset.
var schemas = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	files, err := schema.Files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	const base = "https://schema.invalid/"
	c := jsonschema.NewCompiler()
	for _, f := range files {
		b, err := schema.Files.ReadFile(f.Name())
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		if err := c.AddResource(base+f.Name(), doc); err != nil {
			return nil, err
		}
	}
	compiled := map[string]*jsonschema.Schema{}
	for _, f := range files {
		if compiled[strings.TrimSuffix(f.Name(), ".json")], err = c.Compile(base + f.Name()); err != nil {
			return nil, err
		}
	}
	return compiled, nil
})

// validateDocument holds a line against the schema of its dataset.
func validateDocument(line []byte) error {
	all, err := schemas()
	if err != nil {
		return err
	}
	var d struct{ Event struct{ Dataset string } }
	if err := json.Unmarshal(line, &d); err != nil {
		return err
	}
	s := all[d.Event.Dataset]
	if s == nil || d.Event.Dataset == "common" {
		return fmt.Errorf("no schema for dataset %q", d.Event.Dataset)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// TestValidateDocument: what the guests' lines are held against refuses something.
func TestValidateDocument(t *testing.T) {
	for _, line := range []string{`{`, `{}`, `{"event":{"dataset":"common"}}`, `{"event":{"dataset":"iotrace.io"}}`, `{"event":{"dataset":"iotrace.status","kind":"state"}}`} {
		if err := validateDocument([]byte(line)); err == nil {
			t.Errorf("%s is a document", line)
		}
	}
	var wrong *jsonschema.ValidationError
	if err := validateDocument([]byte(`{"event":{"dataset":"iotrace.io"}}`)); !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
}
