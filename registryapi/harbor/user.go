package harbor

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// minPassword is the shortest password that is taken. Length is all that is
// asked for: rules about digits and capitals make passwords worse.
const minPassword = 8

// User is a local account.
type User struct {
	ID           int64     `json:"user_id"`
	Name         string    `json:"username"`
	Email        string    `json:"email"`
	RealName     string    `json:"realname"`
	Comment      string    `json:"comment"`
	SysAdmin     bool      `json:"sysadmin_flag"`
	AdminInAuth  bool      `json:"admin_role_in_auth" doc:"Always false: accounts are local"`
	CreationTime time.Time `json:"creation_time"`
	UpdateTime   time.Time `json:"update_time"`
	Version      uint64    `json:"resource_version" doc:"Goes up with every edit"`
}

// UserRequest makes a User.
type UserRequest struct {
	Name     string `json:"username,omitempty" maxLength:"255"`
	Password string `json:"password,omitempty" maxLength:"1024"`
	Email    string `json:"email,omitempty" maxLength:"1024"`
	RealName string `json:"realname,omitempty" maxLength:"1024"`
	Comment  string `json:"comment,omitempty" maxLength:"1024"`
	SysAdmin bool   `json:"sysadmin_flag,omitempty" doc:"Beyond Harbor: make a system administrator at once"`
}

// Profile is what a User may say of himself.
type Profile struct {
	Email    *string `json:"email,omitempty" maxLength:"1024"`
	RealName *string `json:"realname,omitempty" maxLength:"1024"`
	Comment  *string `json:"comment,omitempty" maxLength:"1024"`

	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse with 409 if the user has another version; 0: any"`
}

// Password changes one.
type Password struct {
	Old string `json:"old_password,omitempty" doc:"Needed for your own"`
	New string `json:"new_password,omitempty" maxLength:"1024"`

	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse with 409 if the user has another version; 0: the one at the asked node"`
}

// SysAdminFlag makes a User a system administrator, or no more one.
type SysAdminFlag struct {
	SysAdmin bool `json:"sysadmin_flag"`

	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse with 409 if the user has another version; 0: any"`
}

// UserFound is what everybody may see of a User.
type UserFound struct {
	ID   int64  `json:"user_id"`
	Name string `json:"username"`
}

// UserPath names a user in a path.
type UserPath struct {
	ID int64 `path:"user_id" minimum:"1"`
}

type listUsersIn struct {
	rest.Page
	Name string `query:"username" maxLength:"255" doc:"Part of the name"`
}

func (a *API) registerUsers() {
	rest.Register(a.rest, rest.Op{ID: "listUsers", Method: http.MethodGet, Path: "/users", Tag: "user", Who: rest.SystemAdmin,
		Summary: "Users, by name"}, a.listUsers)
	rest.Register(a.rest, rest.Op{ID: "searchUsers", Method: http.MethodGet, Path: "/users/search", Tag: "user", Who: rest.SignedIn,
		Summary: "Find users by a part of their names"}, func(_ context.Context, in *listUsersIn) (*rest.List[UserFound], error) {
		if in.Name == "" {
			return nil, rest.Invalid("username is empty: say which users to find")
		}
		var out []UserFound
		for u := range a.cfg.View().Users() {
			if rest.Contains(u.Name, in.Name) {
				out = append(out, UserFound{ID: u.ID, Name: u.Name})
			}
		}
		return rest.PageOf(&in.Page, out), nil
	})
	rest.Register(a.rest, rest.Op{ID: "createUser", Method: http.MethodPost, Path: "/users", Tag: "user", Who: rest.SystemAdmin,
		Status: http.StatusCreated, Summary: "Make a user"}, a.createUser)
	rest.Register(a.rest, rest.Op{ID: "getCurrentUserInfo", Method: http.MethodGet, Path: "/users/current", Tag: "user", Who: rest.SignedIn,
		Summary: "Who you are"}, func(ctx context.Context, _ *struct{}) (*rest.Object[User], error) {
		u, ok := a.cfg.View().UserByID(rest.Subject(ctx).UserID)
		if !ok {
			return nil, rest.NotFound("you were deleted meanwhile")
		}
		return rest.ObjectOf(u.ID, u.Version, user(u)), nil
	})
	rest.Register(a.rest, rest.Op{ID: "getUser", Method: http.MethodGet, Path: "/users/{user_id}", Tag: "user", Who: rest.SignedIn,
		Summary: "One user: you, or anybody for a system administrator"}, func(ctx context.Context, in *UserPath) (*rest.Object[User], error) {
		u, err := a.findUser(ctx, in.ID)
		return rest.ObjectOf(u.ID, u.Version, user(u)), err
	})
	rest.Register(a.rest, rest.Op{ID: "updateUserProfile", Method: http.MethodPut, Path: "/users/{user_id}", Tag: "user", Who: rest.SignedIn,
		Summary: "Change what a user says of himself"}, func(ctx context.Context, in *struct {
		UserPath
		rest.Condition
		Body Profile
	}) (*rest.Empty, error) {
		u, err := a.findUser(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		want, err := in.Expect(u.ID, in.Body.IfVersion)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.UserUpdate{Id: u.ID, Email: in.Body.Email, RealName: in.Body.RealName, Comment: in.Body.Comment, IfVersion: want.Version})
	})
	rest.Register(a.rest, rest.Op{ID: "updateUserPassword", Method: http.MethodPut, Path: "/users/{user_id}/password", Tag: "user", Who: rest.SignedIn,
		Summary: "Change a password"}, a.updatePassword)
	rest.Register(a.rest, rest.Op{ID: "setUserSysAdmin", Method: http.MethodPut, Path: "/users/{user_id}/sysadmin", Tag: "user", Who: rest.SystemAdmin,
		Summary: "Make a user a system administrator, or no more one"}, func(ctx context.Context, in *struct {
		UserPath
		rest.Condition
		Body SysAdminFlag
	}) (*rest.Empty, error) {
		u, err := a.findUser(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		want, err := in.Expect(u.ID, in.Body.IfVersion)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.UserUpdate{Id: u.ID, Admin: &in.Body.SysAdmin, IfVersion: want.Version})
	})
	rest.Register(a.rest, rest.Op{ID: "deleteUser", Method: http.MethodDelete, Path: "/users/{user_id}", Tag: "user", Who: rest.SystemAdmin,
		Summary: "Delete a user, and his roles with him"}, func(ctx context.Context, in *struct {
		UserPath
		rest.Condition
	}) (*rest.Empty, error) {
		u, err := a.findUser(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if u.ID == rest.Subject(ctx).UserID {
			return nil, rest.Forbidden("you cannot delete yourself: ask another system administrator")
		}
		want, err := in.Expect(u.ID, 0)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.UserDelete{Id: u.ID, IfVersion: want.Version})
	})
}

func (a *API) listUsers(_ context.Context, in *listUsersIn) (*rest.List[User], error) {
	f, err := rest.ParseFilter(in.Q, "username", "email", "realname", "user_id")
	if err != nil {
		return nil, err
	}
	var out []User
	for u := range a.cfg.View().Users() {
		if rest.Contains(u.Name, in.Name) && f.OK("username", u.Name) && f.OK("email", u.Email) && f.OK("realname", u.RealName) &&
			f.OK("user_id", fmt.Sprint(u.ID)) {
			out = append(out, user(u))
		}
	}
	return rest.PageOf(&in.Page, out), nil
}

// findUser finds a user that who asks may see: himself, or anybody if he is a
// system administrator.
func (a *API) findUser(ctx context.Context, id int64) (state.User, error) {
	s := rest.Subject(ctx)
	if s.UserID != id && !s.Admin {
		return state.User{}, rest.Forbidden("only a system administrator may see or change another user")
	}
	u, ok := a.cfg.View().UserByID(id)
	if !ok {
		return u, rest.NotFound("there is no user %d", id)
	}
	return u, nil
}

func (a *API) createUser(ctx context.Context, in *struct{ Body UserRequest }) (*rest.CreatedEmpty, error) {
	// Before the costly hash: these are what people get wrong.
	if err := state.CheckUserName(in.Body.Name); err != nil {
		return nil, err
	}
	hash, err := a.hash(ctx, in.Body.Password)
	if err != nil {
		return nil, err
	}
	res, err := a.propose(ctx, &command.UserCreate{Name: in.Body.Name, PasswordHash: hash, Email: in.Body.Email, RealName: in.Body.RealName,
		Comment: in.Body.Comment, Admin: in.Body.SysAdmin})
	if err != nil {
		return nil, err
	}
	return &rest.CreatedEmpty{Status: http.StatusCreated, Location: fmt.Sprintf("%s/users/%d", Prefix, res.ID)}, nil
}

func (a *API) updatePassword(ctx context.Context, in *struct {
	UserPath
	rest.Condition
	Body Password
}) (*rest.Empty, error) {
	u, err := a.findUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	want, err := in.Expect(u.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	if u.ID == rest.Subject(ctx).UserID {
		// Who found a session open must not be able to keep it.
		ok, err := a.verify(ctx, u.PasswordHash, in.Body.Old)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, rest.Forbidden("the old password is wrong")
		}
	}
	hash, err := a.hash(ctx, in.Body.New)
	if err != nil {
		return nil, err
	}
	if want.Version == 0 {
		// What was verified above must still hold where the edit is made.
		want.Version = u.Version
	}
	return a.edit(ctx, want, &command.UserUpdate{Id: u.ID, PasswordHash: &hash, IfVersion: want.Version})
}

// hash checks and hashes a new password, when it is its turn.
func (a *API) hash(ctx context.Context, password string) (string, error) {
	if len(password) < minPassword {
		return "", rest.Invalid("the password has %d characters: %d are the least", len(password), minPassword)
	}
	if len(password) > access.MaxPasswordBytes {
		return "", rest.Invalid("the password has %d characters: %d are the most", len(password), access.MaxPasswordBytes)
	}
	var hash string
	err := a.turn(ctx, func() (err error) {
		hash, err = access.HashPassword(password)
		return err
	})
	return hash, err
}

func (a *API) verify(ctx context.Context, phc, password string) (ok bool, err error) {
	err = a.turn(ctx, func() (err error) {
		ok, err = access.VerifyPassword(phc, password)
		return err
	})
	return ok, err
}

func (a *API) turn(ctx context.Context, fn func() error) error {
	select {
	case a.hashing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.hashing }()
	return fn()
}

func user(u state.User) User {
	return User{ID: u.ID, Name: u.Name, Email: u.Email, RealName: u.RealName, Comment: u.Comment, SysAdmin: u.Admin,
		CreationTime: u.CreatedAt, UpdateTime: u.UpdatedAt, Version: u.Version}
}
