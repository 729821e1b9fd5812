package state

import (
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/portolan/portolan/consensus/command"
)

// Bounds of what people may write; all of it is in everybody's memory.
const (
	maxName     = 255
	maxText     = 1024 // comments, mail addresses, URLs, password hashes
	maxPatterns = 100
	maxSiteName = 63 // a DNS label
)

var (
	// projectName is one path component of the OCI grammar.
	projectName = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	siteName    = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$`)
	ruleName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// CheckSiteName refuses names that are no DNS labels.
func CheckSiteName(s string) error {
	if len(s) > maxSiteName || !siteName.MatchString(s) {
		return refuse(command.CodeInvalid, "%q is not a site name: use 1 to %d of a-z, 0-9 and -, beginning and ending with a letter or digit", clip(s), maxSiteName)
	}
	if s == "all" {
		return refuse(command.CodeInvalid, `a site cannot be called "all": that word means every site`)
	}
	return nil
}

// CheckProjectName refuses names that cannot begin a repository's name.
func CheckProjectName(s string) error {
	if len(s) > maxName || !projectName.MatchString(s) {
		return refuse(command.CodeInvalid, "%q is not a project name: use 1 to %d of a-z and 0-9, with single . or _ or - between them", clip(s), maxName)
	}
	return nil
}

// CheckUserName refuses names that basic authentication, a URL or a log line
// could not carry.
func CheckUserName(s string) error {
	bad := func(r rune) bool {
		return r <= ' ' || r >= 0x7f || slices.Contains([]rune(`:/\,"'~#%$<>&`), r)
	}
	if s == "" || len(s) > maxName || slices.ContainsFunc([]rune(s), bad) {
		return refuse(command.CodeInvalid, `%q is not a user name: use 1 to %d printable ASCII characters without spaces and without : / \ , " ' ~ # %% $ < > &`, clip(s), maxName)
	}
	return nil
}

func checkRuleName(s string) error {
	if len(s) > maxName || !ruleName.MatchString(s) {
		return refuse(command.CodeInvalid, "%q is not a rule name: use 1 to %d letters, digits, . _ and -, beginning with a letter or digit", clip(s), maxName)
	}
	for _, r := range s {
		if r < '0' || r > '9' {
			return nil
		}
	}
	return refuse(command.CodeInvalid, "a rule cannot be called %q: digits alone are a rule's id", clip(s))
}

func checkText(what, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) {
		return refuse(command.CodeInvalid, "the %s is not possible: at most %d bytes of UTF-8 text", what, maxText)
	}
	return nil
}

func checkPatterns(what string, list []string) error {
	if len(list) > maxPatterns {
		return refuse(command.CodeInvalid, "%d patterns for %s are too many: at most %d", len(list), what, maxPatterns)
	}
	for _, p := range list {
		if p == "" || len(p) > maxName || !utf8.ValidString(p) {
			return refuse(command.CodeInvalid, "%q is not a pattern for %s: use 1 to %d characters", clip(p), what, maxName)
		}
	}
	return nil
}

// clip keeps what someone else wrote from filling a message.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	for i := range s {
		if i >= most {
			return s[:i] + "…"
		}
	}
	return s[:most] + "…"
}

// without gives what a list has and the other has not.
func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

// set sorts a copy of a list and drops what is there twice.
func set(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	return slices.Compact(out)
}
