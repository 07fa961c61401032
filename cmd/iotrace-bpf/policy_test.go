package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/iotrace-bpf/iotrace-bpf/"

// edges is the import policy: which package may import which of ours. It is a
// statement, not a record: do not add an edge to make a build pass.
var edges = map[string][]string{
	"cmd/iotrace-bpf": {"attribute", "output", "tracer", "tracer/vxlan"},
	"output":          {},
	"attribute":       {},
	"tracer":          {"bpf"},
	"tracer/vxlan":    {"bpf"},
	"bpf":             {},
}

// forTests are packages that only tests may import.
var forTests = map[string][]string{
	"attribute/enginetest": {},
	"vmtests":              {"vmtests/guest", "vmtests/vm"},
	"vmtests/guest":        {"output", "bpf", "tracer"},
	"vmtests/vm":           {},
}

// TestDependencies reads the imports of every Go file in the tree.
func TestDependencies(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root) {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(rel)
		allowed, ok := edges[pkg]
		if !ok {
			allowed, ok = forTests[pkg]
		}
		if !ok {
			t.Errorf("%s: package %q is not in the import policy", path, pkg)
			return nil
		}
		seen[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			target, ours := strings.CutPrefix(name, module)
			if !ours || slices.Contains(allowed, target) {
				continue
			}
			if _, ok := forTests[target]; ok && strings.HasSuffix(path, "_test.go") {
				continue
			}
			t.Errorf("%s imports %q, which the policy does not allow", path, target)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range edges {
		if !seen[pkg] {
			t.Errorf("package %q of the policy does not exist", pkg)
		}
	}
}
