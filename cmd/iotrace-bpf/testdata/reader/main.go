// Reader reads a file: buffered, with O_DIRECT or through a mapping.
package main

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"
)

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: reader buffered|direct|mmap FILE"))
	}
	how, path := os.Args[1], os.Args[2]
	flags := os.O_RDONLY
	if how == "direct" {
		flags |= syscall.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		fail(err)
	}
	switch how {
	case "buffered", "direct":
		buf := make([]byte, 128<<10+4096)
		off := 4096 - int(uintptr(unsafe.Pointer(&buf[0]))%4096)
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf[off:off+128<<10])
	case "mmap":
		err = mapped(f)
	default:
		err = fmt.Errorf("unknown way %q", how)
	}
	if err != nil {
		fail(err)
	}
}

func mapped(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	var sum byte
	for i := 0; i < len(m); i += 4096 {
		sum += m[i]
	}
	if sum == 1 { // so that the reads are not thrown away
		fmt.Println(sum)
	}
	return syscall.Munmap(m)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "reader:", err)
	os.Exit(1)
}
