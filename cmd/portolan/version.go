package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersionCommand(a *app) *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:         "version",
		Annotations: map[string]string{askNobody: "true"},
		Short:       "Print this binary's version",
		Args:        args(),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "portolan %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch) })
		},
	})
}
