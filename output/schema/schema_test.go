package schema

import (
	"errors"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestValidate: text that is not a document of ours is an error.
func TestValidate(t *testing.T) {
	for _, line := range []string{`{`, `{}`, `{"event":{"dataset":"common"}}`, `{"event":{"dataset":"iotrace.io"}}`, `{"event":{"dataset":"iotrace.status","kind":"state"}}`} {
		if err := Validate([]byte(line)); err == nil {
			t.Errorf("%s counts as a document", line)
		}
	}
	var wrong *jsonschema.ValidationError
	if err := Validate([]byte(`{"event":{"dataset":"iotrace.io"}}`)); !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
	if datasets, err := Datasets(); err != nil || len(datasets) != 4 {
		t.Errorf("%d datasets, %v", len(datasets), err)
	}
}
