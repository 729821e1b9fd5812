package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/portolan/portolan/test/wan"
)

// text is a value with a text form, such as *wan.Rate.
type text[T any] interface {
	*T
	UnmarshalText([]byte) error
}

// textFlag sets *p when the flag is given, and leaves it nil otherwise.
func textFlag[T any, P text[T]](fs *flag.FlagSet, name string, p **T) {
	fs.Func(name, "", func(v string) error {
		*p = new(T)
		return P(*p).UnmarshalText([]byte(v))
	})
}

func link(args []string) error {
	if len(args) < 3 {
		usage()
	}
	l := wan.Link{A: args[0], B: args[1]}
	fs := newFlags()
	fs.BoolVar(&l.OneWay, "oneway", false, "")
	fs.BoolFunc("down", "", func(string) error { l.Down = new(true); return nil })
	fs.BoolFunc("up", "", func(string) error { l.Down = new(false); return nil })
	textFlag(fs, "rtt", &l.RTT)
	textFlag(fs, "jitter", &l.Jitter)
	textFlag(fs, "rate", &l.Rate)
	fs.Func("queue", "", func(v string) error {
		n, err := strconv.Atoi(v)
		l.Queue = &n
		return err
	})
	fs.Func("loss", "", func(v string) error {
		p, err := strconv.ParseFloat(v, 64)
		l.Loss = &p
		return err
	})
	parse(fs, args[2:])
	return wan.NewControl(lab).Link(context.Background(), l)
}

func isolate(args []string) error {
	if len(args) != 1 {
		usage()
	}
	return wan.NewControl(lab).Isolate(context.Background(), args[0])
}

func heal(args []string) error {
	if len(args) > 1 {
		usage()
	}
	return wan.NewControl(lab).Heal(context.Background(), append(args, "")[0])
}

func stats(args []string) error {
	fs := newFlags()
	asJSON := fs.Bool("json", false, "")
	reset := fs.Bool("reset", false, "")
	parse(fs, args)
	st, err := wan.NewControl(lab).Stats(context.Background(), *reset)
	if err != nil {
		return err
	}
	if *asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", " ")
		return enc.Encode(st)
	}
	fmt.Printf("%.1f s, router CPU %.2f s, machine %.0f %% busy\n", st.Seconds, st.CPUSeconds, 100*st.MachineCPU)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SITE\tADDR\tISOLATED\tEGRESS\tINGRESS\tBYTES OUT\tBYTES IN\tDROP OUT\tDROP IN\tHOST DROP\tLATE\tLATE MAX\t")
	for _, s := range st.Sites {
		fmt.Fprintf(w, "%s\t%s\t%t\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t\n", s.Name, s.Addr, s.Isolated, s.Egress, s.Ingress,
			s.EgressBytes, s.IngressBytes, s.EgressDrops, s.IngressDrops, s.HostDrops, s.Late, s.LateMax)
	}
	fmt.Fprintln(w, "\nLINK\tDOWN\tRTT\tJITTER\tRATE\tLOSS\tBYTES\tPACKETS\tDROP QUEUE\tDROP LOSS\tDROP DOWN\t")
	for _, l := range st.Links {
		fmt.Fprintf(w, "%s>%s\t%t\t%s\t%s\t%s\t%g\t%d\t%d\t%d\t%d\t%d\t\n", l.From, l.To, l.Down, l.RTT, l.Jitter, l.Rate, l.Loss,
			l.Bytes, l.Packets, l.DropQueue, l.DropLoss, l.DropDown)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := st.Trustworthy(); err != nil {
		fmt.Printf("\nvoid: %v\n", err)
	}
	return nil
}
