// Package schema holds the JSON schemas of all documents, for tests that check
// documents and have no other business with package output.
package schema

import "embed"

// Files are DATASET.json for each dataset, and common.json, which they refer to
// (JSON schema, draft 2020-12).
//
//go:embed *.json
var Files embed.FS
