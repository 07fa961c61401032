//go:build integration

package report

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is a headless chromium (Debian's package) and what a page did in it.
type browser struct {
	context.Context
	mu       sync.Mutex
	requests []string
	messages []string // console, exceptions, security and network errors
}

// newBrowser starts chromium. The test fails if it is not installed, because the
// page must be tested in a real browser.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("no chromium: apt-get install chromium")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Flag("disable-gpu", true))
	if os.Geteuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(stop)
	b := &browser{Context: ctx}
	if err := chromedp.Listen(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *network.EventRequestWillBeSent:
			b.requests = append(b.requests, ev.Request.URL)
		case *runtime.EventConsoleAPICalled:
			b.messages = append(b.messages, fmt.Sprintf("console.%s", ev.Type))
		case *runtime.EventExceptionThrown:
			b.messages = append(b.messages, ev.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			b.messages = append(b.messages, ev.Entry.Text)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		call(b, network.Enable, network.EnableParams{}),
		call(b, log.Enable, cdp.Empty{}),
		call(b, runtime.Enable, cdp.Empty{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// call sends a command and ignores its answer.
func call[P any](b *browser, cmd cdp.Command[P, cdp.Empty], params P) error {
	_, err := chromedp.Call(b, cmd, params)
	return err
}

// do runs one action with a long timeout, because the machine may be busy.
func do[T any](t *testing.T, b *browser, a chromedp.Action[T]) T {
	t.Helper()
	ctx, stop := context.WithTimeout(b, 2*time.Minute)
	defer stop()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// media switches between light, dark and paper.
func (b *browser) media(t *testing.T, media, scheme string) {
	t.Helper()
	if err := call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	}); err != nil {
		t.Fatal(err)
	}
}

// open writes the page to a file and opens the file, as a reader of the ticket
// does.
func (b *browser) open(t *testing.T, r *Report) (url string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(path, bytesOf(t, r), 0o644); err != nil {
		t.Fatal(err)
	}
	url = "file://" + path
	do(t, b, chromedp.Navigate(url))
	return url
}

// quiet checks that the page loaded nothing except itself and that the browser
// reported no error.
func (b *browser) quiet(t *testing.T, url string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := false
	for _, r := range b.requests {
		switch {
		case r == url:
			seen = true
		case strings.HasPrefix(r, "data:"):
		default:
			t.Errorf("the page asks for %.100s", r)
		}
	}
	if !seen {
		t.Errorf("the page itself is not among the requests %v", b.requests)
	}
	for _, m := range b.messages {
		t.Errorf("the browser says %.200s", m)
	}
}

// shot takes a picture of the whole page and keeps it with -artifacts.
func (b *browser) shot(t *testing.T, name string, width int64, scheme string) image.Image {
	t.Helper()
	b.media(t, "", scheme)
	do(t, b, chromedp.EmulateViewport(width, 900))
	raw := do(t, b, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(t.ArtifactDir(), name), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// colourShare returns the share of a picture that has a colour, roughly because of smoothing.
func colourShare(img image.Image, want color.RGBA) float64 {
	n, all := 0, 0
	r := img.Bounds()
	near := func(a uint32, b uint8) bool { d := int(a>>8) - int(b); return d > -6 && d < 6 }
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			cr, cg, cb, _ := img.At(x, y).RGBA()
			if near(cr, want.R) && near(cg, want.G) && near(cb, want.B) {
				n++
			}
			all++
		}
	}
	return float64(n) / float64(all)
}

// TestReportInBrowser checks the page as a person sees it: light, dark, small and
// printed.
func TestReportInBrowser(t *testing.T) {
	b := newBrowser(t)
	r := pageOf(Options{Title: "Slow shop on 14 March, ticket 4711", Tool: "1.0", Origin: "web1.recording"}, 5400, 2*time.Second)
	url := b.open(t, r)

	light := b.shot(t, "light.png", 1360, "light")
	dark := b.shot(t, "dark.png", 1360, "dark")
	small := b.shot(t, "small.png", 420, "light")
	do(t, b, chromedp.EmulateViewport(1360, 900))
	box := do(t, b, chromedp.Evaluate[[4]float64](`(() => {
		const r = document.querySelector("figure").getBoundingClientRect();
		return [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY];
	})()`))
	chart := func(img image.Image) image.Image {
		scale := float64(img.Bounds().Dx()) / 1360
		at := func(i int) int { return int(box[i] * scale) }
		return img.(interface {
			SubImage(image.Rectangle) image.Image
		}).SubImage(image.Rect(at(0), at(1), at(2), at(3)))
	}
	for _, c := range []struct {
		name  string
		img   image.Image
		color color.RGBA
		least float64
	}{
		{"paper", light, color.RGBA{0xff, 0xff, 0xff, 0xff}, 0.6},
		{"ink", light, color.RGBA{0x1b, 0x1f, 0x24, 0xff}, 0.002},
		{"first colour", chart(light), color.RGBA{0x00, 0x72, 0xb2, 0xff}, 0.03},
		{"second colour", light, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, 0.004},
		{"hatch of what has no owner", light, color.RGBA{0xb3, 0x26, 0x1e, 0xff}, 0.00001},
		{"dark paper", dark, color.RGBA{0x0d, 0x11, 0x17, 0xff}, 0.6},
		{"dark first colour", chart(dark), color.RGBA{0x3d, 0x9b, 0xd8, 0xff}, 0.03},
		{"small paper", small, color.RGBA{0xff, 0xff, 0xff, 0xff}, 0.5},
	} {
		if got := colourShare(c.img, c.color); got < c.least {
			t.Errorf("%s covers %.5f of the page or chart, want %.5f", c.name, got, c.least)
		}
	}

	for _, width := range []int64{420, 800, 1280, 1360, 1700} {
		do(t, b, chromedp.EmulateViewport(width, 900))
		over := do(t, b, chromedp.Evaluate[string](`(() => {
			const w = document.documentElement.clientWidth;
			if (document.documentElement.scrollWidth <= w) return "";
			for (const e of document.querySelectorAll("body *"))
				if (e.getBoundingClientRect().right > w + 1 && !e.closest(".scroll")) return e.outerHTML.slice(0, 100);
			return "something";
		})()`))
		if over != "" {
			t.Errorf("at %d pixels the page is wider than the window: %s", width, over)
		}
		// On a screen of usual width nobody has to scroll to the side.
		wide := do(t, b, chromedp.Evaluate[string](`(() => {
			for (const e of document.querySelectorAll("body *"))
				if (!e.closest("svg") && !e.classList.contains("unseen") && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
					return e.tagName + " of " + e.scrollWidth + " in " + e.clientWidth + ": " + e.outerHTML.slice(0, 200);
			return "";
		})()`))
		if wide != "" && width >= 1280 {
			t.Errorf("at %d pixels an element is wider than its box: %s", width, wide)
		}
	}

	type counts struct {
		Figures, Areas, Hits, Rows, Tables, Unnamed, Hidden int
		First                                               string
	}
	got := do(t, b, chromedp.Evaluate[counts](`({
		Figures: document.querySelectorAll("figure").length,
		Areas: [...document.querySelectorAll("path.area")].filter(p => p.getBoundingClientRect().height > 0).length,
		Hits: document.querySelectorAll("#chart-written rect.hit title").length,
		Rows: document.querySelectorAll("section.top:nth-of-type(1) tbody tr").length,
		Tables: document.querySelectorAll("section.top").length,
		Unnamed: [...document.querySelectorAll("figure svg[role]")].filter(s => !document.getElementById(s.getAttribute("aria-labelledby"))?.textContent.trim()).length,
		Hidden: [...document.querySelectorAll("text.tick")].filter(e => { const r = e.getBoundingClientRect(), s = e.closest("svg").getBoundingClientRect(); return r.left < s.left - 1 || r.right > s.right + 1; }).length,
		First: document.querySelector("section.top tbody th").innerText,
	})`))
	if got.Figures != 4 || got.Areas < 20 || got.Hits < 100 || got.Rows != 12 || got.Tables != 6 || got.First != "backup" {
		t.Errorf("page %+v", got)
	}
	if got.Unnamed != 0 || got.Hidden != 0 {
		t.Errorf("%d charts without a name, %d labels outside of their chart", got.Unnamed, got.Hidden)
	}

	// Paper: a reader cannot scroll to what is cut off.
	b.media(t, "print", "light")
	do(t, b, chromedp.EmulateViewport(1040, 735)) // A4 landscape less its margins, at 96 dpi
	cut := do(t, b, chromedp.Evaluate[int](`[...document.querySelectorAll("td, th, text")].filter(e => e.getBoundingClientRect().right > 1041).length`))
	pdf := do(t, b, chromedp.PrintToPDF(chromedp.PDFPreferCSSPageSize(), chromedp.PDFPrintBackground()))
	if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "print.pdf"), pdf, 0o644); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(pdf, []byte("%PDF-")) || cut != 0 {
		t.Errorf("printed to %d bytes, %d cells are cut off", len(pdf), cut)
	}
	b.quiet(t, url)
}

// TestReportHostileInBrowser: names with markup stay text, and even a script that
// runs in the page cannot load anything.
func TestReportHostileInBrowser(t *testing.T) {
	b := newBrowser(t)
	r := New(hostileOptions())
	for _, iv := range hostileIntervals() {
		r.Add(iv)
	}
	url := b.open(t, r)
	b.shot(t, "hostile.png", 1360, "light")
	type state struct {
		Pwned                           bool
		Foreign, Handlers, Bidi, Script int
		Wide                            bool
		Shown                           bool
	}
	do(t, b, chromedp.EmulateViewport(1360, 900))
	got := do(t, b, chromedp.Evaluate[state](`({
		Pwned: "pwned" in window,
		Script: document.scripts.length,
		Foreign: document.querySelectorAll("img, image, iframe, object, embed, a:not([href^='#']), form, input, foreignObject, use, animate, set, audio, video, base, link:not([rel=icon])").length,
		Handlers: [...document.querySelectorAll("*")].filter(e => [...e.attributes].some(a => /^on|^style$/i.test(a.name))).length,
		Bidi: (document.body.innerText.match(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g) || []).length,
		Wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
		Shown: document.body.innerText.includes("<script>window.pwned=1</script>"),
	})`))
	if got.Pwned || got.Script+got.Foreign+got.Handlers+got.Bidi != 0 || got.Wide || !got.Shown {
		t.Errorf("page %+v", got)
	}
	// Point at and click everything once.
	do(t, b, chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("*").forEach(e => { for (const k of ["mouseover", "click", "load", "error", "focus"]) e.dispatchEvent(new Event(k)); })`))
	if do(t, b, chromedp.Evaluate[bool](`"pwned" in window`)) {
		t.Error("an event ran a script")
	}
	b.quiet(t, url)

	// The page's content security policy is the second line of defence: insert
	// hostile markup into the page and check that it runs and loads nothing.
	var fetched atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fetched.Add(1) }))
	defer srv.Close()
	blocked := do(t, b, chromedp.Evaluate[bool](fmt.Sprintf(`(async () => {
		const box = document.createElement("div");
		box.innerHTML = '<img src="%[1]s/img" onerror="window.pwned=7"><iframe src="%[1]s/frame"></iframe><style>@import "%[1]s/css";</style>';
		document.body.append(box);
		const s = document.createElement("script");
		s.textContent = "window.pwned=8";
		document.body.append(s);
		let refused = false;
		try { await fetch("%[1]s/fetch", {mode: "no-cors"}); } catch { refused = true; }
		await new Promise(done => setTimeout(done, 300));
		return refused && !("pwned" in window);
	})()`, srv.URL), chromedp.EvalAwaitPromise))
	if !blocked || fetched.Load() != 0 {
		t.Errorf("policy holds: %v, %d requests reached a server", blocked, fetched.Load())
	}
}
