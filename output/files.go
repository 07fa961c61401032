package output

import "strconv"

// FileKind says what the I/O of a sample is of. It is "" where files were not counted apart.
type FileKind string

// The kinds. A file has a number at least, and mostly a path.
const (
	FileNotCounted FileKind = ""
	FileRegular    FileKind = "file"
	FileMetadata   FileKind = "metadata" // of a file system
	FileJournal    FileKind = "journal"
	FileSwap       FileKind = "swap"
	FileDevice     FileKind = "device"  // of a block device, and of no file on it
	FileNone       FileKind = "none"    // flushes, discards and the like: no data of a file
	FileUnknown    FileKind = "unknown" // data of a file that nothing names
	FileOther      FileKind = "other"   // had no room of its own: a kernel map was full
)

// File is the file of a sample. Paths may be secret.
type File struct {
	Kind   FileKind
	Path   string // on the host; "" when not known
	Inside string // as its container sees it; "" when not known, or the same
	Inode  uint64
	Links  uint32 // names that the file has; Path is one of them
	// Removed says that the file, or this name of it, was removed. The upper part of a
	// Partial path is not known.
	Removed, Partial bool
	LogOf            string // the container whose log it is
}

var fileTexts = map[FileKind]string{
	FileNotCounted: "(not counted by file)",
	FileMetadata:   "(metadata)",
	FileJournal:    "(journal)",
	FileSwap:       "(swap)",
	FileDevice:     "(block device)",
	FileNone:       "(no file)",
	FileUnknown:    "(file unknown)",
	FileOther:      "(other files)",
}

// FileText names a file, and says what is special about it. inside chooses the path that its
// container sees.
func FileText(f *File, inside bool) string {
	if text, ok := fileTexts[f.Kind]; ok {
		return text
	}
	path := f.Path
	if inside && f.Inside != "" {
		path = f.Inside
	}
	switch {
	case path == "" && f.Removed:
		path = "inode " + strconv.FormatUint(f.Inode, 10)
	case path == "":
		path = "inode " + strconv.FormatUint(f.Inode, 10) + " (name unknown)"
	case f.Partial:
		path = "..." + path
	}
	switch {
	case f.Removed:
		path += " (deleted)"
	case f.Links > 1:
		path += " (1 of " + strconv.FormatUint(uint64(f.Links), 10) + " names)"
	}
	if f.LogOf != "" {
		path += " (log of " + f.LogOf + ")"
	}
	return path
}

// fileID is different for different files. Files that had the same path one after the other
// are one: a log that is rotated, say.
func fileID(f *File) string {
	if f.Kind != FileRegular {
		return "file\x00" + string(f.Kind)
	}
	id := "file\x00\x00" + f.Path + "\x00" + strconv.FormatBool(f.Removed)
	if f.Path == "" || f.Partial {
		id += "\x00" + strconv.FormatUint(f.Inode, 10)
	}
	return id
}
