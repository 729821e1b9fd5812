package config

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// The text of a map option is one record of CSV whose fields are key=value, so
// that a value may have commas: "a=1","b=2,3".

// pairKey: dots lead to keys below keys.
var pairKey = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$`)

// checkPairs brings pairs into one form, sorted by key. Its errors show no value:
// it may be a secret.
func checkPairs(s string) (string, error) {
	m, err := parsePairs(s)
	if err != nil {
		return "", err
	}
	return pairsText(m)
}

func parsePairs(s string) (map[string]string, error) {
	m := make(map[string]string)
	if s == "" {
		return m, nil
	}
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err == nil {
		if _, more := r.Read(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one line")
		}
	}
	if err != nil {
		return nil, errors.New(`expected KEY=VALUE,KEY=VALUE on one line; a pair with a comma or a quotation mark is written "KEY=VALUE", with its quotation marks doubled`)
	}
	for i, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case !ok || !pairKey.MatchString(key):
			return nil, fmt.Errorf("pair %d is not KEY=VALUE with a key of lower-case letters and digits", i+1)
		case value == "":
			return nil, fmt.Errorf("%s has no value", key)
		case strings.ContainsAny(value, "\r\n"):
			return nil, fmt.Errorf("the value of %s has more than one line", key)
		}
		m[key] = value
	}
	return m, nil
}

func pairsText(m map[string]string) (string, error) {
	if len(m) == 0 {
		return "", nil
	}
	fields := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fields = append(fields, key+"="+m[key])
	}
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write(fields); err != nil {
		return "", err
	}
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n"), w.Error()
}

// yamlPairs gives keys below an option of a file the text that a flag would have.
func yamlPairs(v map[string]any) (string, error) {
	m := make(map[string]string)
	if err := addPairs(m, "", v); err != nil {
		return "", err
	}
	return pairsText(m)
}

// maxPairDepth: no driver has keys below keys below keys.
const maxPairDepth = 3

func addPairs(m map[string]string, prefix string, v map[string]any) error {
	if strings.Count(prefix, ".") >= maxPairDepth {
		return errors.New("too many keys below keys")
	}
	for _, key := range sortedKeys(v) {
		if below, ok := v[key].(map[string]any); ok {
			if err := addPairs(m, prefix+key+".", below); err != nil {
				return err
			}
			continue
		}
		text, err := yamlText(v[key])
		if err != nil {
			return fmt.Errorf("%s: %w", prefix+key, err)
		}
		if text = strings.TrimSpace(text); text != "" {
			m[prefix+key] = text
		}
	}
	return nil
}
