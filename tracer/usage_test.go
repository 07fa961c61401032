package tracer

import "testing"

func TestParseDev(t *testing.T) {
	for in, want := range map[string]Dev{"8:0": dev(8, 0), "259:1048575": dev(259, 1048575)} {
		if got, ok := parseDev(in); !ok || got != want || got.String() != in {
			t.Errorf("%q: %v, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "8", "8:", ":0", "4096:0", "8:1048576", "-1:0", "8:0:0"} {
		if got, ok := parseDev(in); ok {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}
