package output_test

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

func TestParseKeys(t *testing.T) {
	got := outputtest.Keys(t, "project, device,label:com.example.team")
	if want := []output.Key{output.KeyProject, output.KeyDevice, output.KeyLabel("com.example.team")}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for s, want := range map[string]string{
		"nonsense":        `unknown key "nonsense": use container, project, service`,
		"":                `unknown key ""`,
		"project,":        `unknown key ""`,
		"project,project": `key "project" is given twice`,
		"label:":          `key "label:" names no label`,
		"\x1b[31m":        `unknown key "\x1b[31m"`,
	} {
		if _, err := output.ParseKeys(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want %q in it", s, err, want)
		}
	}
	for _, name := range output.KeyNames() {
		if _, err := output.ParseKeys(name); err != nil {
			t.Errorf("%q is named as valid: %v", name, err)
		}
	}
}

func TestParseSort(t *testing.T) {
	for _, c := range output.SortColumns() {
		for _, reverse := range []bool{false, true} {
			s := c
			if reverse {
				s = "-" + c
			}
			if got, err := output.ParseSort(s); err != nil || got != (output.Sort{c, reverse}) {
				t.Errorf("%q: got %v, %v", s, got, err)
			}
		}
	}
	if _, err := output.ParseSort("nonsense"); err == nil || !strings.Contains(err.Error(), "total, read, write, ops, latency, name, block, nfs, fuse, smb, 9p, ceph") {
		t.Errorf("got error %v, want one that names the columns", err)
	}
}

func TestParseFilter(t *testing.T) {
	for _, s := range []string{"project=shop", "op=write", "image=*/web:[0-9]*", `container=\*`, "label:a.b=", "cgroup=/docker/*", "mount=a=b"} {
		f, err := output.ParseFilter(s)
		if err != nil || f.String() != s {
			t.Errorf("%q: got %q, %v", s, f, err)
		}
	}
	for s, want := range map[string]string{
		"project":      `has no "="`,
		"=x":           `unknown key ""`,
		"nonsense=x":   `unknown key "nonsense"`,
		"project=[":    `pattern "[" is not a valid glob`,
		`project=ab[a`: `is not a valid glob`,
		"op=writes":    "unknown op \"writes\": use read, write, discard, flush, metadata",
	} {
		if _, err := output.ParseFilter(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want %q in it", s, err, want)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"shop", "shop", true}, {"shop", "shopping", false}, {"shop*", "shopping", true}, {"*", "", true}, {"", "", true},
		{"*/web", "registry.example:5000/team/web", true}, {"/docker/*", "/docker/a/b/c", true}, {"?hop", "shop", true},
		{"[a-s]hop", "shop", true}, {"[^s]hop", "shop", false}, {`\*`, "*", true}, {`\*`, "x", false}, {"*é*", "café au", true},
		{strings.Repeat("*a", 40) + "b", strings.Repeat("a", 4000), false},
	} {
		if got := output.MatchGlob(tt.pattern, tt.text); got != tt.want {
			t.Errorf("globMatch(%.20q, %.20q) = %v", tt.pattern, tt.text, got)
		}
	}
}

// TestGroupKeys checks the texts that an operator reads for every key.
func TestGroupKeys(t *testing.T) {
	for _, tt := range []struct {
		by   string
		want []string
	}{
		{"container", []string{
			"shop-db-1|3145728|94371840", "shop-web-1|20971520|41943040", "blog-web-1|1000|12582912",
			"(kernel)|0|524288", "postfix.service|0|307200", "(unattributed)|4096|16384", "scratch|0|8192"}},
		{"project", []string{
			"shop|24117248|136314880", "blog|1000|12582912",
			"(kernel)|0|524288", "postfix.service|0|307200", "(unattributed)|4096|16384", "scratch (no project)|0|8192"}},
		{"service", []string{
			"shop/db|3145728|94371840", "shop/web|20971520|41943040", "blog/web|1000|12582912",
			"(kernel)|0|524288", "postfix.service|0|307200", "(unattributed)|4096|16384", "scratch (no service)|0|8192"}},
		{"image", []string{
			"registry.example/db:1.2|3145728|94371840", "registry.example/web:1.2|20972520|54525952",
			"(kernel)|0|524288", "postfix.service|0|307200", "(unattributed)|4096|16384", "debian:12|0|8192"}},
		{"device", []string{"sda|3150824|95227904", "nas1:/export/shop|20971520|41943040", "backup@vault:/|0|12582912"}},
		{"mount", []string{
			"/dev/sda1 on /|3146728|94687232", "nas1:/export/shop volume shopdata|20971520|41943040", "backup@vault:/ on /mnt/vault|0|12582912",
			"sda (mount unknown)|4096|540672"}},
		{"nfs-server", []string{"(not nfs)|3150824|107810816", "nas1|20971520|41943040"}},
		{"source", []string{"block|3150824|95227904", "nfs|20971520|41943040", "fuse|0|12582912"}},
		{"op", []string{"write|0|149753856", "read|24122344|0", "discard|0|0", "flush|0|0", "metadata|0|0"}},
		{"host", []string{"web1|24122344|149753856"}},
		{"process", []string{
			"postgres[4321]|3145728|94371840", "(no process)|20972520|54841344", "(kernel)|0|524288", "(unattributed)|4096|16384"}},
		{"cgroup", []string{
			"/docker/aaaa11110000|3145728|94371840", "/docker/bbbb22220000|20971520|41943040", "/docker/cccc33330000|1000|12582912",
			"(kernel)|0|524288", "/system.slice/postfix.service|0|307200", "(unattributed)|4096|16384", "/docker/dddd|0|8192"}},
		{"pod", []string{
			"shop-db-1 (no pod)|3145728|94371840", "shop-web-1 (no pod)|20971520|41943040", "blog-web-1 (no pod)|1000|12582912",
			"(kernel)|0|524288", "postfix.service|0|307200", "(unattributed)|4096|16384", "scratch (no pod)|0|8192"}},
		{"label:com.example.team", []string{
			"shop-team|24117248|136314880", "blog-team|1000|12582912",
			"(kernel)|0|524288", "postfix.service|0|307200", "(unattributed)|4096|16384", "scratch (no label com.example.team)|0|8192"}},
		{"project,source", []string{
			"shop, block|3145728|94371840", "shop, nfs|20971520|41943040", "blog, fuse|0|12582912", "(kernel), block|0|524288",
			"postfix.service, block|0|307200", "(unattributed), block|4096|16384", "scratch (no project), block|0|8192", "blog, block|1000|0"}},
	} {
		t.Run(tt.by, func(t *testing.T) {
			summary := output.Group(outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, tt.by)})
			got := outputtest.RowTexts(summary.Rows)
			want := slices.Clone(tt.want)
			slices.Sort(want)
			if sorted := slices.Sorted(slices.Values(got)); !slices.Equal(sorted, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(sorted, "\n"), strings.Join(want, "\n"))
			}
			if !slices.IsSortedFunc(summary.Rows, func(a, b output.Row) int { return int(b.Total.Bytes()) - int(a.Total.Bytes()) }) {
				t.Errorf("rows are not sorted by total: %q", got)
			}
			outputtest.CheckTotals(t, summary, outputtest.Shop(), output.GroupOptions{})
		})
	}
}

func TestGroupStacked(t *testing.T) {
	iv := outputtest.Shop()
	for name, tt := range map[string]struct {
		opt  output.GroupOptions
		want []string
	}{
		"container": {output.GroupOptions{}, nil},
		"device":    {output.GroupOptions{By: outputtest.Keys(t, "device")}, []string{"dm-0|3145728|94371840"}},
		"both":      {output.GroupOptions{By: outputtest.Keys(t, "project,device")}, []string{"shop, dm-0|3145728|94371840"}},
		"filter":    {output.GroupOptions{Filters: outputtest.Filters(t, "device=dm-*")}, []string{"shop-db-1|3145728|94371840"}},
		"asked":     {output.GroupOptions{Stacked: true}, []string{"shop-db-1|3145728|94371840"}},
	} {
		summary := output.Group(iv, tt.opt)
		if got := outputtest.RowTexts(summary.Stacked); !slices.Equal(got, tt.want) {
			t.Errorf("%s: stacked rows %q, want %q", name, got, tt.want)
		}
		if got := summary.Total.Total.Bytes(); got != 24122344+149753856 {
			t.Errorf("%s: total is %d", name, got)
		}
	}
}

func TestGroupFilters(t *testing.T) {
	for _, tt := range []struct {
		filters []string
		want    []string
	}{
		{[]string{"project=shop"}, []string{"shop-db-1|3145728|94371840", "shop-web-1|20971520|41943040"}},
		{[]string{"project=shop", "project=blog", "service=web"}, []string{"shop-web-1|20971520|41943040", "blog-web-1|1000|12582912"}},
		{[]string{"project=SHOP", "service=*/WEB"}, []string{"shop-web-1|20971520|41943040"}},
		{[]string{"service=shop/*", "source=nfs"}, []string{"shop-web-1|20971520|41943040"}},
		{[]string{"op=write", "container=blog*"}, []string{"blog-web-1|0|12582912"}},
		{[]string{"op=discard"}, []string{"scratch|0|0"}},
		{[]string{"container=cccc3333000?"}, []string{"blog-web-1|1000|12582912"}},
		{[]string{"container=cccc333300"}, nil},
		{[]string{"container=aaaa1111*"}, []string{"shop-db-1|3145728|94371840"}},
		{[]string{"process=postgres"}, []string{"shop-db-1|3145728|94371840"}},
		{[]string{"process=4321"}, []string{"shop-db-1|3145728|94371840"}},
		{[]string{"mount=/mnt/*"}, []string{"blog-web-1|0|12582912"}},
		{[]string{"mount=shopdata"}, []string{"shop-web-1|20971520|41943040"}},
		{[]string{"image=registry.example/web"}, []string{"shop-web-1|20971520|41943040", "blog-web-1|1000|12582912"}},
		{[]string{"container=(unattributed)"}, []string{"(unattributed)|4096|16384"}},
		{[]string{"label:com.example.team=*-team", "source=block"}, []string{"shop-db-1|3145728|94371840", "blog-web-1|1000|0"}},
		{[]string{"nfs-server=nas1"}, []string{"shop-web-1|20971520|41943040"}},
		{[]string{"device=/dev/sda", "project=blog"}, []string{"blog-web-1|1000|0"}},
		{[]string{"cgroup=/system.slice/*"}, []string{"postfix.service|0|307200"}},
		{[]string{"project=nobody"}, nil},
	} {
		summary := output.Group(outputtest.Shop(), output.GroupOptions{Filters: outputtest.Filters(t, tt.filters...)})
		if got := outputtest.RowTexts(summary.Rows); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.filters, got, tt.want)
		}
		outputtest.CheckTotals(t, summary, outputtest.Shop(), output.GroupOptions{})
	}
}

// TestGroupDeviceAlias: a device is found by each of its names, and its row has two.
func TestGroupDeviceAlias(t *testing.T) {
	iv := outputtest.Shop()
	for i := range iv.Samples {
		if d := &iv.Samples[i].Device; d.Name == "dm-0" {
			d.Alias = "vg0-data"
		}
	}
	want := []string{"dm-0 (vg0-data)|3145728|94371840"}
	for _, filter := range []string{"device=dm-0", "device=/dev/dm-0", "device=vg0-*", "device=253:0", "device=dm-0 (*"} {
		summary := output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "device"), Filters: outputtest.Filters(t, filter)})
		if got := outputtest.RowTexts(summary.Stacked); !slices.Equal(got, want) {
			t.Errorf("%s: stacked rows %q, want %q", filter, got, want)
		}
	}
}

// TestGroupSameNames: different things with the same name have different rows.
func TestGroupSameNames(t *testing.T) {
	iv := outputtest.SameNames()
	summary := output.Group(iv, output.GroupOptions{Sort: output.Sort{Column: "name"}})
	got := outputtest.RowTexts(summary.Rows)
	slices.Sort(got)
	want := []string{"(kernel)|4|0", "(kernel)|8|0", "p-s-1 (helper)|16|0", "p-s-1|2|0", "p-s-1|2|0", "p-s-1|32|0"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	ids := make(map[string]bool)
	for i := range summary.Rows {
		ids[summary.Rows[i].ID()] = true
	}
	if len(ids) != len(want) {
		t.Errorf("%d ids for %d rows", len(ids), len(want))
	}
}

// TestGroupSums: for random samples and options, rows add up to what was counted.
func TestGroupSums(t *testing.T) {
	patterns := []string{"*", "shop", "*e*", "block", "write", "read", "sd?", "(unattributed)", "nobody"}
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 1))
		iv := outputtest.Random(rng, 1+rng.IntN(60))
		opt := output.GroupOptions{Top: rng.IntN(6), Level: []output.Level{"", output.LevelWire, output.LevelApp, output.LevelBoth}[rng.IntN(4)], CgroupDepth: rng.IntN(3), Stacked: rng.IntN(2) == 0}
		for range 1 + rng.IntN(3) {
			k := outputtest.AllKeys()[rng.IntN(len(outputtest.AllKeys()))]
			if rng.IntN(8) == 0 {
				k = output.KeyLabel("com.example.team")
			}
			if !slices.Contains(opt.By, k) {
				opt.By = append(opt.By, k)
			}
		}
		for range rng.IntN(3) {
			opt.Filters = append(opt.Filters, output.Filter{outputtest.AllKeys()[rng.IntN(len(outputtest.AllKeys()))], patterns[rng.IntN(len(patterns))]})
		}
		columns := output.SortColumns()
		opt.Sort = output.Sort{columns[rng.IntN(len(columns))], rng.IntN(2) == 0}
		summary := output.Group(iv, opt)
		outputtest.CheckTotals(t, summary, iv, opt)
		if t.Failed() {
			t.Fatalf("seed %d, options %+v", seed, opt)
		}
		if again := output.Group(iv, opt); !slices.Equal(outputtest.RowTexts(again.Rows), outputtest.RowTexts(summary.Rows)) {
			t.Fatalf("seed %d: the order of rows changes from call to call", seed)
		}
		for i := range summary.Rows {
			if r := &summary.Rows[i]; len(r.Keys) != len(opt.By) || len(r.Sources) == 0 {
				t.Fatalf("seed %d: row %+v", seed, r)
			}
		}
		if opt.Top > 0 && len(summary.Rows) > opt.Top {
			for i := opt.Top; i < len(summary.Rows); i++ {
				if o := summary.Rows[i].Identity().Owner; o != output.OwnerUnattributed && o != output.OwnerOther {
					t.Fatalf("seed %d: %d rows with --top %d", seed, len(summary.Rows), opt.Top)
				}
			}
		}
	}
}

func TestGroupTop(t *testing.T) {
	summary := output.Group(outputtest.Shop(), output.GroupOptions{Top: 2})
	// Bytes without an owner keep their row.
	if got, want := outputtest.RowTexts(summary.Rows), []string{"shop-db-1|3145728|94371840", "shop-web-1|20971520|41943040", "(unattributed)|4096|16384"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if summary.Rest == nil || summary.Rest.Groups != 4 || summary.Rest.Total.Bytes() != 1000+12582912+524288+307200+8192 {
		t.Errorf("rest is %+v", summary.Rest)
	}
	outputtest.CheckTotals(t, summary, outputtest.Shop(), output.GroupOptions{})
	if summary := output.Group(outputtest.Shop(), output.GroupOptions{Top: 7}); summary.Rest != nil || len(summary.Rows) != 7 {
		t.Errorf("nothing was to be cut, but rest is %+v", summary.Rest)
	}
}

func TestGroupSort(t *testing.T) {
	for s, want := range map[string]string{
		"total": "shop-db-1", "read": "shop-web-1", "write": "shop-db-1", "ops": "shop-web-1", "latency": "blog-web-1",
		"name": "(kernel)", "-name": "shop-web-1", "nfs": "shop-web-1", "fuse": "blog-web-1", "block": "shop-db-1", "-total": "scratch",
	} {
		sort, err := output.ParseSort(s)
		if err != nil {
			t.Fatal(err)
		}
		if summary := output.Group(outputtest.Shop(), output.GroupOptions{Sort: sort}); summary.Rows[0].Text() != want {
			t.Errorf("sorted by %s the first is %q, want %q", s, summary.Rows[0].Text(), want)
		}
	}
}

// TestGroupBasis: the basis is set only where it is known.
func TestGroupBasis(t *testing.T) {
	summary := output.Group(outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "project,op"), Filters: outputtest.Filters(t, "project=shop")})
	for i := range summary.Rows {
		if r := &summary.Rows[i]; r.Total.Bytes() > 0 && (!r.Total.BasisUnknown || r.Total.Basis != output.BasisBytes{}) {
			t.Errorf("%s: basis is %+v although samples were taken apart", r.Text(), r.Total.Basis)
		}
	}
	summary = output.Group(outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "project,op"), Filters: outputtest.Filters(t, "container=postfix*")})
	if u := &summary.Rows[0].Total; u.BasisUnknown || u.Basis.Dirtier != 300<<10 {
		t.Errorf("a sample with nothing but writes: %+v", u.Basis)
	}
}

func TestIdentity(t *testing.T) {
	summary := output.Group(outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "project")})
	id := summary.Rows[0].Identity()
	if id.Project != "shop" || id.ProjectRule != "com.docker.compose.project" || id.Owner != output.OwnerContainer || id.Container.Runtime != "docker" {
		t.Errorf("shared fields are missing: %+v", id)
	}
	if id.Service != "" || id.Container.ID != "" || id.Container.Name != "" || id.Container.Labels != nil || id.Container.Image != "" ||
		id.Cgroup != (output.Cgroup{}) || id.Device != (output.Device{}) || id.Mount != (output.Mount{}) {
		t.Errorf("fields of one member: %+v", id)
	}
	summary = output.Group(outputtest.Shop(), output.GroupOptions{By: outputtest.Keys(t, "image")})
	if id := summary.Rows[1].Identity(); id.Container.Image != "registry.example/web" || id.Container.ID != "" || id.Service != "" || id.Project != "" {
		t.Errorf("two containers of one image and two projects: %+v", id)
	}
	if !reflect.DeepEqual(summary.Total.Identity(), output.Identity{}) {
		t.Error("a sum has no identity")
	}
}

func TestTruncateCgroup(t *testing.T) {
	for _, tt := range []struct {
		path  string
		depth int
		want  string
	}{
		{"/a/b/c", 0, "/a/b/c"}, {"/a/b/c", 1, "/a"}, {"/a/b/c", 2, "/a/b"}, {"/a/b/c", 3, "/a/b/c"}, {"/a/b/c", 9, "/a/b/c"}, {"/", 1, "/"}, {"", 1, ""},
	} {
		if got := output.TruncateCgroup(tt.path, tt.depth); got != tt.want {
			t.Errorf("truncateCgroup(%q, %d) = %q, want %q", tt.path, tt.depth, got, tt.want)
		}
	}
}

func TestLatency(t *testing.T) {
	var sum output.Latency
	rng := rand.New(rand.NewPCG(1, 2))
	all := make(map[uint64]uint64)
	for range 200 {
		var l output.Latency
		at := uint64(0)
		for range rng.IntN(5) {
			at += 1 + rng.Uint64N(20)
			n := 1 + rng.Uint64N(100)
			l.Buckets = append(l.Buckets, output.Bucket{UpTo: at, Count: n})
			all[at] += n
		}
		before := l
		before.Buckets = slices.Clone(l.Buckets)
		sum.Merge(&l)
		if !reflect.DeepEqual(l, before) {
			t.Fatal("adding changed what was added")
		}
	}
	if len(sum.Buckets) != len(all) || !slices.IsSortedFunc(sum.Buckets, func(a, b output.Bucket) int { return int(a.UpTo) - int(b.UpTo) }) {
		t.Fatalf("got %d buckets, want %d in order", len(sum.Buckets), len(all))
	}
	for _, b := range sum.Buckets {
		if all[b.UpTo] != b.Count {
			t.Errorf("bucket up to %d holds %d, want %d", b.UpTo, b.Count, all[b.UpTo])
		}
	}

	l := output.Latency{Buckets: []output.Bucket{{10, 50}, {20, 45}, {40, 4}, {80, 1}}, Max: 71}
	for q, want := range map[float64]uint64{0: 10, 0.5: 10, 0.501: 20, 0.95: 20, 0.951: 40, 0.99: 40, 0.995: 71, 1: 71} {
		if got := l.Quantile(q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := (output.Latency{}).Quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing is %d", got)
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"project=shop", "op=write", "label:a=b*", "image=[a-z]*/x", `container=\`, "=", "mount=[", "cgroup=/a/*/c"} {
		f.Add(s, "shop")
	}
	iv := outputtest.Shop()
	f.Fuzz(func(t *testing.T, s, name string) {
		filter, err := output.ParseFilter(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b\u009b") {
				t.Errorf("error text %q is not fit for a terminal", err)
			}
			return
		}
		if again, err := output.ParseFilter(filter.String()); err != nil || again != filter {
			t.Errorf("%q reads back as %v, %v", filter, again, err)
		}
		iv.Samples[0].Project, iv.Samples[0].Container.Name = name, name
		summary := output.Group(iv, output.GroupOptions{Filters: []output.Filter{filter}})
		outputtest.CheckTotals(t, summary, iv, output.GroupOptions{})
	})
}

func BenchmarkGroup(b *testing.B) {
	iv := outputtest.Random(rand.New(rand.NewPCG(1, 1)), 10_000)
	for _, by := range []string{"container", "project", "container,device", "project,op"} {
		b.Run(by, func(b *testing.B) {
			opt := output.GroupOptions{By: outputtest.Keys(b, by), Top: 20}
			b.ReportAllocs()
			for b.Loop() {
				output.Group(iv, opt)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(iv.Samples)), "ns/sample")
		})
	}
}

// TestOuter: --by outer counts nested containers for the outermost one.
func TestOuter(t *testing.T) {
	wrote := func(owner output.OwnerKind, c output.Container, n uint64) output.Sample {
		return output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: owner, Container: c, Write: output.Amount{Bytes: n, Ops: 1}}
	}
	iv := &output.Interval{Samples: []output.Sample{
		wrote(output.OwnerContainer, output.Container{ID: "aaaa1111", Name: "ci"}, 1),
		wrote(output.OwnerContainer, output.Container{ID: "bbbb", Name: "job", Parent: "aaaa1111", Outer: "aaaa1111", OuterName: "ci"}, 20),
		wrote(output.OwnerContainer, output.Container{ID: "cccc", Name: "step", Parent: "bbbb", Outer: "aaaa1111", OuterName: "ci"}, 300),
		wrote(output.OwnerHelper, output.Container{Runtime: "podman", Parent: "aaaa1111", Outer: "aaaa1111", OuterName: "ci"}, 4000),
		wrote(output.OwnerContainer, output.Container{ID: "dddd", Name: "web"}, 50000),
		wrote(output.OwnerContainer, output.Container{ID: "eeee", Name: "inner", Parent: strings.Repeat("f", 64), Outer: strings.Repeat("f", 64)}, 600000),
		wrote(output.OwnerKernel, output.Container{}, 7000000),
	}}
	by, err := output.ParseKeys("outer")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"(kernel)|0|7000000", "ffffffffffff|0|600000", "web|0|50000", "ci|0|4321"}
	if got := outputtest.RowTexts(output.Group(iv, output.GroupOptions{By: by}).Rows); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	for pattern, want := range map[string][]string{"ci": {"ci|0|4321"}, "aaaa1111": {"ci|0|4321"}, "web": {"web|0|50000"}, "fffff*": {"ffffffffffff|0|600000"}} {
		f, err := output.ParseFilter("outer=" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range output.Group(iv, output.GroupOptions{By: by, Filters: []output.Filter{f}}).Rows {
			if !strings.HasPrefix(r.Text(), "(filtered") {
				got = append(got, outputtest.RowTexts([]output.Row{r})...)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("outer=%s: got %q, want %q", pattern, got, want)
		}
	}
}

// TestNamedBy: equal names by the machine, a user and a runtime inside a container are
// three rows, each of which says whose it is.
func TestNamedBy(t *testing.T) {
	id := strings.Repeat("a", 64)
	say := func(by, outer, outerName string, n uint64) output.Sample {
		return output.Sample{Source: output.SourceBlock, Level: output.LevelWire, Owner: output.OwnerContainer,
			Project: "shop", ProjectRule: "compose", Service: "db", NamedBy: by, ProjectNamedBy: by,
			Container: output.Container{ID: id, Name: "shop-db-1", Image: "pg", ImageTag: "16", Outer: outer, OuterName: outerName, Labels: map[string]string{"team": "blue"}},
			Pod:       output.Pod{Name: "db-0", Namespace: "prod", UID: "1"}, Write: output.Amount{Bytes: n, Ops: 1}}
	}
	iv := &output.Interval{Samples: []output.Sample{
		say("", "", "", 4000),
		say("user 1000", "", "", 300),
		say("user 1000 container "+id, id, "", 1),
		say("container "+id, id, "ci", 20),
	}}
	iv.Samples[3].Container.ID = strings.Repeat("b", 64)
	for key, want := range map[string][]string{
		"project":    {"shop|0|4000", "shop (user 1000)|0|300", "shop (in ci)|0|20", "shop (user 1000)|0|1"},
		"service":    {"shop/db|0|4000", "shop/db (user 1000)|0|300", "shop/db (in ci)|0|20", "shop/db (user 1000)|0|1"},
		"container":  {"shop-db-1|0|4000", "shop-db-1 (user 1000)|0|300", "shop-db-1 (in ci)|0|20", "shop-db-1 (user 1000)|0|1"},
		"image":      {"pg:16|0|4000", "pg:16 (user 1000)|0|300", "pg:16 (in ci)|0|20", "pg:16 (user 1000)|0|1"},
		"pod":        {"prod/db-0|0|4000", "prod/db-0 (user 1000)|0|300", "prod/db-0 (in ci)|0|20", "prod/db-0 (user 1000)|0|1"},
		"namespace":  {"prod|0|4000", "prod (user 1000)|0|300", "prod (in ci)|0|20", "prod (user 1000)|0|1"},
		"label:team": {"blue|0|4000", "blue (user 1000)|0|300", "blue (in ci)|0|20", "blue (user 1000)|0|1"},
		// The container of the machine and what runs in it, and the user's under the same id.
		"outer": {"shop-db-1|0|4020", "shop-db-1 (user 1000)|0|301"},
	} {
		got := outputtest.RowTexts(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, key)}).Rows)
		if key == "outer" {
			slices.Sort(got)
			slices.Sort(want)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q\nwant %q", key, got, want)
		}
	}
	// A filter names all of them, or one.
	for pattern, bytes := range map[string]uint64{"project=shop": 4321, "project=shop (user*": 301, "namespace=prod": 4321, "label:team=blue": 4321, "container=shop-db-1": 4321} {
		f, err := output.ParseFilter(pattern)
		if err != nil {
			t.Fatal(err)
		}
		s := output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "source"), Filters: []output.Filter{f}})
		if len(s.Rows) != 1 || s.Rows[0].Total.Bytes() != bytes {
			t.Errorf("%s: %v", pattern, outputtest.RowTexts(s.Rows))
		}
	}
	// What the rows have in common is what one of them says.
	if id := output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "source")}).Rows[0].Identity(); id.Project != "" || id.NamedBy != "" {
		t.Errorf("in common: %+v", id)
	}
}

// TestNFSServers: servers behind tunnels differ in their port, nodes of one name in their
// address.
func TestNFSServers(t *testing.T) {
	on := func(server, address string, port uint16, n uint64) output.Sample {
		return output.Sample{Source: output.SourceNFS, Level: output.LevelWire, Owner: output.OwnerUnit, Unit: "a.service",
			Mount: output.Mount{NFSServer: server, NFSAddress: address, NFSPort: port}, Write: output.Amount{Bytes: n, Ops: 1}}
	}
	iv := &output.Interval{Samples: []output.Sample{
		on("127.0.0.1", "127.0.0.1", 20117, 700), on("127.0.0.1", "127.0.0.1", 20118, 600), on("::1", "::1", 20117, 500),
		on("filer", "10.0.0.1", 0, 400), on("filer", "10.0.0.2", 2049, 300), on("nas", "10.0.0.3", 2049, 200), on("old", "", 0, 100),
	}}
	want := []string{"127.0.0.1:20117|0|700", "127.0.0.1:20118|0|600", "[::1]:20117|0|500", "filer (10.0.0.1)|0|400", "filer (10.0.0.2)|0|300", "nas|0|200", "old|0|100"}
	if got := outputtest.RowTexts(output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "nfs-server")}).Rows); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	f, err := output.ParseFilter("nfs-server=filer")
	if err != nil {
		t.Fatal(err)
	}
	if s := output.Group(iv, output.GroupOptions{By: outputtest.Keys(t, "source"), Filters: []output.Filter{f}}); s.Rows[0].Total.Bytes() != 700 {
		t.Errorf("filter: %v", outputtest.RowTexts(s.Rows))
	}
}

// TestImageDigest: an image that was pulled by its digest is shown by it.
func TestImageDigest(t *testing.T) {
	var iv output.Interval
	for i, c := range []output.Container{
		{ID: "a", Image: "app", Digest: "sha256:" + strings.Repeat("ab", 32)}, {ID: "b", Image: "app", Digest: "sha256:" + strings.Repeat("cd", 32)},
		{ID: "c", Image: "app", ImageTag: "v1", Digest: "sha256:" + strings.Repeat("ef", 32)}, {ID: "d", Image: "app"},
	} {
		iv.Samples = append(iv.Samples, output.Sample{Source: output.SourceBlock, Owner: output.OwnerContainer, Container: c, Write: output.Amount{Bytes: uint64(400 - 100*i), Ops: 1}})
	}
	iv.Samples[3].Write.Bytes = 1
	want := []string{"app@sha256:abababababab|0|400", "app@sha256:cdcdcdcdcdcd|0|300", "app:v1|0|200", "app|0|1"}
	if got := outputtest.RowTexts(output.Group(&iv, output.GroupOptions{By: outputtest.Keys(t, "image")}).Rows); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// TestGoneCgroup: a cgroup without a path says why it has none.
func TestGoneCgroup(t *testing.T) {
	s := output.Sample{Owner: output.OwnerCgroup, Cgroup: output.Cgroup{ID: 12345}}
	if got := output.OwnerText(&s); got != "cgroup 12345" {
		t.Errorf("got %q", got)
	}
	s.Cgroup.Gone = true
	if got := output.OwnerText(&s); got != "cgroup 12345 (removed before its name was read)" {
		t.Errorf("got %q", got)
	}
}

func TestP9Tag(t *testing.T) {
	for _, tt := range []struct{ fstype, transport, source, tag string }{
		{"9p", "virtio", "home", "home"},
		{"9p", "xen", "home", "home"},
		{"9p", "tcp", "10.1.0.1", ""},
		{"9p", "", "home", ""},
		{"virtiofs", "virtio", "home", ""},
	} {
		if tag := output.P9Tag(&output.Mount{FSType: tt.fstype, Transport: tt.transport, Source: tt.source}); tag != tt.tag {
			t.Errorf("%s %s over %q has tag %q, want %q", tt.fstype, tt.source, tt.transport, tag, tt.tag)
		}
	}
}

func TestCephMount(t *testing.T) {
	const fsid = "6d0a6f5e-0000-4000-8000-000000000002"
	for _, tt := range []struct{ fstype, source, cluster, filesystem, path string }{
		{"ceph", "10.0.0.1:6789:/", "10.0.0.1:6789", "", "/"},
		{"ceph", "10.0.0.1:6789,10.0.0.2:6789:/volumes/a:/b", "10.0.0.1:6789,10.0.0.2:6789", "", "/volumes/a:/b"},
		{"ceph", "[fd00::1]:6789:/shop", "[fd00::1]:6789", "", "/shop"},
		{"ceph", "admin@" + fsid + ".cephfs=/volumes/_nogroup/web@1", fsid, "cephfs", "/volumes/_nogroup/web@1"},
		{"ceph", "admin@" + fsid + ".cephfs=", fsid, "cephfs", "/"},
		{"ceph", "admin@.cephfs=/a", "", "", ""},
		{"ceph", "10.0.0.1:6789:/a@b.c=/d", "10.0.0.1:6789", "", "/a@b.c=/d"},
		{"ceph", "", "", "", ""},
		{"nfs4", "10.0.0.1:/a", "", "", ""},
	} {
		cluster, filesystem, path := output.CephMount(&output.Mount{FSType: tt.fstype, Source: tt.source})
		if cluster != tt.cluster || filesystem != tt.filesystem || path != tt.path {
			t.Errorf("%s %s is directory %q of file system %q of cluster %q, want %q of %q of %q", tt.fstype, tt.source, path, filesystem, cluster, tt.path, tt.filesystem, tt.cluster)
		}
	}
}

func TestSMBShare(t *testing.T) {
	for _, tt := range []struct{ fstype, source, server, share string }{
		{"cifs", "//nas/backup", "nas", "backup"},
		{"smb3", "//nas.example.net/home/ann/mail", "nas.example.net", "home"},
		{"cifs", `\\nas\backup`, "nas", "backup"},
		{"cifs", "//[fe80::1]/backup", "[fe80::1]", "backup"},
		{"cifs", "//nas", "nas", ""},
		{"cifs", "", "", ""},
		{"nfs4", "//nas/backup", "", ""},
	} {
		if server, share := output.SMBShare(&output.Mount{FSType: tt.fstype, Source: tt.source}); server != tt.server || share != tt.share {
			t.Errorf("%s %s is share %q of server %q, want %q of %q", tt.fstype, tt.source, share, server, tt.share, tt.server)
		}
	}
}
