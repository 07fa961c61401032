package main

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// giveBack returns the memory to the system that only starting took: tens of MiB
// for the kernel's types, and most pages of the program's own file.
func giveBack() {
	debug.FreeOSMemory()
	releaseOwnFile()
}

// releaseOwnFile unmaps the pages of the executable. They stay in the page cache,
// and those that are used again come back from there, one cheap fault for some
// pages. Mappings that were written to, if only by relocation, are left alone.
func releaseOwnFile() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer smaps.Close()
	type mapping struct{ from, to uintptr }
	var clean []mapping
	var at *mapping // of our file, and read only
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		if from, to, ok := strings.Cut(f[0], "-"); ok {
			at = nil
			start, err1 := strconv.ParseUint(from, 16, 64)
			end, err2 := strconv.ParseUint(to, 16, 64)
			if err1 == nil && err2 == nil && len(f) == 6 && f[5] == exe && (f[1] == "r--p" || f[1] == "r-xp") {
				at = &mapping{uintptr(start), uintptr(end)}
			}
			continue
		}
		if at != nil && f[0] == "Anonymous:" && f[1] == "0" {
			clean = append(clean, *at)
		}
	}
	for _, m := range clean {
		// What fails here costs memory and nothing else.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}
