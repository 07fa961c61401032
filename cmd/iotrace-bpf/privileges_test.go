//go:build cgo

package main

import (
	"errors"
	"testing"
)

// TestDropPrivilegesWithC: with cgo nothing can be dropped, and the error says what
// to do. The test itself is such a program; without cgo it would lose its
// capabilities.
func TestDropPrivilegesWithC(t *testing.T) {
	if err := dropPrivileges(nil); !errors.Is(err, errLinkedWithC) {
		t.Errorf("got %v, want %v", err, errLinkedWithC)
	}
}
