package vm

import (
	"bufio"
	"bytes"
	"regexp"
	"strings"
)

// trouble matches what a kernel says when something is broken in it. The
// pattern is tied to the time stamp: boot messages mention the words in passing
// ("Spectre V2 : WARNING: Unprivileged eBPF is enabled").
var trouble = regexp.MustCompile(`^(\[[ \d.]+\](\[[^\]]*\])? ?)?(` + strings.Join([]string{
	`WARNING: `,
	`BUG: `, `BUG kmalloc`, `kernel BUG at `,
	`Oops`, `general protection fault`, `Unable to handle kernel`, `Internal error: `,
	`Kernel panic`,
	`watchdog: BUG`, `INFO: task .* blocked for more than`,
	`rcu: INFO: .*(stall|detected)`, `rcu: .*self-detected stall`,
	`list_(add|del) corruption`, `refcount_t: `,
	`=+\[ cut here \]=+`, `-+\[ cut here \]-+`,
	`UBSAN: `, `KASAN: `, `BPF: .*invalid`,
	`EXT4-fs error`, `XFS .*[Cc]orrupt`, `BTRFS (error|critical)`,
}, "|") + `)`)

// Trouble returns the lines of a console that show a broken kernel.
func Trouble(console []byte) []string {
	var found []string
	s := bufio.NewScanner(bytes.NewReader(console))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		if trouble.MatchString(line) {
			found = append(found, line)
		}
	}
	return found
}

// Panicked says whether the kernel itself died.
func Panicked(console []byte) bool {
	return bytes.Contains(console, []byte("Kernel panic"))
}
