package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/tracer"
)

const module = "github.com/iotrace-bpf/iotrace-bpf/"

// edges is the import policy: which package may import which of ours. It is a
// statement, not a record: do not add an edge to make a build pass.
var edges = map[string][]string{
	"cmd/iotrace-bpf": {
		"attribute", "output", "output/elastic", "output/file", "output/ndjson", "output/otlp", "output/prometheus", "output/recording",
		"output/report", "output/terminal", "output/text", "tracer", "tracer/vxlan",
	},
	"output":            {"output/text"},
	"output/elastic":    {"output", "output/file", "output/text"},
	"output/file":       {},
	"output/ndjson":     {"output", "output/text"},
	"output/otlp":       {"output"},
	"output/prometheus": {"output", "output/text"},
	"output/recording":  {"output", "output/file"},
	"output/report":     {"output", "output/file", "output/text"},
	"output/terminal":   {"output", "output/text"},
	"output/text":       {},
	"attribute":         {},
	"tracer":            {"bpf"},
	"tracer/vxlan":      {"bpf"},
	"bpf":               {},
}

// testEdges are further packages that tests of a package may import.
var testEdges = map[string][]string{
	"output/elastic":   {"output/ndjson"},
	"output/recording": {"output/report"},
	"output/report":    {"output/recording"},
	"output/terminal":  {"output/recording"},
}

// forTests are packages that only tests may import.
var forTests = map[string][]string{
	"attribute/enginetest":      {},
	"output/elastic/testserver": {},
	"output/outputtest":         {"output", "output/text"},
	"output/schema":             {},
	"vmtests":                   {"output/schema", "vmtests/guest", "vmtests/vm"},
	"vmtests/again":             {},
	"vmtests/guest":             {"output", "bpf", "tracer"},
	"vmtests/vm":                {},
	"vmtests/worker":            {"vmtests/guest"},
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
			if strings.HasSuffix(path, "_test.go") {
				// A test of its own package, from outside of it.
				if _, ok := forTests[target]; ok || target == pkg || slices.Contains(testEdges[pkg], target) {
					continue
				}
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

// TestModules: each module that we import is listed with its reason, and no other.
func TestModules(t *testing.T) {
	root := filepath.Join("..", "..")
	gomod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## What it stands on\n")
	if !ok {
		t.Fatal("CONTRIBUTING.md does not say what it stands on")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[string]bool{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		for _, name := range strings.Split(cells[1], ",") {
			listed[strings.Trim(name, " `")] = true
		}
	}
	direct := 0
	for line := range strings.Lines(string(gomod)) {
		f := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(f) < 2 || !strings.HasPrefix(f[1], "v") || !strings.Contains(f[0], "/") || strings.Contains(line, "// indirect") {
			continue
		}
		direct++
		if !listed[f[0]] {
			t.Errorf("%s has no reason in CONTRIBUTING.md", f[0])
		}
		delete(listed, f[0])
	}
	for name := range listed {
		t.Errorf("CONTRIBUTING.md has a reason for %s, which is not in go.mod", name)
	}
	if direct < 10 {
		t.Errorf("go.mod was not understood: %d modules", direct)
	}
}

// TestSources: a source has the same name everywhere.
func TestSources(t *testing.T) {
	root := filepath.Join("..", "..")
	objects, err := filepath.Glob(filepath.Join(root, "bpf", "*", "*.bpf.c"))
	if err != nil || len(objects) == 0 {
		t.Fatalf("%v, %v", objects, err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := tracer.SourceNames()
	for _, o := range objects {
		name := strings.TrimSuffix(filepath.Base(o), ".bpf.c")
		if filepath.Base(filepath.Dir(o)) == "core" { // what all sources need
			continue
		}
		if name != "vxlan" && !slices.Contains(names, name) { // vxlan has events and no bytes
			t.Errorf("%s is not in the table of sources", name)
		}
		if !strings.Contains(string(readme), "| `"+name+"`") {
			t.Errorf("README.md has no row for %s", name)
		}
		for _, file := range []string{"vmtests/" + name + "_test.go", "tracer/" + name + "*"} {
			if found, _ := filepath.Glob(filepath.Join(root, file)); len(found) == 0 {
				t.Errorf("%s has no %s", name, file)
			}
		}
	}
	for _, name := range names {
		if !slices.Contains(objects, filepath.Join(root, "bpf", name, name+".bpf.c")) {
			t.Errorf("source %s has no bpf/%s/%s.bpf.c", name, name, name)
		}
	}
}

// TestPackageComments: every package says what it is, once.
func TestPackageComments(t *testing.T) {
	for pkg := range edges {
		files, err := filepath.Glob(filepath.Join("..", "..", pkg, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Doc != nil && !strings.HasPrefix(parsed.Doc.Text(), "Code generated") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("package %s has %d package comments, want one", pkg, n)
		}
	}
}
