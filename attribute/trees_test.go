package attribute

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTrees walks the cgroups of hosts whose runtimes cannot run here, as their
// sources make them, and names every one.
func TestTrees(t *testing.T) {
	files, err := filepath.Glob("testdata/trees/*.txt")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d trees, %v", len(files), err)
	}
	words := strings.NewReplacer("{A}", idA, "{B}", idB, "{C}", strings.Repeat("5e", 32), "{P}", uidP, "{P_}", uidP_, "{S}", uidS,
		"{T}", taskT, "{G}", handle, "{H}", "0e5d1c3b-2a4f-4b60-7182-9304")
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			want := map[string][]string{}
			for line := range strings.Lines(words.Replace(string(text))) {
				f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
				if strings.HasPrefix(line, "#") {
					continue
				}
				if len(f) != 6 {
					t.Fatalf("%q has %d columns", line, len(f))
				}
				mkdir(t, root, f[0])
				want[f[0]] = f[1:]
			}
			r := newTestResolver(t, Options{CgroupRoot: root, root: t.TempDir()})
			if err := r.Walk(); err != nil {
				t.Fatal(err)
			}
			for path, w := range want {
				o := r.Owner(inode(t, filepath.Join(root, path)))
				id := o.ContainerID
				if id == "" && o.Kind != KindHelper && o.Kind != KindPod {
					id = o.Unit
				}
				got := []string{string(o.Kind), o.Runtime, id, o.PodUID, o.Project}
				if o.Path != path || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", w) {
					t.Errorf("%s\n got %q\nwant %q", path, got, w)
				}
			}
		})
	}
}
