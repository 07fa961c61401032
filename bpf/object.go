package bpf

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Object is a compiled object file.
type Object struct {
	name  string
	image []byte
}

// CoreObject is what every source shares, NamesObject names files; the others are the sources'.
func CoreObject() Object  { return Object{"core", _CoreBytes} }
func BlockObject() Object { return Object{"block", _BlockBytes} }
func NFSObject() Object   { return Object{"nfs", _NFSBytes} }
func FUSEObject() Object  { return Object{"fuse", _FUSEBytes} }
func SMBObject() Object   { return Object{"smb", _SMBBytes} }
func P9Object() Object    { return Object{"9p", _P9Bytes} }
func CephObject() Object  { return Object{"ceph", _CephBytes} }
func NFSDObject() Object  { return Object{"nfsd", _NFSDBytes} }
func NamesObject() Object { return Object{"names", _NamesBytes} }

// Read reads the object's maps and those programs that are named, with the rest of their
// sections. Without a name it reads all programs. lines says whether instructions have
// their lines of C, which the verifier's log shows.
//
// Reading all of an object takes twice as long and as much memory, and a start reads some.
func (o Object) Read(lines bool, programs ...string) (*ebpf.CollectionSpec, error) {
	image, err := trim(o.image, lines, programs)
	if err != nil {
		return nil, fmt.Errorf("reading the %s object: %w", o.name, err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("reading the %s object: %w", o.name, err)
	}
	if !lines {
		nameFunctions(spec)
	}
	return spec, nil
}

// nameFunctions gives each function its name instead of a line. An access that does not
// exist on a kernel gets a comment when it is relocated: to the kernel that is a line, and
// where there is one, it wants one of each function.
func nameFunctions(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			if fn := btf.FuncMetadata(&p.Instructions[i]); fn != nil {
				p.Instructions[i] = p.Instructions[i].WithSource(asm.Comment(fn.Name))
			}
		}
	}
}

// Places in files of ELF for 64 bits and in the section .BTF.ext: include/uapi/linux/elf.h,
// Documentation/bpf/btf.rst.
const (
	elfSections       = 0x28 // in the file's header: where the headers of sections are
	elfSectionSize    = 64   // of such a header
	elfSectionType    = 4    // in it
	btfLineInfoLength = 20
	btfRecordSize     = 4 // all that is left of the lines: the size of their records
)

// trim returns a copy of an object in which the sections of other programs are marked as
// unused.
func trim(image []byte, lines bool, programs []string) ([]byte, error) {
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	image = slices.Clone(image)
	if ext := file.Section(".BTF.ext"); ext != nil && !lines {
		file.ByteOrder.PutUint32(image[ext.Offset+btfLineInfoLength:], btfRecordSize)
	}
	if len(programs) == 0 {
		return image, nil
	}
	symbols, err := file.Symbols()
	if err != nil {
		return nil, err
	}
	wanted := map[elf.SectionIndex]bool{}
	for _, s := range symbols {
		if slices.Contains(programs, s.Name) {
			wanted[s.Section] = true
		}
	}
	headers := file.ByteOrder.Uint64(image[elfSections:])
	for i, s := range file.Sections {
		if s.Flags&elf.SHF_EXECINSTR != 0 && s.Name != ".text" && !wanted[elf.SectionIndex(i)] {
			file.ByteOrder.PutUint32(image[headers+uint64(i*elfSectionSize+elfSectionType):], uint32(elf.SHT_NULL))
		}
	}
	return image, nil
}
