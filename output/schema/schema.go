// Package schema holds the JSON schemas (draft 2020-12) of all documents, for
// tests that check documents. The program itself does not import it.
package schema

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Files are DATASET.json for each dataset, and common.json, which they refer to.
//
//go:embed *.json
var Files embed.FS

// common is the name of the definitions that all datasets share.
const common = "common"

// base is the URL under which the schemas refer to each other. Nothing is fetched from
// it.
const base = "https://schema.invalid/"

// Datasets returns the compiled schema of every dataset by its name, such as
// "iotrace.io". The error is that of a schema which does not compile.
var Datasets = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	files, err := Files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	for _, f := range files {
		data, err := Files.ReadFile(f.Name())
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		if err := c.AddResource(base+f.Name(), doc); err != nil {
			return nil, err
		}
	}
	compiled := make(map[string]*jsonschema.Schema)
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".json")
		if name == common {
			continue
		}
		if compiled[name], err = c.Compile(base + f.Name()); err != nil {
			return nil, err
		}
	}
	return compiled, nil
})

// Validate checks one document, a JSON object, against the schema of the dataset in its
// field event.dataset. The error is a *jsonschema.ValidationError if the document has
// such a dataset and does not fit its schema.
func Validate(line []byte) error {
	datasets, err := Datasets()
	if err != nil {
		return err
	}
	var d struct{ Event struct{ Dataset string } }
	if err := json.Unmarshal(line, &d); err != nil {
		return err
	}
	s := datasets[d.Event.Dataset]
	if s == nil {
		return fmt.Errorf("no schema for dataset %q", d.Event.Dataset)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}
