package oci

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var referrerScenarios = []scenario{
	{name: "referrers in pages", rows: func(k *kit) []exchange {
		config := []byte("{}")
		subject := k.image(config, nil, artifact("application/vnd.example.subject"))
		out := slices.Concat(k.given(config), rows(k.put("subject", subject)))
		var list []v1.Descriptor
		for i := range 5 {
			note := fmt.Sprint("note ", i)
			m := k.image(config, nil, artifact("application/vnd.example.one"), k.of(subject, note))
			e := k.put("referrer", m)
			e.want = append(e.want, "Oci-Subject", k.d(subject))
			out = append(out, e)
			list = append(list, k.listed(m, v1.MediaTypeImageManifest, "application/vnd.example.one", map[string]string{"note": note}))
		}
		slices.SortFunc(list, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
		at := k.at("referrers/" + k.d(subject))
		next := func(query string) string { return "<" + at + "?" + query + `>; rel="next"` }
		esc := func(i int) string { return strings.ReplaceAll(list[i].Digest.String(), ":", "%3A") }
		return append(out,
			exchange{name: "all", do: "GET " + at, code: 200, exact: whole(k.index(list)), want: []string{"Link", ""}},
			exchange{name: "the first", do: "GET " + at + "?n=2", code: 200, exact: whole(k.index(list[:2])), want: []string{"Link", next("last=" + esc(1) + "&n=2")}},
			exchange{name: "the next", do: "GET " + at + "?n=2&last=" + esc(1), code: 200, exact: whole(k.index(list[2:4])), want: []string{"Link", next("last=" + esc(3) + "&n=2")}},
			exchange{name: "the last", do: "GET " + at + "?n=2&last=" + esc(3), code: 200, exact: whole(k.index(list[4:])), want: []string{"Link", ""}},
			exchange{name: "of a type, the first", do: "GET " + at + "?n=3&artifactType=application/vnd.example.one", code: 200, exact: whole(k.index(list[:3])),
				want: []string{"Oci-Filters-Applied", "artifactType", "Link", next("artifactType=application%2Fvnd.example.one&last=" + esc(2) + "&n=3")}},
			exchange{name: "of a type that none has", do: "GET " + at + "?artifactType=x/y", code: 200, exact: whole(k.index(nil)), want: []string{"Oci-Filters-Applied", "artifactType"}},
			exchange{name: "of what is not there", do: "GET " + k.at("referrers/"+k.d(k.bytes("x", 1))), code: 200, exact: whole(k.index(nil))},
			exchange{name: "of no digest", do: "GET " + k.at("referrers/x"), code: 400, text: "DIGEST_INVALID"},
			exchange{name: "of no repository", do: "GET /v2/conf/nothere/referrers/" + k.d(subject), code: 200, exact: whole(k.index(nil))},
			exchange{name: "a wrong method", do: "PUT " + at, code: 405},
			exchange{name: "deleted", do: "DELETE " + k.at("manifests/"+list[0].Digest.String()), code: 202},
			exchange{name: "is not listed", do: "GET " + at, code: 200, exact: whole(k.index(list[1:]))},
			exchange{name: "the subject deleted", do: "DELETE " + k.manifest(subject), code: 202},
			exchange{name: "its referrers stay", do: "GET " + at, code: 200, exact: whole(k.index(list[1:]))},
		)
	}},
	// What clients without a referrers API keep under a tag is listed too.
	{name: "referrers that clients listed", rows: func(k *kit) []exchange {
		config := []byte("{}")
		subject := k.image(config, nil, artifact("application/vnd.example.subject"))
		other := k.image(config, nil, artifact("application/vnd.example.other"))
		note := map[string]string{"note": "mine"}
		own := k.image(config, nil, artifact("application/vnd.example.one"), k.of(subject, "own"))
		bare := k.image(config, nil, artifact("application/vnd.example.one"), func(m *v1.Manifest) { m.Annotations = note })
		others := k.image(config, nil, artifact("application/vnd.example.one"), k.of(other, "another's"))
		odd, missing := k.bytes("of a type that nobody knows", 90), k.bytes("never pushed", 90)
		oddType := "application/vnd.cncf.oras.artifact.manifest.v1+json"

		// The client's own words count only where the manifest has none.
		entry := func(m []byte, mediaType, artifactType string) v1.Descriptor {
			return k.listed(m, mediaType, artifactType, map[string]string{"note": "the client's"})
		}
		image := v1.MediaTypeImageManifest
		index := k.index([]v1.Descriptor{entry(own, image, "wrong/type"), entry(bare, image, "wrong/type"), entry(bare, image, "twice"), entry(others, image, ""),
			entry(odd, oddType, "application/vnd.example.two"), entry(missing, image, ""), entry(subject, image, "")})
		tag := k.alg.String() + "-" + k.alg.FromBytes(subject).Encoded()[:64]
		otherTag := k.alg.String() + "-" + k.alg.FromBytes(other).Encoded()[:64]
		at := "GET " + k.at("referrers/"+k.d(subject))
		sorted := func(list ...v1.Descriptor) *string {
			slices.SortFunc(list, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
			return whole(k.index(list))
		}
		lOwn := k.listed(own, image, "application/vnd.example.one", map[string]string{"note": "own"})
		lBare := k.listed(bare, image, "application/vnd.example.one", note)
		lOdd := entry(odd, oddType, "application/vnd.example.two")
		all := []v1.Descriptor{lOwn, lBare, lOdd}
		slices.SortFunc(all, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })

		oddPut := exchange{name: "put of a type that nobody knows", do: "PUT " + k.manifest(odd), body: odd, header: []string{"Content-Type", oddType}, code: 201}
		first := k.put("put the subject", subject)
		ownPut, othersPut := k.put("put", own), k.put("put", others)
		entries := k.put("put the children", k.index([]v1.Descriptor{k.platform("", bare)}))
		short := k.index([]v1.Descriptor{entry(own, image, ""), entry(bare, image, ""), entry(others, image, ""), entry(odd, oddType, "application/vnd.example.two"), entry(subject, image, "")})
		refused := k.put("an index of what is not there is refused as any", index, tag)
		refused.code, refused.want, refused.text = 400, nil, "MANIFEST_BLOB_UNKNOWN"
		taken := k.put("the index, under the subject's tag", short, tag)
		taken.want = append(taken.want, "Warning", `299 - "tag `+tag+" is not needed*")
		// Under the other's tag there is what is no index.
		image2 := k.put("an image under such a tag", bare, otherTag)
		image2.want = append(image2.want, "Warning", "")
		return slices.Concat(k.given(config), rows(
			first, ownPut, k.put("put", bare), othersPut, oddPut, entries,
			exchange{name: "before", do: at, code: 200, exact: sorted(lOwn)},
			refused, taken,
			exchange{name: "after", do: at, code: 200, exact: sorted(lOwn, lBare, lOdd)},
			exchange{name: "by type", do: at + "?artifactType=application/vnd.example.one", code: 200, exact: sorted(lOwn, lBare)},
			exchange{name: "by the type that the client gave", do: at + "?artifactType=application/vnd.example.two", code: 200, exact: sorted(lOdd)},
			exchange{name: "by a wrong type", do: at + "?artifactType=wrong/type", code: 200, exact: sorted()},
			exchange{name: "a page", do: at + "?n=1", code: 200, exact: sorted(all[0]), want: []string{"Link", "*"}},
			exchange{name: "the next", do: at + "?n=1&last=" + all[0].Digest.String(), code: 200, exact: sorted(all[1]), want: []string{"Link", "*"}},
			exchange{name: "the last", do: at + "?n=1&last=" + all[1].Digest.String(), code: 200, exact: sorted(all[2]), want: []string{"Link", ""}},
			image2,
			exchange{name: "a tag that is no index is only a tag", do: "GET " + k.at("referrers/"+k.d(other)), code: 200, exact: sorted(k.listed(others, image, "application/vnd.example.one", map[string]string{"note": "another's"}))},
			exchange{name: "what it lists is deleted", do: "DELETE " + k.manifest(bare), code: 202},
			exchange{name: "and not listed", do: at, code: 200, exact: sorted(lOwn, lOdd)},
			exchange{name: "the tag is deleted", do: "DELETE " + k.at("manifests/"+tag), code: 202},
			exchange{name: "and what it listed is not", do: at, code: 200, exact: sorted(lOwn)},
		))
	}},
}

var listScenarios = []scenario{
	{name: "tags", rows: func(k *kit) []exchange {
		config := k.bytes("config", 64)
		m := k.image(config, nil)
		tags := []string{"1", "10", "2", "B", "_", "a", "b"}
		list := func(tags []string) *string {
			return whole(marshal(map[string]any{"name": k.repo, "tags": tags}))
		}
		at := k.at("tags/list")
		page := func(name, query string, tags []string, link string) exchange {
			if link != "" {
				link = "<" + at + "?" + link + `>; rel="next"`
			}
			return exchange{name: name, do: "GET " + at + query, code: 200, exact: list(tags), want: []string{"Link", link, "Content-Type", "application/json", "Cache-Control", "no-cache"}}
		}
		var refused []exchange
		for _, n := range []string{"-1", "x", "1.5", "0x10", "+1", "%201", "1e3"} {
			refused = append(refused, exchange{name: "n is " + n, do: "GET " + at + "?n=" + n, code: 400, text: "PAGINATION_NUMBER_INVALID"})
		}
		return slices.Concat(k.given(config), rows(
			k.put("no tags", m), page("none", "", []string{}, ""),
			k.put("tags", m, "b", "a", "B", "10", "1", "2", "_"),
			page("all, in the order of bytes", "", tags, ""),
			page("the first", "?n=3", tags[:3], "last=2&n=3"),
			page("the next", "?n=3&last=2", tags[3:6], "last=a&n=3"),
			page("the last", "?n=3&last=a", tags[6:], ""),
			page("exactly all", "?n=7", tags, ""),
			page("behind the last", "?n=3&last=b", []string{}, ""),
			page("behind one that is not there", "?last=3", tags[3:], ""),
			page("behind what is no tag", "?last=.%00%20", tags, ""),
			page("none asked for", "?n=0", []string{}, ""),
			page("an n without a value", "?n=", tags, ""),
			page("a huge n", "?n=99999999999999999999999", tags, ""),
			exchange{name: "head", do: "HEAD " + at, code: 200},
		), refused)
	}},
	{name: "catalog", rows: func(k *kit) []exchange {
		config := k.bytes("config", 64)
		m := k.image(config, nil)
		names := []string{k.repo, k.other, k.shut}
		slices.Sort(names)
		before := k.repo[:len(k.repo)-1]
		var out []exchange
		for _, repo := range names {
			out = slices.Concat(out, k.givenIn(repo, config), rows(exchange{name: "put", do: "PUT /v2/" + repo + "/manifests/1", body: m, header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 201}))
		}
		return append(out,
			exchange{name: "the first", do: "GET /v2/_catalog?n=2&last=" + before, code: 200, exact: whole(marshal(map[string][]string{"repositories": names[:2]})),
				want: []string{"Link", "</v2/_catalog?last=" + strings.ReplaceAll(names[1], "/", "%2F") + `&n=2>; rel="next"`}},
			exchange{name: "all that dev sees", do: "GET /v2/_catalog", code: 200, text: k.shut},
			exchange{name: "all that the administrator sees", as: "admin", do: "GET /v2/_catalog", code: 200, text: k.shut},
			exchange{name: "all that guest sees", as: "guest", do: "GET /v2/_catalog", code: 200, text: k.other, lacks: k.shut},
			exchange{name: "all that a stranger sees", as: "stranger", do: "GET /v2/_catalog", code: 200, lacks: k.repo},
			exchange{name: "all that anybody sees", as: "-", do: "GET /v2/_catalog", code: 200, lacks: k.repo},
			exchange{name: "none asked for", do: "GET /v2/_catalog?n=0", code: 200, text: `{"repositories":[]}`, want: []string{"Link", ""}},
			exchange{name: "a huge n", do: "GET /v2/_catalog?n=99999999999999999999999", code: 200, text: k.repo},
			exchange{name: "no n", do: "GET /v2/_catalog?n=x", code: 400, text: "PAGINATION_NUMBER_INVALID"},
			exchange{name: "behind all", do: "GET /v2/_catalog?last=zzz", code: 200, text: `{"repositories":[]}`},
		)
	}},
}

var deleteScenarios = []scenario{
	{name: "deletes", rows: func(k *kit) []exchange {
		config, layer, extra := k.bytes("config", 64), k.bytes("layer", 150_000), k.bytes("extra", 10)
		m := k.image(config, [][]byte{layer})
		i := k.index([]v1.Descriptor{k.platform("amd64", m)})
		tag := func(t string) string { return k.at("manifests/" + t) }
		return slices.Concat(k.given(config, layer, extra), rows(
			k.put("put", m, "a", "b", "c"), k.put("index", i, "i"),
			exchange{name: "a tag", do: "DELETE " + tag("a"), code: 202},
			exchange{name: "it is gone", do: "HEAD " + tag("a"), code: 404},
			exchange{name: "and not listed", do: "GET " + k.at("tags/list"), code: 200, text: `["b","c","i"]`},
			exchange{name: "once more", do: "DELETE " + tag("a"), code: 404, text: "MANIFEST_UNKNOWN"},
			exchange{name: "the other tags are there", do: "GET " + tag("b"), code: 200, exact: whole(m)},
			exchange{name: "and the manifest", do: "GET " + k.manifest(m), code: 200, exact: whole(m)},
			exchange{name: "a tag that is none", do: "DELETE " + tag(".x"), code: 404},
			exchange{name: "a blob that a manifest needs", do: "DELETE " + k.blob(layer), code: 405, text: "delete the manifests that name it first"},
			exchange{name: "is still there", do: "HEAD " + k.blob(layer), code: 200},
			exchange{name: "a blob that nothing needs", do: "DELETE " + k.blob(extra), code: 202},
			exchange{name: "is gone", do: "GET " + k.blob(extra), code: 404},
			exchange{name: "by somebody who may not", as: "guest", do: "DELETE " + k.manifest(m), code: 403},
			exchange{name: "by nobody", as: "-", do: "DELETE " + k.manifest(m), code: 401},
			exchange{name: "the manifest", do: "DELETE " + k.manifest(m), code: 202},
			exchange{name: "is gone", do: "GET " + k.manifest(m), code: 404},
			exchange{name: "its layer, whose deletion was refused, is as it was", do: "HEAD " + k.blob(layer), code: 200},
			exchange{name: "with its tags", do: "HEAD " + tag("b"), code: 404},
			exchange{name: "but not the index that names it", do: "GET " + tag("i"), code: 200, exact: whole(i)},
			exchange{name: "the index", do: "DELETE " + k.manifest(i), code: 202},
			exchange{name: "nothing is left", do: "GET " + k.at("tags/list"), code: 404, text: "NAME_UNKNOWN"},
			exchange{name: "the blob that it needed", do: "DELETE " + k.blob(layer), code: 202},
			exchange{name: "is gone too", do: "HEAD " + k.blob(layer), code: 404},
		), k.given(layer), rows(
			exchange{name: "pushed again it is there", do: "GET " + k.blob(layer), code: 200, exact: whole(layer)},
		))
	}},
}

var accessScenarios = []scenario{
	{name: "access", rows: func(k *kit) []exchange {
		config := k.bytes("config", 64)
		m := k.image(config, nil)
		name := strings.TrimPrefix(k.repo, "conf/")
		host := strings.TrimPrefix(k.url, "http://")
		out := slices.Concat(k.given(config), rows(k.put("put", m, "1")))
		for _, path := range []string{"tags/list", "manifests/1", "manifests/" + k.d(m), "blobs/" + k.d(config), "referrers/" + k.d(m)} {
			out = append(out,
				exchange{name: "nobody", as: "-", do: "GET " + k.at(path), code: 401, text: "UNAUTHORIZED", want: []string{"Www-Authenticate", `Bearer realm="` + k.url + `/service/token",service="portolan",scope="repository:` + k.repo + `:pull"`}},
				exchange{name: "a stranger", as: "stranger", do: "GET " + k.at(path), code: 403, text: "DENIED"},
				exchange{name: "a stranger, of no project", as: "stranger", do: "GET /v2/nothere/app/" + path, code: 403, text: "is not there, or stranger may not see it"},
				exchange{name: "a guest", as: "guest", do: "GET " + k.at(path), code: 200},
				exchange{name: "with the host before", as: "guest", do: "GET /v2/" + host + "/" + k.repo + "/" + path, code: 200},
			)
		}
		return slices.Concat(out, rows(
			exchange{name: "an administrator, of no project", as: "admin", do: "POST /v2/nothere/app/blobs/uploads/", code: 404, text: "portolan project create nothere"},
			// One component is in library, with the host before it as well.
			exchange{name: "given a blob", as: "admin", do: "POST /v2/" + name + "/blobs/uploads/?digest=" + k.d(config), body: config, code: 201, want: []string{"Location", "/v2/" + name + "/blobs/" + k.d(config)}},
			exchange{name: "put", as: "admin", do: "PUT /v2/" + host + "/" + name + "/manifests/" + k.d(m) + "?tag=1", body: m, header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 201},
			exchange{name: "get", as: "-", do: "GET /v2/library/" + name + "/manifests/1", code: 200, exact: whole(m)},
			exchange{name: "get, short", as: "-", do: "GET /v2/" + name + "/manifests/1", code: 200, exact: whole(m)},
			exchange{name: "get, with the host", as: "-", do: "GET /v2/" + host + "/library/" + name + "/manifests/1", code: 200, exact: whole(m)},
			exchange{name: "another host is another name", as: "-", do: "GET /v2/other.example.com/" + name + "/manifests/1", code: 401},
			exchange{name: "deny by the name in full", do: "DELETE /v2/" + name + "/manifests/1", code: 403, text: "library/" + name},
			exchange{name: "deny by the name with the host", do: "DELETE /v2/" + host + "/" + name + "/manifests/1", code: 403, text: "library/" + name},
		))
	}},
}
