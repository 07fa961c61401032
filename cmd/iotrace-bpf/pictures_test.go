//go:build pictures

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	terminal "github.com/buildkite/terminal-to-html/v3"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// TestPictures makes the pictures of README.md from a replay of a recording, so
// that they show what the program shows: make pictures.
func TestPictures(t *testing.T) {
	docs, err := filepath.Abs(filepath.Join("..", "..", "docs"))
	if err != nil {
		t.Fatal(err)
	}
	recording := filepath.Join(docs, "incident.rec")
	dir, err := os.MkdirTemp("", "pictures") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "iotrace-bpf")
	if out, err := exec.Command("go", "build", "-ldflags", "-X main.version=1.0", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}

	screen := filepath.Join(dir, "screen.html")
	if err := os.WriteFile(screen, []byte(screenPage(replayScreen(t, dir, program, recording))), 0o600); err != nil {
		t.Fatal(err)
	}
	picture(t, "file://"+screen, filepath.Join(docs, "screen.png"), "pre", 1300, 900)

	// The page shows the command line: no names of this machine.
	if err := os.Symlink(recording, filepath.Join(dir, filepath.Base(recording))); err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(dir, "ticket.html")
	replay := exec.Command(program, "replay", filepath.Base(recording), "--by", "project", "--report", filepath.Base(report))
	replay.Dir = dir
	if out, err := replay.CombinedOutput(); err != nil {
		t.Fatalf("replay: %v\n%s", err, out)
	}
	picture(t, "file://"+report, filepath.Join(docs, "report.png"), "", 1360, 1072)
}

// replayScreen runs the screen on the recording in a terminal of tmux, goes to the
// middle of the incident and returns the lines with their escape sequences.
func replayScreen(t *testing.T, dir, program, recording string) string {
	t.Helper()
	tmux := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("tmux", append([]string{"-u", "-f", "/dev/null", "-S", filepath.Join(dir, "s")}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color", "COLORTERM=", "TZ=UTC")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	tmux("new-session", "-d", "-x", "120", "-y", "18", program, "replay", recording, "--by", "project")
	t.Cleanup(func() { exec.Command("tmux", "-S", filepath.Join(dir, "s"), "kill-server").Run() })
	wait := func(text string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !strings.Contains(tmux("capture-pane", "-p"), text); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the screen does not show %q:\n%s", text, tmux("capture-pane", "-p"))
			}
		}
	}
	wait("REPLAY")
	tmux("send-keys", "Space")
	wait("PAUSED")
	tmux("send-keys", "Home")
	wait(" 1/57")
	for n := 11; n <= 41; n += 10 {
		tmux("send-keys", "]")
		wait(" " + strconv.Itoa(n) + "/57")
	}
	tmux("send-keys", "g")
	for end := time.Now().Add(time.Minute); !markedFirst(tmux("capture-pane", "-p")); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the first row is not marked:\n%s", tmux("capture-pane", "-p"))
		}
	}
	return tmux("capture-pane", "-p", "-e")
}

// markedFirst tells whether the mark is on the first row, below five lines of head.
func markedFirst(screen string) bool {
	lines := strings.Split(screen, "\n")
	return len(lines) > 5 && strings.HasSuffix(strings.TrimRight(lines[5], " "), " <")
}

// screenPage is a page that looks like a terminal with this text. The library knows
// no reversed colours, so the marked row gets colours of its own, and the sequences
// that would end them at once go.
func screenPage(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.Contains(l, "\x1b[7m") || strings.Contains(l, "\x1b[0;7m") {
			lines[i] = strings.NewReplacer("\x1b[39m", "", "\x1b[49m", "", "\x1b[0;7m", "\x1b[0;30;47m", "\x1b[7m", "\x1b[30;47m").Replace(l)
		}
	}
	text = strings.Join(lines, "\n")
	return `<!doctype html><meta charset="utf-8"><title>iotrace-bpf</title><style>
body { margin: 0; background: #fff }
pre { display: inline-block; margin: 0; padding: 14px 18px; border-radius: 8px; background: #11161d; color: #d3dae3;
	font: 15px/19px "DejaVu Sans Mono", monospace }
.term-fg1 { font-weight: bold; color: #fff }
.term-fg2 { color: #8b97a5 }
.term-fg31 { color: #ff7b72 }
.term-fg35 { color: #d2a8ff }
.term-fg36 { color: #56d4dd }
.term-fg30 { color: #11161d }
.term-bg47 { background: #e6b450 }
</style><pre>` + terminal.Render([]byte(strings.TrimRight(text, "\n"))) + `</pre>`
}

// picture writes what a browser shows of the page: an element, or without one the
// top of the page, width by height pixels.
func picture(t *testing.T, url, file, element string, width, height int64) {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.Flag("disable-gpu", true))
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			opts = append(opts, chromedp.ExecPath(p))
			break
		}
	}
	if os.Geteuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Minute)
	defer stop()
	ctx, stop = chromedp.NewExecAllocator(ctx, opts...)
	defer stop()
	ctx, stop = chromedp.NewContext(ctx)
	defer stop()
	shot := chromedp.CaptureScreenshot()
	if element != "" {
		shot = chromedp.Screenshot(chromedp.CSS(element))
	}
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(width, height)); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "light"}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatal(err)
	}
	png, err := chromedp.Run(ctx, shot)
	if err != nil {
		t.Fatal(err)
	}
	const most = 300 << 10
	if len(png) > most {
		t.Errorf("%s has %d bytes, want at most %d", file, len(png), most)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil {
		t.Fatal(err)
	}
}
