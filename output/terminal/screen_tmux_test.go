//go:build integration

package terminal

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
	"github.com/iotrace-bpf/iotrace-bpf/output/recording"
)

// TestMain runs this binary as the program in the terminal if a test below has
// started it for that.
func TestMain(m *testing.M) {
	mode := os.Getenv("SCREEN_CASE")
	if mode == "" {
		os.Exit(m.Run())
	}
	if err := child(mode, os.Getenv("SCREEN_PATH")); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hostileFrames is the number of intervals with hostile names. After the last one
// the screen does not change any more: lines with wide characters are cleared and
// drawn again at every change, and must not be checked in between.
const hostileFrames = 3

func child(mode, path string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opt := ScreenOptions{Location: time.UTC}
	next := later
	switch mode {
	case "hostile":
		next = func(int) *output.Interval { return outputtest.Hostile() }
	case "table":
		table := NewTable(os.Stdout, TableOptions{Location: time.UTC, InPlace: true})
		for n := 0; ; n++ { // until the terminal is closed, or interrupts it
			iv := later(n)
			if err := table.Write(output.Group(iv, output.GroupOptions{By: []output.Key{output.KeyProject}}), iv); err != nil {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	case "interactive":
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		env := func(value string) func(string) string { return func(string) string { return value } }
		fmt.Println("interactive:", Interactive(os.Stdin, os.Stdout, nil), Interactive(null, os.Stdout, nil), Interactive(os.Stdin, null, nil),
			Interactive(os.Stdin, os.Stdout, env("dumb")), Interactive(os.Stdin, os.Stdout, env("")))
		return nil
	case "replay":
		r, err := recording.Open(path)
		if err != nil {
			return err
		}
		defer r.Close()
		opt.Replay = r.Timeline()
		return RunScreen(ctx, nil, opt)
	}
	ch := make(chan *output.Interval)
	go func() {
		for n := 0; ; n++ {
			iv := next(n)
			if mode == "panic" && n == 3 {
				iv = nil // a bug in the caller
			}
			select {
			case ch <- iv:
			case <-ctx.Done():
				return
			}
			if mode == "ends" && n == 5 {
				close(ch)
				return
			}
			if mode == "hostile" && n+1 == hostileFrames {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return RunScreen(ctx, ch, opt)
}

// tmuxTerminal is a shell in a tmux of its own.
type tmuxTerminal struct {
	t      *testing.T
	socket string
	dir    string
}

func newTerminal(t *testing.T, width, height int) *tmuxTerminal {
	t.Helper()
	// Not t.TempDir: the path of a socket may be 107 bytes long.
	dir, err := os.MkdirTemp("", "tmux")
	if err != nil {
		t.Fatal(err)
	}
	term := &tmuxTerminal{t: t, socket: filepath.Join(dir, "s"), dir: dir}
	t.Cleanup(func() {
		exec.Command("tmux", "-S", term.socket, "kill-server").Run()
		os.RemoveAll(dir)
	})
	cmd := exec.Command("tmux", "-f", "/dev/null", "-S", term.socket, "new-session", "-d",
		"-x", strconv.Itoa(width), "-y", strconv.Itoa(height), "env", "-u", "ENV", "PS1=ready> ", "LC_ALL=C.UTF-8", "/bin/sh")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tmux: %v: %s", err, out)
	}
	term.wait("the shell", func(screen string) bool { return strings.Contains(screen, "ready>") })
	return term
}

func (term *tmuxTerminal) tmux(args ...string) string {
	term.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-u", "-S", term.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// keys sends keys as tmux names them; typed sends text.
func (term *tmuxTerminal) keys(names ...string) {
	term.t.Helper()
	term.tmux(append([]string{"send-keys"}, names...)...)
}

func (term *tmuxTerminal) typed(text string) {
	term.t.Helper()
	term.tmux("send-keys", "-l", text)
}

// start runs this test binary in the shell, which then writes the exit status and
// the state of the terminal to a file.
func (term *tmuxTerminal) start(mode, path string) {
	term.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		term.t.Fatal(err)
	}
	script := filepath.Join(term.dir, "run")
	// exec, so that the pid is that of the program.
	text := strings.NewReplacer("DIR", term.dir, "MODE", mode, "FILE", path, "EXE", exe).Replace(`stty -g > DIR/before
sh -c 'echo $$ > DIR/pid; SCREEN_CASE=MODE SCREEN_PATH="FILE" exec "EXE"'
echo "status=$?" > DIR/done.tmp
stty -g >> DIR/done.tmp
mv DIR/done.tmp DIR/done
`)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		term.t.Fatal(err)
	}
	os.Remove(filepath.Join(term.dir, "done"))
	term.typed(". " + script)
	term.keys("Enter")
}

// pid is the process id of the program.
func (term *tmuxTerminal) pid() int {
	term.t.Helper()
	b, err := os.ReadFile(filepath.Join(term.dir, "pid"))
	if err != nil {
		term.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		term.t.Fatal(err)
	}
	return pid
}

// wait polls the screen until ok returns true, and returns the screen.
func (term *tmuxTerminal) wait(what string, ok func(screen string) bool) string {
	term.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		screen := term.tmux("capture-pane", "-p")
		if ok(screen) {
			return screen
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("waited in vain for %s; the screen shows\n%s", what, screen)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// has waits until the screen contains all parts.
func (term *tmuxTerminal) has(parts ...string) string {
	term.t.Helper()
	return term.wait(fmt.Sprintf("%q", parts), func(screen string) bool {
		for _, p := range parts {
			if !strings.Contains(screen, p) {
				return false
			}
		}
		return true
	})
}

// restored waits for the program's end and checks that the terminal is as it
// was: its modes, the normal screen, a visible cursor.
func (term *tmuxTerminal) restored(status int) string {
	term.t.Helper()
	var done string
	term.wait("the end of the program", func(string) bool {
		b, err := os.ReadFile(filepath.Join(term.dir, "done"))
		done = string(b)
		return err == nil
	})
	before, err := os.ReadFile(filepath.Join(term.dir, "before"))
	if err != nil {
		term.t.Fatal(err)
	}
	if want := fmt.Sprintf("status=%d\n%s", status, before); done != want {
		term.t.Errorf("status and modes of the terminal are %q, want %q", done, want)
	}
	// When the prompt is there, tmux has read everything that the program wrote.
	term.wait("the prompt", func(s string) bool { return strings.HasSuffix(strings.TrimRight(s, " \n"), "ready>") })
	if got := strings.TrimSpace(term.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{keypad_flag}")); got != "0 1 0 0" {
		term.t.Errorf("alternate screen, cursor, mouse, keypad are %q", got)
	}
	// The terminal echoes what is typed.
	term.typed("echo typed-text")
	term.has("ready> echo typed-text")
	term.keys("C-u")
	return term.tmux("capture-pane", "-p", "-S", "-200")
}

func TestTmuxScreen(t *testing.T) {
	term := newTerminal(t, 100, 30)
	term.start("live", "")
	term.has("iotrace-bpf", "LIVE", "PROJECT", "shop", "postfix.service", "(unattributed)", "TOTAL", "EVENTS", "q quit")

	term.keys("Enter")
	term.has("all > project shop", "shop/db", "shop/web", "(filtered out)")
	term.keys("Down", "Enter")
	term.has("service shop/web", "CONTAINER", "shop-web-1")
	term.keys("Enter")
	term.has("container shop-web-1", "PROCESS")
	term.keys("Enter")
	term.has("MOUNT", "nas1:/exp", "shopdata")
	term.keys("BSpace", "BSpace", "BSpace", "BSpace")
	term.has("PROJECT", "postfix.service")

	term.typed("/post")
	term.wait("one row", func(s string) bool {
		return strings.Contains(s, "filter: post") && strings.Contains(s, "postfix.service") && !strings.Contains(s, "blog")
	})
	term.keys("Enter", "Escape")
	term.has("blog")

	term.typed("n")
	term.has("PROJECT^")
	term.typed("n")
	term.has("PROJECTv")
	term.typed("w")
	term.wait("sorting by write", func(s string) bool { return !strings.Contains(s, "PROJECTv") })

	// Sparklines grow.
	term.wait("sparklines", func(s string) bool { return strings.ContainsAny(s, "▁▂▃▄▅▆▇█") })

	term.keys("Space")
	paused := term.has("PAUSED", "[")
	clock := func(screen string) string { return strings.Fields(strings.SplitN(screen, "\n", 2)[0])[3] }
	term.wait("newer intervals while paused", func(s string) bool {
		return clock(s) == clock(paused) && !strings.Contains(s, "] "+clock(s)) // the end of time moves, the view does not
	})
	term.keys("Left")
	term.wait("an earlier time", func(s string) bool { return clock(s) < clock(paused) })
	term.keys("Space")
	term.wait("live again", func(s string) bool { return strings.Contains(s, "LIVE") && clock(s) > clock(paused) })

	term.typed("?")
	term.has("ROWS", "what the marked row consists of")
	term.keys("Escape")
	term.has("LIVE", "WRITEv")

	// Totals since the start, and back.
	term.typed("a")
	term.has("TOTALS of")
	term.typed("a")
	term.has("last 2.0 s")
	// Details of the marked row.
	term.typed("d")
	term.has("owner", "esc closes")
	term.keys("Escape")
	// The mouse: the rows begin below five lines of head.
	term.wait("the rows", func(s string) bool { return strings.Contains(s, "TOTAL ") })
	mark := func(screen string) int {
		for i, l := range strings.Split(screen, "\n") {
			if strings.HasSuffix(strings.TrimRight(l, " "), " <") {
				return i
			}
		}
		return -1
	}
	was := mark(term.tmux("capture-pane", "-p"))
	row := 7
	if was == row {
		row = 8
	}
	term.typed(fmt.Sprintf("\x1b[<0;3;%dM\x1b[<0;3;%dm", row+1, row+1)) // as xterm reports a click: SGR, from 1 on
	term.wait("the mark where the mouse was", func(s string) bool { return mark(s) == row })

	// The screen follows the terminal's size, in both directions.
	for _, size := range [][2]int{{60, 20}, {140, 40}, {30, 8}, {100, 30}} {
		term.tmux("resize-window", "-x", strconv.Itoa(size[0]), "-y", strconv.Itoa(size[1]))
		term.wait(fmt.Sprint("size ", size), func(s string) bool {
			lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
			return len(lines) == size[1] && strings.HasPrefix(lines[len(lines)-1], "q quit") && strings.HasPrefix(lines[0], "iotrace-bpf")
		})
	}

	term.typed("q")
	left := term.restored(0)
	// A summary of the run stays.
	if !strings.Contains(left, "summary of ") || !strings.Contains(left, "PEAK/s") || !strings.Contains(left, "TOTAL") || strings.Contains(left, "q quit") {
		t.Errorf("what is left on the terminal:\n%s", left)
	}
}

// TestTmuxSignals: the terminal is restored however the program ends.
func TestTmuxSignals(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT} {
		t.Run(name, func(t *testing.T) {
			term := newTerminal(t, 80, 24)
			term.start("live", "")
			term.has("LIVE", "TOTAL")
			if err := syscall.Kill(term.pid(), signal); err != nil {
				t.Fatal(err)
			}
			if left := term.restored(0); !strings.Contains(left, "TOTAL") {
				t.Errorf("what is left on the terminal:\n%s", left)
			}
		})
	}
	t.Run("ctrl+c", func(t *testing.T) {
		term := newTerminal(t, 80, 24)
		term.start("live", "")
		term.has("LIVE", "TOTAL")
		term.keys("C-c")
		term.restored(0)
	})
	t.Run("suspend", func(t *testing.T) {
		term := newTerminal(t, 80, 24)
		term.start("live", "")
		term.has("LIVE", "TOTAL")
		term.keys("C-z")
		term.has("Stopped")
		if got := strings.TrimSpace(term.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}")); got != "0 1" {
			t.Errorf("while stopped, alternate screen and cursor are %q", got)
		}
		term.typed("fg")
		term.keys("Enter")
		term.has("LIVE", "TOTAL", "q quit")
		term.typed("q")
		term.has("ready>")
	})
	t.Run("end of intervals", func(t *testing.T) {
		term := newTerminal(t, 80, 24)
		term.start("ends", "")
		if left := term.restored(0); !strings.Contains(left, "05:06:17") { // the sixth interval
			t.Errorf("what is left on the terminal:\n%s", left)
		}
	})
}

func TestTmuxPanic(t *testing.T) {
	term := newTerminal(t, 100, 50)
	term.start("panic", "")
	if left := term.restored(1); !strings.Contains(left, "error: screen: ") || !strings.Contains(left, "panic") {
		t.Errorf("what is left on the terminal:\n%s", left)
	}
}

// TestTmuxHostile: names have no effect on the terminal.
func TestTmuxHostile(t *testing.T) {
	term := newTerminal(t, 120, 50)
	term.start("hostile", "")
	term.has("TOTAL", `\x1b[31mred`, `new\nline`, "漢字コンテナ")
	// The slider of the paused screen is drawn last, with the last interval for
	// the last time.
	term.keys("Space")
	screen := term.has("PAUSED", fmt.Sprintf("/%d\n", hostileFrames), "q quit ", "TOTAL", `\x1b[31mred`, `new\nline`, "漢字コンテナ")
	if got := strings.TrimSpace(term.tmux("display-message", "-p", "#{pane_title}")); got != "iotrace-bpf" {
		t.Errorf("the window is called %q", got)
	}
	for i, line := range strings.Split(screen, "\n") {
		if len(line) > 0 && i > 4 && strings.Contains(line, "Ki ") && !strings.HasSuffix(strings.TrimRight(line, " ▁▂▃▄▅▆▇█<"), "ms") {
			t.Errorf("a bent line: %q", line)
		}
	}
	term.typed("q")
	term.restored(0)
}

func TestTmuxReplay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "incident")
	rec, err := recording.Create(path, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 30 {
		if err := rec.Write(later(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	term := newTerminal(t, 100, 30)
	term.start("replay", path)
	term.has("REPLAY x1", "/30", "shop")
	term.keys("Space")
	term.has("REPLAY x1 PAUSED")
	term.keys("Home")
	term.has("05:06:07", "1/30")
	term.keys("Right", "Right")
	term.has("05:06:11", "3/30")
	term.typed("]")
	term.has("13/30")
	term.keys("End")
	term.has("05:07:05", "30/30")
	term.typed("b")
	term.has("group by")
	term.keys("Down", "Enter")
	term.has("SERVICE", "shop/db") // sliced by another key, at the same time
	term.keys("Home")
	term.typed("+++++")
	term.keys("Space")
	term.wait("the end by playing", func(s string) bool { return strings.Contains(s, "30/30") && strings.Contains(s, "PAUSED") })
	term.typed("q")
	term.restored(0)
}

func TestTmuxInteractive(t *testing.T) {
	term := newTerminal(t, 80, 24)
	term.start("interactive", "")
	term.has("interactive: true false false false false")
}

// TestTmuxTable: with InPlace each table replaces the one before.
func TestTmuxTable(t *testing.T) {
	term := newTerminal(t, 100, 30)
	term.start("table", "")
	// Each table is on the terminal for a moment only, so that the test waits for
	// one that is late enough instead of a certain one.
	title := regexp.MustCompile(`(?m)^(\d\d:\d\d:\d\d)  .*requests on the wire`)
	number := func(screen string) int {
		m := title.FindStringSubmatch(screen)
		if m == nil {
			return -1
		}
		end := outputtest.Shop().End
		at, err := time.Parse(time.DateTime, end.Format("2006-01-02 ")+m[1])
		if err != nil {
			t.Fatal(err)
		}
		return int(at.Sub(end) / (2 * time.Second)) // as later makes them
	}
	seen := term.wait("the eighth table", func(s string) bool {
		return number(s) >= 7 && strings.Contains(s, "TOTAL") && strings.Contains(s, "EVENTS")
	})
	if n := strings.Count(seen, "requests on the wire"); n != 1 {
		t.Errorf("%d tables on the terminal:\n%s", n, seen)
	}
	term.tmux("resize-window", "-x", "60", "-y", "20")
	term.wait("one table after a resize", func(s string) bool {
		return strings.Count(s, "requests on the wire") == 1 && strings.Count(s, "TOTAL ") == 1 && number(s) >= number(seen)+20
	})
	term.keys("C-c")
	term.wait("the prompt", func(s string) bool { return strings.HasSuffix(strings.TrimRight(s, " \n"), "ready>") })
}
