package attribute

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestUntraced(t *testing.T) {
	r, proc, _ := mountHost(t)
	if got := r.Untraced(); got != nil {
		t.Errorf("a host with NFS and FUSE has %+v", got)
	}
	more := hostMounts +
		"80 27 0:80 / /mnt/win rw - cifs //nas/share rw\n" +
		"81 27 0:81 / /srv/ceph rw - ceph 192.0.2.1:/ rw\n" +
		"82 27 0:80 /sub /mnt/also\\040here rw - cifs //nas/share rw\n" +
		"83 27 0:83 / /mnt/vm rw - virtiofs tag rw\n"
	if err := os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	r.mounts.dirty, r.mounts.loaded = true, r.mounts.loaded.Add(-reloadKnown)
	want := []Untraced{{"ceph", []string{"/srv/ceph"}}, {"cifs", []string{"/mnt/also here", "/mnt/win"}}}
	if got := r.Untraced(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
