package text_test

import (
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"

	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"web-1":                  "web-1",
		"":                       "",
		"a b":                    "a b",
		"line\nfeed\r\t":         `line\nfeed\r\t`,
		"\x1b[31mred\x07":        `\x1b[31mred\x07`,
		"\u009b2J":               `\x9b2J`,
		"\x9b2J":                 `\x9b2J`,
		"\x7f":                   `\x7f`,
		"nul\x00":                `nul\x00`,
		"a\u202eb\u202c":         `a\u202eb\u202c`,
		"a\u2066b\u2069":         `a\u2066b\u2069`,
		"a\u200bb\ufeff\u00ad":   `a\u200bb\ufeff\xad`,
		"bad\xffutf\xc3":         `bad\xffutf\xc3`,
		"\xed\xa0\x80":           `\xed\xa0\x80`,
		"\ufffd":                 "\ufffd",
		"\u2028\u2029\u00a0":     `\u2028\u2029\xa0`,
		"\u3164\u115f\u2800":     `\u3164\u115f\u2800`,
		"\U000e0041\ue000":       `\U000e0041\ue000`,
		"漢字 é е́ 👍":              "漢字 é е́ 👍",
		"\u0301x":                `\u0301x`,
		"x\u0301\u0302\u0303":    "x\u0301\u0302\u0303",
		"x" + zalgo(5):           "x" + zalgo(3) + `\u0301\u0301`,
		"\n\u0301":               `\n\u0301`,
		`back\slash "quote" <&>`: `back\slash "quote" <&>`,
	} {
		if got := text.Safe(in); got != want {
			t.Errorf("Safe(%+q) = %+q, want %+q", in, got, want)
		}
	}
}

func zalgo(n int) string { return strings.Repeat("\u0301", n) }

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		in    string
		width int
		want  string
	}{
		{"shop", 4, "shop"}, {"shopping", 4, "sho…"}, {"shop", 1, "…"}, {"shop", 0, ""}, {"shop", -1, ""}, {"", 3, ""},
		{"漢字漢字", 5, "漢字…"}, {"漢字漢字", 4, "漢…"}, {"漢字", 4, "漢字"}, {"a\nb", 3, `a\…`},
		{strings.Repeat("x", 1<<20), 5, "xxxx…"},
	} {
		if got := text.Fit(tt.in, tt.width); got != tt.want {
			t.Errorf("Fit(%.20q, %d) = %q, want %q", tt.in, tt.width, got, tt.want)
		}
	}
}

func FuzzSafe(f *testing.F) {
	for _, s := range outputtest.HostileNames {
		f.Add(s, 10)
	}
	f.Fuzz(func(t *testing.T, s string, width int) {
		safe := text.Safe(s)
		outputtest.CheckSafe(t, safe)
		if again := text.Safe(safe); again != safe {
			t.Errorf("%+q is escaped twice: %+q", safe, again)
		}
		width %= 300
		fit := text.Fit(s, width)
		outputtest.CheckSafe(t, fit)
		if w := ansi.StringWidth(fit); w > max(width, 0) {
			t.Errorf("%+q takes %d cells, %d are there", fit, w, width)
		}
		if strings.TrimSpace(s) != "" && width > 0 && fit == "" {
			t.Errorf("nothing is left of %+q", s)
		}
	})
}

func TestUnits(t *testing.T) {
	for in, want := range map[float64]string{
		0: "0", 1: "1", 1023: "1023", 1023.4: "1023", 1023.6: "1.00Ki", 1024: "1.00Ki", 10239: "10.0Ki", 102340: "99.9Ki", 102350: "100Ki",
		1 << 20: "1.00Mi", 1047552: "1023Ki", 1048575: "1.00Mi", 1 << 63: "8.00Ei", 0.25: "0.25", 12.34: "12.3",
	} {
		if got := text.Scaled(in, 1024, text.BinaryUnits); got != want {
			t.Errorf("%v: got %q, want %q", in, got, want)
		}
		if got := text.Scaled(in, 1024, text.BinaryUnits); len(got) > text.NumberWidth {
			t.Errorf("%q is too wide", got)
		}
	}
	for in, want := range map[uint64]string{
		0: "-", 1: "1ns", 999: "999ns", 1000: "1.00us", 99_940: "99.9us", 99_960: "100us", 999_600: "1.00ms", 12_345_678: "12.3ms", 61e9: "61.0s", 4000e9: "4000s",
	} {
		if got := text.Nanos(in); got != want || len(got) > text.NumberWidth {
			t.Errorf("%v ns: got %q, want %q", in, got, want)
		}
	}
	for _, tt := range []struct {
		part, whole float64
		want        string
	}{{0, 0, "0 %"}, {1, 0, "0 %"}, {1, 1e6, "<0.1 %"}, {1, 3, "33.3 %"}, {3, 2, "150.0 %"}} {
		if got := text.Percent(tt.part, tt.whole); got != tt.want {
			t.Errorf("%v of %v: got %q, want %q", tt.part, tt.whole, got, tt.want)
		}
	}
	for n, want := range map[uint64]string{0: "0 latencies", 1: "1 latency", 2: "2 latencies", 1<<64 - 1: "18446744073709551615 latencies"} {
		if got := text.Plural(n, "latency", "latencies"); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
	if got := text.PerSecond(10<<20, 0); got == "" || strings.Contains(got, "Inf") {
		t.Errorf("an interval of no length gives %q", got)
	}
}
