package vxlan

import (
	"path/filepath"
	"strconv"
	"strings"
)

// idInName is the number of characters of a network's id in the name of its device.
const idInName = 5

// ParseName reads the name that Docker gives to a vxlan device in the host's namespace:
// "vx-", the VNI as six lower-case hex digits, "-", the first five characters of the
// network's id. ok is false for every other name. (libnetwork, drivers/overlay,
// network.generateVxlanName)
func ParseName(name string) (vni uint32, id string, ok bool) {
	rest, found := strings.CutPrefix(name, "vx-")
	if !found || len(rest) != 6+1+idInName || rest[6] != '-' {
		return 0, "", false
	}
	for i := range 6 {
		if c := rest[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, "", false
		}
	}
	id = rest[7:]
	if !isID(id) {
		return 0, "", false
	}
	v, err := strconv.ParseUint(rest[:6], 16, 32)
	if err != nil || v == 0 {
		return 0, "", false
	}
	return uint32(v), id, true
}

// overlayID returns the beginning of the network's id in the file name of an overlay's
// namespace, such as "1-m64nqtdens"; "" for every other namespace file (sandboxes of
// containers, load balancers, "default").
func overlayID(path string) string {
	number, id, found := strings.Cut(filepath.Base(path), "-")
	if !found || number == "" || len(id) < idInName || !isID(id) {
		return ""
	}
	if strings.Trim(number, "0123456789") != "" {
		return ""
	}
	return id
}

// isID tells whether s has only characters of Docker's ids: base 36 for swarm networks,
// hex for those of an external store.
func isID(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}
