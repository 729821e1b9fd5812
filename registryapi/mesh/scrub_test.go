package mesh

import (
	"net/http"
	"testing"
	"time"
)

func TestScrub(t *testing.T) {
	f := newFixture(t)
	at := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	f.scrub = Scrub{BegunAt: &at, Blobs: 7}
	got := decode[Scrub](f, f.want(http.StatusOK, "admin", "GET", "/scrub", ""))
	if got.Site != "fra" || got.Blobs != 7 || !got.BegunAt.Equal(at) || got.PassedAt != nil {
		t.Errorf("%+v", got)
	}
	f.want(http.StatusConflict, "admin", "POST", "/scrub", "") // the node was started with none
	if f.scrub.Running {
		t.Error("a scrub that is off was started")
	}
	f.scrub.Rate = 8 << 20
	f.want(http.StatusUnauthorized, "", "POST", "/scrub", "")
	f.want(http.StatusOK, "admin", "POST", "/scrub", "")
	if !f.scrub.Running {
		t.Error("nothing was started")
	}
}

func TestConflicts_NeedTheAdministrator(t *testing.T) {
	f := newFixture(t)
	f.want(http.StatusUnauthorized, "", "GET", "/conflicts", "")
	f.want(http.StatusNotFound, "admin", "GET", "/conflicts?project=none", "")
	if got := decode[[]Conflict](f, f.want(http.StatusOK, "admin", "GET", "/conflicts?project=library", "")); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
