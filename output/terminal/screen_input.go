package terminal

import (
	"slices"
	"strings"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// menu is a list to pick from. Menus of our own: the list of the bubbles library is
// made for whole screens, and brings a text input that looks for clipboard programs.
type menu struct {
	title  string
	items  []menuItem
	cursor int
	pick   func(chosen []int) // the items chosen with space, else the one under the cursor
	many   bool               // space chooses several
}

type menuItem struct {
	text   string
	chosen int // its place among those chosen with space, from 1 on
}

func (s *screen) openMenu(m menu) {
	s.menu = m
	s.open(paneMenu)
}

// keyMenu asks for the keys to group by.
func (s *screen) keyMenu() {
	keys := slices.Clone(menuKeys)
	for _, k := range s.group.By {
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	m := menu{title: "group by: enter picks, space combines several", many: true, cursor: slices.Index(keys, s.group.By[0])}
	for _, k := range keys {
		m.items = append(m.items, menuItem{text: string(k)})
	}
	m.pick = func(chosen []int) {
		s.group.By = nil
		for _, i := range chosen {
			s.group.By = append(s.group.By, keys[i])
		}
		s.selected, s.cursor, s.offset = "", 0, 0
		s.reset()
	}
	s.openMenu(m)
}

// sortMenu asks for the column to sort by.
func (s *screen) sortMenu() {
	columns := slices.DeleteFunc(output.SortColumns(), func(c string) bool {
		source := slices.Contains(output.Sources, output.Source(c))
		return source && !slices.Contains(s.layout.sources, output.Source(c))
	})
	m := menu{title: "sort by: the same again turns the order round", cursor: slices.Index(columns, s.group.Sort.ColumnName())}
	for _, c := range columns {
		m.items = append(m.items, menuItem{text: c})
	}
	m.cursor = max(m.cursor, 0)
	m.pick = func(chosen []int) { s.sortBy(columns[chosen[0]]) }
	s.openMenu(m)
}

// spanMenu asks for the time that the numbers are about.
func (s *screen) spanMenu() {
	m := menu{title: "numbers of:", cursor: int(s.span)}
	for _, sp := range spans {
		m.items = append(m.items, menuItem{text: sp.name})
	}
	m.pick = func(chosen []int) {
		s.span = span(chosen[0])
		s.regroup()
	}
	s.openMenu(m)
}

// menuKey handles a key of the menu. A letter goes to the next item that begins with it.
func (s *screen) menuKey(name, typed string) {
	m := &s.menu
	switch name {
	case "esc", "q", "backspace":
		s.pane = paneRows
	case "up":
		m.cursor = max(m.cursor-1, 0)
	case "down":
		m.cursor = min(m.cursor+1, len(m.items)-1)
	case "home", "pgup":
		m.cursor = 0
	case "end", "pgdown":
		m.cursor = len(m.items) - 1
	case "space", " ":
		if m.many {
			m.choose(m.cursor)
		}
	case "enter":
		s.pickItem()
	default:
		for i := 1; typed != "" && i <= len(m.items); i++ {
			if at := (m.cursor + i) % len(m.items); strings.HasPrefix(m.items[at].text, strings.ToLower(typed)) {
				m.cursor = at
				return
			}
		}
	}
}

func (s *screen) pickItem() {
	s.pane = paneRows
	chosen := s.menu.chosen()
	if len(chosen) == 0 {
		chosen = []int{s.menu.cursor}
	}
	s.menu.pick(chosen)
}

// choose adds item i to those chosen, or takes it back.
func (m *menu) choose(i int) {
	was := m.items[i].chosen
	if was == 0 {
		m.items[i].chosen = len(m.chosen()) + 1
		return
	}
	m.items[i].chosen = 0
	for j := range m.items {
		if m.items[j].chosen > was {
			m.items[j].chosen--
		}
	}
}

// chosen returns the items chosen with space, in the order of choosing.
func (m *menu) chosen() []int {
	var all []int
	for i := range m.items {
		if m.items[i].chosen > 0 {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b int) int { return m.items[a].chosen - m.items[b].chosen })
	return all
}

// lines draws the menu into height lines.
func (m *menu) lines(height int) []line {
	out := []line{styled(m.title, styleHead)}
	room := max(height-1, 1)
	from := max(0, min(m.cursor-room/2, len(m.items)-room))
	for i := from; i < len(m.items) && i < from+room; i++ {
		mark := "  "
		if n := m.items[i].chosen; n > 0 {
			mark = string(rune('0'+min(n, 9))) + " "
		}
		l := styled("  "+mark+m.items[i].text, styleNone)
		if i == m.cursor {
			l = styled("> "+mark+m.items[i].text+markSign, styleMarked)
		}
		out = append(out, l)
	}
	return out
}

// wheel moves the mark, or what is shown instead of the rows.
func (s *screen) wheel(m tea.Mouse) {
	n := 0
	switch m.Button {
	case tea.MouseWheelUp:
		n = -3
	case tea.MouseWheelDown:
		n = 3
	}
	switch s.pane {
	case paneRows:
		s.move(n)
	case paneMenu:
		s.menu.cursor = min(max(s.menu.cursor+n/3, 0), len(s.menu.items)-1)
	default:
		s.scroll += n
	}
}

// click marks a row, opens the row that is marked already, or sorts by a column.
func (s *screen) click(m tea.Mouse) {
	if m.Button != tea.MouseLeft || s.summary == nil || s.editing || s.jumping {
		return
	}
	if s.pane != paneRows {
		return
	}
	if m.Y == s.headY || m.Y == s.headY+1 {
		if c := s.grid.columnAt(m.X); c != "" {
			s.sortBy(c)
		}
		return
	}
	i := s.offset + m.Y - s.rowY
	if m.Y < s.rowY || m.Y >= s.rowY+s.page || i >= len(s.summary.Rows) {
		return
	}
	if i == s.cursor {
		s.drill()
		return
	}
	s.move(i - s.cursor)
}

// editJump changes the time to go to.
func (s *screen) editJump(name, typed string) tea.Cmd {
	switch name {
	case "esc":
		s.jumping = false
	case "enter":
		s.jumping = false
		return s.goTo(s.jump)
	case "backspace":
		s.jump = s.jump[:max(len(s.jump)-1, 0)]
	case "ctrl+u":
		s.jump = ""
	default:
		for _, r := range typed {
			if (unicode.IsDigit(r) || strings.ContainsRune(":- ", r)) && r < 128 && len(s.jump) < 20 {
				s.jump += string(r)
			}
		}
	}
	return nil
}

// goTo shows the interval at a time such as 15:04, 15:04:05 or 2006-01-02 15:04.
func (s *screen) goTo(at string) tea.Cmd {
	first, end := s.src.Bounds()
	if first == end || at == "" {
		return nil
	}
	shown := s.iv.End.In(s.opt.Location)
	var t time.Time
	for _, layout := range []string{"15:04:05", "15:04", "2006-01-02 15:04:05", "2006-01-02 15:04"} {
		v, err := time.ParseInLocation(layout, at, s.opt.Location)
		if err != nil {
			continue
		}
		if v.Year() == 0 { // on the day that is shown
			v = time.Date(shown.Year(), shown.Month(), shown.Day(), v.Hour(), v.Minute(), v.Second(), 0, s.opt.Location)
		}
		t = v
		break
	}
	if t.IsZero() {
		s.note = "this is not a time: write it as 15:04, 15:04:05 or 2006-01-02 15:04"
		return nil
	}
	i := first
	for i < end {
		if _, to := s.src.Span(i); to.After(t) {
			break
		}
		i++
	}
	from, _ := s.src.Span(first)
	switch {
	case t.Before(from):
		s.note = "nothing is kept of that time: this is the first interval"
	case i == end:
		s.note = "that time has not come yet: this is the last interval"
	}
	s.follow = false
	s.show(i)
	return s.tick()
}
