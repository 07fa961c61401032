package output

import "embed"

// Schemas holds the JSON schemas (draft 2020-12) of all documents: one for each
// dataset, schema/DATASET.json, and schema/common.json, which they refer to.
//
//go:embed schema/*.json
var Schemas embed.FS
