package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime/debug"
)

// version is stamped by the build (-ldflags "-X main.version=…"), else it comes
// from the module's build information.
var version string

func main() { os.Exit(run()) }

// run is main with an exit code instead of an exit, so that what is deferred
// runs.
func run() int {
	version = cmp.Or(version, buildVersion())
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}
	root := newRootCommand(a)
	root.AddCommand(nodeCommands(a)...)
	if err := root.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "portolan: "+err.Error())
		return 1
	}
	return 0
}

func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
