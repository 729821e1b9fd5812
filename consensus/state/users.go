package state

import (
	"github.com/portolan/portolan/consensus/command"
)

func checkUserTexts(hash, email, realName, comment string) error {
	if hash == "" {
		return refuse(command.CodeInvalid, "a user needs a password")
	}
	for _, t := range []struct{ what, text string }{{"password hash", hash}, {"mail address", email}, {"real name", realName}, {"comment", comment}} {
		if err := checkText(t.what, t.text); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) userCreate(m *command.UserCreate) (int64, error) {
	if err := CheckUserName(m.GetName()); err != nil {
		return 0, err
	}
	if err := checkUserTexts(m.GetPasswordHash(), m.GetEmail(), m.GetRealName(), m.GetComment()); err != nil {
		return 0, err
	}
	if old, ok := v.User(m.GetName()); ok {
		return 0, refuse(command.CodeExists, "there is a user %q already", old.Name)
	}
	u := User{ID: v.newID(), Name: m.GetName(), PasswordHash: m.GetPasswordHash(), Email: m.GetEmail(), RealName: m.GetRealName(), Comment: m.GetComment(),
		Admin: m.GetAdmin(), CreatedAt: v.now(), UpdatedAt: v.now(), Version: 1}
	v.putUser(u)
	return u.ID, nil
}

// anotherAdmin reports whether someone else could still manage the mesh.
func (v *View) anotherAdmin(than int64) bool {
	for u := range all(v.users, nil) {
		if u.Admin && u.ID != than {
			return true
		}
	}
	return false
}

func (v *View) userUpdate(m *command.UserUpdate) (int64, error) {
	u, ok := v.UserByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no user %d", m.GetId())
	}
	if err := checkVersion("user "+u.Name, u.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	if m.Admin != nil && !m.GetAdmin() && u.Admin && !v.anotherAdmin(u.ID) {
		return 0, refuse(command.CodeInvalid, "%s is the last administrator: make another one first", u.Name)
	}
	for _, f := range []struct {
		field *string
		value *string
	}{{&u.PasswordHash, m.PasswordHash}, {&u.Email, m.Email}, {&u.RealName, m.RealName}, {&u.Comment, m.Comment}} {
		if f.value != nil {
			*f.field = *f.value
		}
	}
	if m.Admin != nil {
		u.Admin = m.GetAdmin()
	}
	if err := checkUserTexts(u.PasswordHash, u.Email, u.RealName, u.Comment); err != nil {
		return 0, err
	}
	u.UpdatedAt = v.now()
	u.Version++
	v.putUser(u)
	return u.ID, nil
}

func (v *View) userDelete(m *command.UserDelete) (int64, error) {
	u, ok := v.UserByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no user %d", m.GetId())
	}
	if err := checkVersion("user "+u.Name, u.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	if u.Admin && !v.anotherAdmin(u.ID) {
		return 0, refuse(command.CodeInvalid, "%s is the last administrator: make another one first", u.Name)
	}
	for mem := range all(v.members, nil) {
		if mem.UserID == u.ID {
			v.dropMember(mem)
		}
	}
	v.users, _, _ = v.users.Delete(idKey(u.ID))
	v.userNames, _, _ = v.userNames.Delete(fold(u.Name))
	return u.ID, nil
}

func (v *View) putUser(u User) {
	v.users, _, _ = v.users.Insert(idKey(u.ID), u)
	v.userNames, _, _ = v.userNames.Insert(fold(u.Name), u.ID)
}
