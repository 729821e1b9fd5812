package store

import "fmt"

// Room is how much a store can take.
type Room struct {
	// Free and Total are of the disk that its directory is on, in bytes.
	Free, Total int64
	// Left is what of Free blobs may use; the rest is the catalogue's.
	Left int64
	// Bucket: blobs end in a bucket, and pass over the disk in parts.
	Bucket bool
}

// Room asks the disk. It returns ErrNoSpace, with the Room, if a blob of so many
// bytes would be refused now: it asks as those do that bring one.
func (s *Store) Room(bytes int64) (Room, error) {
	free, total, err := s.disk.free(s.disk.dir)
	if err != nil {
		return Room{}, fmt.Errorf("ask the disk of the store in %s: %w", s.disk.dir, err)
	}
	r := Room{Free: free, Total: total, Left: max(0, free-keptOf(total)*keptForBlobs/100), Bucket: s.files.InBucket()}
	return r, s.disk.blobs(bytes)
}
