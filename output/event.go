package output

import (
	"strconv"
	"strings"

	"github.com/iotrace-bpf/iotrace-bpf/output/text"
)

// The datasets of documents and events.
const (
	DatasetIO     = "iotrace.io"     // the totals of one group in an interval
	DatasetStatus = "iotrace.status" // sources, losses and overhead of an interval
	DatasetEvent  = "iotrace.event"  // one request (--events)
	DatasetVXLAN  = "iotrace.vxlan"  // something that happened to an overlay device
)

// String describes the event in one line that is safe for a terminal, without
// its time.
func (e *Event) String() string {
	switch {
	case e.VXLAN != nil:
		return e.VXLAN.line(e.Action)
	case e.IO != nil:
		return e.IO.line()
	}
	return text.Safe(e.Action)
}

// phrases collects the parts of a line, which commas separate.
type phrases struct{ b strings.Builder }

// add adds the words that are not empty as one phrase.
func (p *phrases) add(words ...string) {
	sep := ", "
	for _, w := range words {
		if w == "" {
			continue
		}
		if p.b.Len() > 0 {
			p.b.WriteString(sep)
		}
		p.b.WriteString(text.Safe(w))
		sep = " "
	}
}

// pair adds "name value" if there is a value.
func (p *phrases) pair(name, value string) {
	if value != "" {
		p.add(name, value)
	}
}

// line is, for example, "block write of 4.00KiB to sda by shop-db-1, took 1.20ms".
func (io *IO) line() string {
	var p phrases
	preposition := "on"
	switch Op(io.Op) {
	case OpRead:
		preposition = "from"
	case OpWrite:
		preposition = "to"
	}
	words := []string{string(io.Sample.Source), io.Op}
	if bytes := io.Amount().Bytes; bytes > 0 {
		words = append(words, "of", text.Size(bytes))
	}
	p.add(append(words, preposition, DeviceText(&io.Sample.Device), "by", OwnerText(&io.Sample))...)
	if io.Latency > 0 {
		p.pair("took", text.Nanos(io.Latency))
	}
	if io.Error {
		p.add("failed")
	}
	return p.b.String()
}

// Amount returns the amount of io that is set.
func (io *IO) Amount() *Amount {
	for _, op := range Ops {
		if a := io.Sample.Amount(op); !a.empty() {
			return a
		}
	}
	return &io.Sample.Metadata
}

func (v *VXLAN) line(action string) string {
	var p phrases
	p.add("vxlan", strings.ReplaceAll(action, "_", " "), v.Device)
	p.pair("vni", number(uint64(v.VNI)))
	p.pair("network", v.Network)
	p.pair("stack", v.Stack)
	switch len(v.Services) {
	case 0:
	case 1:
		p.pair("service", v.Services[0])
	default:
		p.add(append([]string{"services"}, v.Services...)...)
	}
	switch {
	case v.NetNS != 0 && v.NewNetNS != 0:
		p.add("from netns", number(v.NetNS), "to", number(v.NewNetNS))
	default:
		p.pair("netns", number(v.NetNS))
		p.pair("to netns", number(v.NewNetNS))
	}
	switch known := v.Process != (Process{}); {
	case known && v.Owner != nil:
		p.add("by", ProcessText(&v.Process), "in", OwnerText(v.Owner))
	case known:
		p.add("by", ProcessText(&v.Process))
	case v.Owner != nil:
		p.add("by", OwnerText(v.Owner))
	}
	if v.Culprit != "" {
		blocked := []string{"blocked by", v.Culprit}
		if v.CulpritNetNS != 0 {
			blocked = append(blocked, "in netns", number(v.CulpritNetNS))
		}
		p.add(blocked...)
	}
	p.pair("reason:", v.Reason)
	p.pair("error:", v.Err)
	if v.AgeNanos > 0 {
		p.add("age", text.Nanos(v.AgeNanos))
	}
	return p.b.String()
}

// number writes n, or nothing for 0.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
