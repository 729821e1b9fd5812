package main

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/registryapi/mesh"
)

func newSiteLabelCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "label SITE KEY=VALUE|KEY|KEY-…",
		Short: "Set labels of a site, or take them away",
		Long: `Set labels of a site, or take them away: KEY=VALUE, KEY alone, or KEY- to take one
away. Rules choose sites by them: "portolan rule create NAME --site-labels
region=eu". What a rule brings to the sites follows at once.`,
		Example: "  portolan site label fra region=eu tier=core\n  portolan site label fra tier-",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := mesh.LabelRequest{Set: map[string]string{}}
			for _, arg := range args[1:] {
				if key, ok := strings.CutSuffix(arg, "-"); ok && !strings.Contains(arg, "=") {
					r.Remove = append(r.Remove, key)
					continue
				}
				key, value, _ := strings.Cut(arg, "=")
				r.Set[key] = value
			}
			if len(args) < 2 {
				return errors.New("no label: give KEY=VALUE, KEY, or KEY- to take one away")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.LabelSite(cmd.Context(), args[0], r)
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) {
				fields(w, [2]string{"site", s.Name}, [2]string{"labels", labels(s)})
			})
		},
	})
}

// labels writes a site's, by key.
func labels(s mesh.Site) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if s.Labels[key] != "" {
			key += "=" + s.Labels[key]
		}
		out = append(out, key)
	}
	return list(out, "-")
}
