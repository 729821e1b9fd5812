package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/blobs"
)

// idFile holds the version of the layout and the id, one line each, and for a
// store on a bucket which one it is:
//
//	portolan store 2
//	<uuid>
//	s3 layers/portolan
//
// History: 1, the first: no third line, blobs are files of the store. 2 has the
// third line; a version that knows only 1 would take all blobs for lost. Stores
// on a disk are still written as 1.
const (
	idFile         = "store.id"
	idPrefix       = "portolan store "
	idHeader       = idPrefix + "1"
	idHeaderBucket = idPrefix + "2"
	placeIsDisk    = ""
)

func placeOf(b *blobs.Backend) string {
	if b == nil {
		return placeIsDisk
	}
	return b.Place
}

// loadID reads the store's id, or makes one, durably: holders' hints at other
// sites name it. made says that the store may have content: it was opened
// before, and then stays where it was made.
func loadID(dir, place string) (id identity.StoreID, made bool, err error) {
	path := filepath.Join(dir, idFile)
	_, err = os.Stat(filepath.Join(dir, catalogDir))
	made = err == nil
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && made:
		// Without an id a directory with blobs is one that lost a file, not a new one.
		return id, made, fmt.Errorf("the store in %s has content but no %s: put the file back from a backup", dir, idFile)
	case errors.Is(err, fs.ErrNotExist):
		id = identity.NewStoreID()
		return id, made, writeID(path, id, place)
	case err != nil:
		return id, made, fmt.Errorf("open the store: %w", err)
	}
	id, was, err := parseID(dir, string(b))
	if err != nil || was == place {
		return id, made, err
	}
	if made {
		return id, made, fmt.Errorf("the store in %s keeps its blobs %s, not %s: name that again, or use an empty data directory", dir, placeText(was), placeText(place))
	}
	// A first start that did not get as far as the database: nothing is there yet.
	return id, made, writeID(path, id, place)
}

func placeText(place string) string {
	if place == placeIsDisk {
		return "on its disk"
	}
	return fmt.Sprintf("in %q", place)
}

func parseID(dir, text string) (id identity.StoreID, place string, err error) {
	head, rest, _ := strings.Cut(text, "\n")
	switch {
	case head == idHeader:
	case head == idHeaderBucket:
		rest, place, _ = strings.Cut(rest, "\n")
		if place = strings.TrimSpace(place); place == placeIsDisk {
			return id, "", damaged(dir)
		}
	case strings.HasPrefix(head, idPrefix):
		return id, "", fmt.Errorf("the store in %s was written by a newer version of Portolan: start that version", dir)
	default:
		return id, "", damaged(dir)
	}
	id, err = identity.ParseStoreID(strings.TrimSpace(rest))
	return id, place, err
}

func damaged(dir string) error {
	return fmt.Errorf("%s is damaged: put it back from a backup, or move the store's directory away to start with an empty one", filepath.Join(dir, idFile))
}

func writeID(path string, id identity.StoreID, place string) error {
	text := idHeader + "\n" + id.String() + "\n"
	if place != placeIsDisk {
		text = idHeaderBucket + "\n" + id.String() + "\n" + place + "\n"
	}
	if err := blobs.WriteFile(path, []byte(text)); err != nil {
		return fmt.Errorf("make a store in %s: %w", filepath.Dir(path), err)
	}
	return nil
}
