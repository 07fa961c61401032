package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// guards are conditions under which a test may skip itself without being named in
// CONTRIBUTING.md one by one: they are never true where everything must run.
var guards = map[string]string{
	"os.Geteuid() != 0": "make integration and the guests run as root",
	"*flagSupport":      "asks for a comparison of files, to which no guest is booted",
}

// TestSkips compares the list of tests that may skip themselves with the code: a
// hidden skip is a test that does not run. In guests nothing may skip itself at
// all; TestVerdict in vmtests proves that.
func TestSkips(t *testing.T) {
	root := filepath.Join("..", "..")
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		skips, err := skipsOf(path)
		for _, s := range skips {
			found = append(found, filepath.ToSlash(rel)+" "+s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("found none of the known skips")
	}
	text, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, m[1]+" "+m[2])
	}
	for _, s := range found {
		if !slices.Contains(listed, s) {
			t.Errorf("%s skips and is not in CONTRIBUTING.md's table of skips", s)
		}
	}
	for _, s := range listed {
		if !slices.Contains(found, s) {
			t.Errorf("CONTRIBUTING.md lists a skip that is not there: %s", s)
		}
	}
}

// skipsOf returns the functions of a file that skip tests, except behind a guard.
func skipsOf(path string) ([]string, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, 0)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		var guarded []ast.Node
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if n, ok := n.(*ast.IfStmt); ok {
				if _, ok := guards[condition(n.Cond)]; ok {
					guarded = append(guarded, n.Body)
				}
			}
			return true
		})
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				return true
			}
			if !slices.ContainsFunc(guarded, func(b ast.Node) bool { return b.Pos() <= n.Pos() && n.End() <= b.End() }) && !slices.Contains(names, fn.Name.Name) {
				names = append(names, fn.Name.Name)
			}
			return true
		})
	}
	return names, nil
}

// condition writes the few kinds of expression that guards are made of.
func condition(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return condition(e.X) + " " + e.Op.String() + " " + condition(e.Y)
	case *ast.CallExpr:
		return condition(e.Fun) + "()"
	case *ast.SelectorExpr:
		return condition(e.X) + "." + e.Sel.Name
	case *ast.StarExpr:
		return "*" + condition(e.X)
	case *ast.Ident:
		return e.Name
	case *ast.BasicLit:
		return e.Value
	}
	return fmt.Sprintf("%T", e)
}

func TestSkipsOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x_test.go")
	const text = `package x
func A() { if os.Geteuid() != 0 { t.Skip("root") } }
func B() { if os.Geteuid() != 0 || lazy { t.Skip("root or lazy") } }
func C() { t.Skipf("%s", "why") }
func D() { if os.Geteuid() == 0 { b.SkipNow() } }
func E() { if *flagSupport { t.Skip() } else { s.T.Skip() } }
func F() { t.Log("Skip") }
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := skipsOf(file)
	if want := []string{"B", "C", "D", "E"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}
