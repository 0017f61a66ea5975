package front

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// answers are what handlers may do; each is the same to a client, whoever sends it.
var answers = map[string]http.HandlerFunc{
	"/nothing": func(http.ResponseWriter, *http.Request) {},
	"/status":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
	"/unknown": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(599) },
	"/length-0": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write(nil)
	},
	"/json": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "4")
		_, _ = io.WriteString(w, "true")
	},
	"/guessed":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
	"/guessed2": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<ht"); fmt.Fprint(w, "ml>") },
	"/guessed3": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "6")
		fmt.Fprint(w, "<ht")
		fmt.Fprint(w, "ml>")
	},
	"/not-guessed": func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		fmt.Fprint(w, "<html>")
	},
	"/encoded": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		fmt.Fprint(w, "x")
	},
	"/many": func(w http.ResponseWriter, _ *http.Request) { w.Header()["X-A"] = []string{"1", "2", ""} },
	"/split": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-A", "1\r\nX-B: 2\n\nbody")
		w.Header()["X C"], w.Header()["X-D\r\nX-E"], w.Header()[""] = []string{"3"}, []string{"4"}, []string{"5"}
		w.Header().Set("X-F", " \t6\t ")
	},
	"/late-header": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); w.Header().Set("X-A", "1") },
	"/twice":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.WriteHeader(200) },
	"/date":        func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Date", "today"); w.WriteHeader(200) },
	"/204":         func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); fmt.Fprint(w, "x") },
	"/304": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", "3")
		w.WriteHeader(304)
		_, err := w.Write([]byte("abc"))
		if err == nil {
			panic("a body was taken")
		}
	},
	"/too-much": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "3")
		fmt.Fprint(w, "abc")
		if n, err := w.Write([]byte("d")); n != 0 || err == nil {
			panic("too much was taken")
		}
	},
	"/close": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, "abc")
	},
	"/long":    func(w http.ResponseWriter, _ *http.Request) { long(w, 300<<10, 300<<10) },
	"/pieces":  func(w http.ResponseWriter, _ *http.Request) { long(w, 300<<10, 64<<10) },
	"/small":   func(w http.ResponseWriter, _ *http.Request) { long(w, 100<<10, 1000) },
	"/exactly": func(w http.ResponseWriter, _ *http.Request) { long(w, gatherBytes, gatherBytes) },
	"/deadline": func(w http.ResponseWriter, _ *http.Request) {
		rc := http.NewResponseController(w)
		for _, at := range []time.Time{{}, time.Now().Add(time.Hour), time.Now().Add(time.Minute)} {
			if rc.SetWriteDeadline(at) != nil || rc.SetReadDeadline(at) != nil {
				panic("no deadlines")
			}
		}
		fmt.Fprint(w, "abc")
	},
	"/flush": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "6")
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, "abc")
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
		fmt.Fprint(w, "def")
	},
}

// long writes so many bytes in pieces, having said how many there will be.
func long(w http.ResponseWriter, size, piece int) {
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", fmt.Sprint(size))
	all := []byte(strings.Repeat("0123456789abcdef", size/16+1)[:size])
	for len(all) > 0 {
		n, err := w.Write(all[:min(piece, len(all))])
		if err != nil {
			panic(err)
		}
		all = all[n:]
	}
}

func TestAnswersAreTheServers(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) { answers[r.URL.Path](w, r) })
	for _, path := range slices.Sorted(maps.Keys(answers)) {
		ours, theirs := s.dial(), s.dial()
		before := s.f.Stats().Answered
		ours.send(get(path))
		theirs.send(odds(path))
		got, gotBody := ours.receive()
		want, wantBody := theirs.receive()
		if s.f.Stats().Answered != before+1 {
			t.Errorf("%s: not answered by one of each", path)
		}
		if at, err := http.ParseTime(got.Header.Get("Date")); path != "/date" && (err != nil || time.Since(at) > time.Minute) {
			t.Errorf("%s: date %v, %v", path, at, err)
		}
		got.Header.Del("Date")
		want.Header.Del("Date")
		g := fmt.Sprint(got.Status, got.Header, got.ContentLength, got.TransferEncoding, got.Close)
		w := fmt.Sprint(want.Status, want.Header, want.ContentLength, want.TransferEncoding, want.Close)
		if g != w || gotBody != wantBody {
			t.Errorf("%s is\n%s\n%.80q, with the server\n%s\n%.80q", path, g, gotBody, w, wantBody)
		}
		if got.Close || path == "/too-much" {
			ours.gone()
			continue
		}
		ours.send(get(path))
		if _, again := ours.receive(); again != gotBody {
			t.Errorf("%s again is %.80q", path, again)
		}
	}
}

// TestAnswersWithoutALength have one when they are short enough, and end with the
// connection if not.
func TestAnswersWithoutALength(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		piece := strings.Repeat("a", 60<<10)
		for range len(r.URL.Path) {
			fmt.Fprint(w, piece)
		}
		if r.URL.Path == "/f" {
			http.NewResponseController(w).Flush()
			fmt.Fprint(w, piece)
		}
	})
	for path, pieces := range map[string]int{"/": 1, "/aaaaaaaa": 9, "/" + strings.Repeat("a", 30): 31, "/f": 3} {
		c := s.dial()
		c.send(get(path))
		resp, body := c.receive()
		if len(body) != pieces*60<<10 || resp.Close != (pieces == 31 || path == "/f") {
			t.Errorf("%s: %d bytes, length %d, close %v", path, len(body), resp.ContentLength, resp.Close)
		}
	}
}

// TestShortAnswer is shorter than was said: the client sees it end.
func TestShortAnswer(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "5")
		fmt.Fprint(w, "abc")
	})
	c := s.dial()
	c.send(get("/"))
	resp, err := http.ReadResponse(c.in, nil)
	must(t, err)
	if b, err := io.ReadAll(resp.Body); string(b) != "abc" || err == nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestInvalidStatus(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(99) })
	c := s.dial()
	c.send(get("/"))
	c.gone()
}
