package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/portolan/portolan/registryapi/rest"
)

// Scrub says how far the answering node is with reading its blobs again, to find
// those that its disk changed.
type Scrub struct {
	Site     string     `json:"site" doc:"Of the node that answers"`
	Rate     int64      `json:"bytes_per_second" doc:"What it may read; 0: it does not run"`
	Running  bool       `json:"running" doc:"A pass is under way; else the last one has ended"`
	BegunAt  *time.Time `json:"begun_at,omitempty" doc:"When that pass began; missing: none has"`
	Blobs    int64      `json:"blobs" doc:"That it has read"`
	Bytes    int64      `json:"bytes" doc:"That it has read"`
	Damaged  int64      `json:"damaged" doc:"Blobs that it found damaged: they were put aside, and come again from other sites that have them"`
	Unread   int64      `json:"unread" doc:"Blobs that it could not read, for another reason than damage: the log has it"`
	PassedAt *time.Time `json:"passed_at,omitempty" doc:"When the last whole pass ended; missing: none has"`
}

type scrubOut struct{ Body Scrub }

// registerScrub declares what a node with content says of its disk.
func (a *API) registerScrub() {
	if a.cfg.Scrub == nil {
		return
	}
	rest.Register(a.rest, rest.Op{ID: "get-scrub", Method: http.MethodGet, Path: "/scrub", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "How far this node is with reading its blobs again, to find damaged ones"}, func(context.Context, *struct{}) (*scrubOut, error) {
		return &scrubOut{Body: a.scrub()}, nil
	})
	rest.Register(a.rest, rest.Op{ID: "start-scrub", Method: http.MethodPost, Path: "/scrub", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Have this node read all its blobs again, from the first one on; it goes on by itself"}, func(context.Context, *struct{}) (*rest.Empty, error) {
		if a.scrub().Rate == 0 {
			return nil, rest.Conflict("this node does not read its blobs again: start it with a --scrub-rate above 0")
		}
		a.cfg.StartScrub()
		return &rest.Empty{}, nil
	})
}

func (a *API) scrub() Scrub {
	s := a.cfg.Scrub()
	s.Site = a.cfg.Site
	return s
}
