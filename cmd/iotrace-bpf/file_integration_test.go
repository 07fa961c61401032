//go:build integration

package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/attribute/enginetest"
)

// TestFilesOfContainers: two containers write files into volumes on one disk, which an
// outsider writes back much later. Each file has the bytes that were written to it, at the
// path that its container sees and at that of the host; all files together have what the
// containers have in a run without files. What a container prints is its log.
func TestFilesOfContainers(t *testing.T) {
	d := newDisk(t, 96)
	d.format(t, mkExt4()...)
	e := enginetest.Start(t)
	const wait = `until [ -e /tmp/go ]; do sleep 0.1; done; exec 2>/dev/null
put() { dd if=/dev/zero of=$1 bs=4k count=$2; }
`
	scripts := map[string]string{
		"shop": `put /data/orders 300
for i in 1 2 3 4 5 6 7 8 9; do put /data/small-$i $i; done
put /data/part 200; mv /data/part /data/whole
put /data/name 50; ln /data/name /data/other
`,
		"bank": `put /data/ledger 150
exec 9>/data/scratch; dd if=/dev/zero bs=4k count=120 >&9; rm /data/scratch
put /own 100
`,
	}
	const end = `
: > /tmp/done; i=0; while [ $i -lt 1000 ]; do echo 0123456789012345678901234567890123456789012345678901234567890123; i=$((i+1)); done
until [ -e /tmp/end ]; do sleep 0.1; done`
	for name, script := range scripts {
		mustRun(t, "mkdir", filepath.Join(d.mount, name))
		e.Run(t, append(project(name, "web"), "--name", name+"-web-1", "--volume", filepath.Join(d.mount, name)+":/data",
			enginetest.Image, "sh", "-c", wait+script+end)...)
	}
	t.Cleanup(func() { e.Docker(t, "rm", "--force", "shop-web-1", "bank-web-1") }) // they hold the disk

	flags := []string{"--vxlan=false", "--source", "block", "--interval", "500ms", "--docker-host", e.Socket}
	plain := trace(t, append([]string{"--by", "container,device"}, flags...)...)
	byFile := trace(t, append([]string{"--by", "container,device,file", "--export-files"}, flags...)...)
	for name := range scripts {
		e.Docker(t, "exec", name+"-web-1", "touch", "/tmp/go")
	}
	for name := range scripts {
		enginetest.Poll(t, time.Minute, name+" wrote", func() bool { return e.Command("exec", name+"-web-1", "test", "-e", "/tmp/done").Run() == nil })
	}
	d.flush(t)
	// The containers still run: which path a container sees is in its table of mounts.
	got, want := byFile.stop(t), plain.stop(t)
	for name := range scripts {
		e.Docker(t, "exec", name+"-web-1", "touch", "/tmp/end")
	}

	type file struct{ container, host, inside string }
	written, removed := map[file]uint64{}, map[file]bool{}
	logs := map[string]bool{}
	var own uint64
	for i := range got {
		x := &got[i]
		f := &x.Iotrace.File
		if f.LogOf != "" && x.Iotrace.Write.Bytes > 0 && strings.HasSuffix(x.File.Path, "-json.log") {
			logs[f.LogOf] = true
		}
		if x.Container.Name == "bank-web-1" && f.Inside == "/own" {
			own += x.Iotrace.Write.Bytes
		}
		if x.Event.Dataset != "iotrace.io" || !d.match(x) || f.Kind != "file" {
			continue
		}
		at := file{x.Container.Name, x.File.Path, f.Inside}
		written[at] += x.Iotrace.Write.Bytes
		removed[at] = removed[at] || f.Deleted
		if f.Links == 2 != (f.Inside == "/data/name" || f.Inside == "/data/other") {
			t.Errorf("%q has %d names", x.File.Path, f.Links)
		}
	}
	path := func(project, name string) file {
		return file{project + "-web-1", filepath.Join(d.mount, project, name), "/data/" + name}
	}
	expect := map[file]uint64{path("shop", "orders"): 300, path("shop", "whole"): 200, path("bank", "ledger"): 150}
	for i := range uint64(9) {
		expect[path("shop", "small-"+string(rune('1'+i)))] = i + 1
	}
	for f, blocks := range expect {
		if written[f] != blocks*4096 {
			t.Errorf("%+v: %d bytes, want %d", f, written[f], blocks*4096)
		}
		delete(written, f)
	}
	if n := written[path("shop", "name")] + written[path("shop", "other")]; n != 50*4096 {
		t.Errorf("a file with two names has %d bytes, want %d", n, 50*4096)
	}
	delete(written, path("shop", "name"))
	delete(written, path("shop", "other"))
	// What was removed before it was written back is never written.
	delete(written, path("bank", "scratch"))
	for f, n := range written {
		if n > 0 {
			t.Errorf("%d bytes of %+v, which nobody wrote", n, f)
		}
	}
	if own != 100*4096 {
		t.Errorf("a file of the container's own has %d bytes, want %d", own, 100*4096)
	}
	for name := range scripts {
		if !logs[name+"/web"] {
			t.Errorf("no log of %s among %v", name, logs)
		}
		of := func(docs []tracedDoc) total {
			return sum(docs, func(x *tracedDoc) bool { return d.match(x) && x.Container.Name == name+"-web-1" })
		}
		if a, b := of(got), of(want); a.write-a.metaWrite != b.write-b.metaWrite || a.write == 0 {
			t.Errorf("%s wrote %d bytes by file, %d without", name, a.write-a.metaWrite, b.write-b.metaWrite)
		}
	}
	if a, b := sum(got, d.match), sum(want, d.match); a.write != b.write || a.read != b.read {
		t.Errorf("the disk has %+v by file, %+v without", a, b)
	}
	if t.Failed() {
		dump(t, got)
	}
}
