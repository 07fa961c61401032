package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// runReplay shows a recording, through the same flags as live.
func runReplay(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var opt options
	fs := opt.flags()
	if err := opt.parseSet(fs, args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return usagef("replay takes one recording: iotrace-bpf replay FILE")
	}
	rec, err := output.OpenRecording(fs.Arg(0))
	if err != nil {
		return err
	}
	defer rec.Close()
	log := opt.logger(stderr)
	if f, ok := stdout.(*os.File); ok && opt.report == "" && opt.wantsScreen(f) {
		return output.RunScreen(ctx, nil, output.ScreenOptions{Group: opt.group, Recording: rec, Output: f})
	}
	main := opt.printer(stdout)
	if opt.report != "" && opt.output == "" {
		main = discard{} // the page is the answer
	}
	out, err := opt.openSinks(ctx, main, rec.Header().Host, fs.Arg(0), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return opt.replay(ctx, rec, out)
}

// replay writes every interval. What is damaged is told of; what was read up to
// there has been shown by then, and what comes after it still is.
func (o *options) replay(ctx context.Context, rec *output.Recording, out *sinks) error {
	var damaged error
	for n := 0; ctx.Err() == nil; {
		iv, err := rec.Next()
		var damage *output.DamageError
		switch {
		case errors.Is(err, io.EOF):
			return damaged
		case errors.As(err, &damage):
			if errors.Is(damaged, err) {
				return damaged
			}
			damaged = errors.Join(damaged, err)
			for _, k := range out.others {
				if r, ok := k.(*reportSink); ok {
					r.report.Damage(err)
				}
			}
			continue
		case err != nil:
			return errors.Join(damaged, err)
		}
		if err := out.write(output.Group(iv, o.group), iv); err != nil {
			return err
		}
		if n++; o.count > 0 && n >= o.count {
			return damaged
		}
	}
	return damaged
}

// discard is a sink that wants nothing.
type discard struct{}

func (discard) Write(*output.Report, *output.Interval) error { return nil }
func (discard) Close() error                                 { return nil }

// runElasticsearch is "iotrace-bpf elasticsearch setup".
func runElasticsearch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var opt options
	var setup output.ElasticsearchSetup
	fs := opt.flags()
	fs.IntVar(&setup.RetentionDays, "retention-days", 0, "keep documents for so many days (0 is 14, negative for ever)")
	fs.StringVar(&setup.KibanaURL, "kibana", "", "install the dashboard into this Kibana or OpenSearch Dashboards")
	printDashboard := fs.Bool("print-dashboard", false, "write the dashboard's saved objects to standard output, and nothing else")
	if err := opt.parseSet(fs, args); err != nil {
		return err
	}
	if fs.NArg() != 1 || fs.Arg(0) != "setup" {
		return usagef("usage: iotrace-bpf elasticsearch setup --elasticsearch URL")
	}
	if *printDashboard {
		_, err := stdout.Write(output.KibanaDashboard())
		return err
	}
	if len(opt.elasticsearch) == 0 {
		return usagef("elasticsearch setup: name the server with --elasticsearch URL")
	}
	eo, err := opt.elasticsearchOptions(opt.logger(stderr))
	if err != nil {
		return err
	}
	eo.Setup = setup
	if err := output.SetupElasticsearch(ctx, eo, stdout); err != nil {
		return fmt.Errorf("setting up Elasticsearch: %w", err)
	}
	return nil
}
