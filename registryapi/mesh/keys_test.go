package mesh

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/apitest"
)

func TestAPI_Keys(t *testing.T) {
	f := newFixture(t)
	k := decode[Keys](f, f.want(200, "admin", "GET", "/keys", ""))
	if len(k.Gossip) != 1 || len(k.Mesh) != 1 || k.Gossip[0].State != "primary" || k.Gossip[0].Holders != 3 || len(k.Rotating) != 0 || k.Recovery != nil {
		t.Errorf("%+v", k)
	}
	f.want(400, "admin", "POST", "/keys/rotate", `{}`)
	f.want(422, "admin", "POST", "/keys/rotate", `{"gosip":true}`)
	k = decode[Keys](f, f.want(200, "admin", "POST", "/keys/rotate", `{"gossip":true}`))
	if len(k.Rotating) != 1 || k.Rotating[0] != "gossip" {
		t.Errorf("%+v", k)
	}
	nodes := f.mesh.State.View().Nodes()
	if _, err := f.mesh.Propose(t.Context(), "node:x", &command.KeyStep{Kind: command.KeyKind_KEY_KIND_GOSSIP, Version: 2, Step: command.KeyStep_STEP_ADD,
		Boxes: []*command.KeyBox{{NodeId: nodes[0].ID[:], Box: []byte("box")}}}); err != nil {
		t.Fatal(err)
	}
	k = decode[Keys](f, f.want(200, "admin", "GET", "/keys", ""))
	if len(k.Gossip) != 2 || k.Gossip[1].State != "secondary" || len(k.Gossip[1].Missing) != 2 || len(k.Rotating) != 1 {
		t.Errorf("%+v", k)
	}
	f.want(400, "admin", "PUT", "/keys/recovery", `{"recipient":"AGE-SECRET-KEY-1"}`)
	k = decode[Keys](f, f.want(200, "admin", "PUT", "/keys/recovery", `{"recipient":"age1x"}`))
	if k.Recovery == nil || k.Recovery.Recipient != "age1x" || k.Recovery.CreatedBy != "user:admin" {
		t.Errorf("%+v", k.Recovery)
	}
	f.want(409, "admin", "PUT", "/keys/recovery", `{"recipient":"age1y"}`)
	f.want(200, "admin", "PUT", "/keys/recovery", `{"recipient":"age1y","replace":true}`)
}

func TestAPI_KeysAreForAdministrators(t *testing.T) {
	f := newFixture(t)
	f.backup = func(context.Context, io.Writer) error { t.Error("a backup for a stranger"); return nil }
	hash, err := access.HashPassword(apitest.AdminPassword)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.mesh.Propose(t.Context(), "user:admin", &command.UserCreate{Name: "ann", PasswordHash: hash}); err != nil {
		t.Fatal(err)
	}
	for _, op := range [][3]string{{"GET", "/keys", ""}, {"POST", "/keys/rotate", `{"mesh":true}`}, {"PUT", "/keys/recovery", `{"recipient":"age1x"}`}, {"GET", "/backup", ""}} {
		f.want(401, "", op[0], op[1], op[2])
		f.want(403, "ann", op[0], op[1], op[2])
	}
	if st := f.mesh.State.View().KeyState(); st.MeshDue || st.Recovery != "" {
		t.Errorf("%+v", st)
	}
}

func TestAPI_Backup(t *testing.T) {
	f := newFixture(t)
	f.backup = func(_ context.Context, w io.Writer) error {
		for range 1000 {
			if _, err := io.WriteString(w, strings.Repeat("x", 1000)); err != nil {
				return err
			}
		}
		return nil
	}
	a := f.want(200, "admin", "GET", "/backup", "")
	if len(a.Body) != 1000*1000 || a.Header.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(a.Header.Get("Content-Disposition"), `attachment; filename="portolan-`) {
		t.Errorf("%d bytes, %v", len(a.Body), a.Header)
	}
	f.backup = func(context.Context, io.Writer) error {
		return &command.Error{Code: command.CodeConflict, Message: "there is no recovery key"}
	}
	a = f.want(412, "admin", "GET", "/backup", "")
	if !strings.Contains(a.Body, "there is no recovery key") || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Content-Disposition") != "" {
		t.Errorf("%s, %v", a.Body, a.Header)
	}
}

// TestAPI_Backup_CutShort: what is not whole must not look whole, to any client.
func TestAPI_Backup_CutShort(t *testing.T) {
	f := newFixture(t)
	f.backup = func(_ context.Context, w io.Writer) error {
		if _, err := io.WriteString(w, strings.Repeat("x", 100_000)); err != nil {
			return err
		}
		return errors.New("the disk is on fire")
	}
	srv := httptest.NewServer(f.api)
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+Prefix+"/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", apitest.AdminPassword)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes, status %d, and no error", len(b), resp.StatusCode)
	} else if strings.Contains(string(b), "fire") {
		t.Error("the reason went into the file")
	}
}
