package images

import "testing"

func TestMake_ImagesAreWhole(t *testing.T) {
	s := Make(t)
	for _, name := range []string{"base", "app", "multi"} {
		ii, err := s.Path(t, name).ImageIndex()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		m, err := ii.IndexManifest()
		if err != nil || len(m.Manifests) != 1 {
			t.Fatalf("%s: manifests %d, error %v", name, len(m.Manifests), err)
		}
		if name == "multi" {
			continue
		}
		img, err := ii.Image(m.Manifests[0].Digest)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) == 0 {
			t.Fatalf("%s: layers %d, error %v", name, len(layers), err)
		}
		for _, l := range layers {
			size, err := l.Size()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			t.Logf("%s: layer of %d bytes", name, size)
		}
	}
}
