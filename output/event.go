package output

import (
	"strconv"
	"strings"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// The datasets of documents and events.
const (
	DatasetIO     = "iotrace.io"     // a group's totals of an interval
	DatasetStatus = "iotrace.status" // sources, losses and own cost of an interval
	DatasetEvent  = "iotrace.event"  // one request (--events)
	DatasetVXLAN  = "iotrace.vxlan"  // a change to an overlay device
)

// String tells an event in one line that is safe for a terminal, without its
// time.
func (e *Event) String() string {
	switch {
	case e.VXLAN != nil:
		return e.VXLAN.line(e.Action)
	case e.IO != nil:
		return e.IO.line()
	}
	return text.Safe(e.Action)
}

// words collects the parts of a line.
type words struct{ b strings.Builder }

func (w *words) add(parts ...string) {
	for _, p := range parts {
		if p == "" {
			continue
		}
		if w.b.Len() > 0 {
			w.b.WriteByte(' ')
		}
		w.b.WriteString(text.Safe(p))
	}
}

// pair adds "name value" when there is a value.
func (w *words) pair(name, value string) {
	if value != "" {
		w.add(name, value)
	}
}

func (io *IO) line() string {
	var w words
	owner, _ := ownerValue(&io.Sample, "")
	a := io.Amount()
	w.add(string(io.Sample.Source), io.Op, text.Size(a.Bytes), DeviceText(&io.Sample.Device), "by", owner)
	if io.Latency > 0 {
		w.add("in", text.Nanos(io.Latency))
	}
	if io.Error {
		w.add("failed")
	}
	return w.b.String()
}

// Amount returns the one amount of io that is set.
func (io *IO) Amount() *Amount {
	for _, op := range Ops {
		if a := io.Sample.Amount(op); !a.empty() {
			return a
		}
	}
	return &io.Sample.Metadata
}

func (v *VXLAN) line(action string) string {
	var w words
	w.add("vxlan", strings.ReplaceAll(action, "_", " "), v.Device)
	w.pair("vni", number(uint64(v.VNI)))
	w.pair("network", v.Network)
	w.pair("stack", v.Stack)
	w.pair("services", strings.Join(v.Services, ","))
	w.pair("netns", number(v.NetNS))
	w.pair("to netns", number(v.NewNetNS))
	if v.Process != (Process{}) {
		w.add("by", ProcessText(&v.Process))
	}
	if v.Owner != nil {
		text, _ := ownerValue(v.Owner, "")
		w.add("of", text)
	}
	if v.Culprit != "" {
		w.add("because of", v.Culprit)
		w.pair("in netns", number(v.CulpritNetNS))
	}
	w.pair("reason:", v.Reason)
	w.pair("error:", v.Err)
	if v.AgeNanos > 0 {
		w.add("after", text.Nanos(v.AgeNanos))
	}
	return w.b.String()
}

// number writes n, and nothing for 0.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
